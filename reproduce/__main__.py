"""`python -m reproduce`: the command `reproduce`."""

from reproduce.cli import main

if __name__ == "__main__":
    main()
