"""`franca COMMAND`: the trainer's commands, each a module with `main(arguments) -> exit code`, imported when needed.

Exit codes: 0 done; 2 a mistake in what was asked for, said in one line; others as the command documents.
"""

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": ("franca.train.__main__", "train a run, or go on with it"),
    "data": ("franca.data.__main__", "index and check the images of a published row"),
    "consolidate": ("franca.train.consolidate", "one weights file of a checkpoint's teacher, student or both"),
    "evaluate": ("franca.evaluate.__main__", "measure the teachers of a run, or a weights file"),
    "evaluate-dense": ("franca.evaluate.dense", "segment PASCAL VOC or ADE20K by frozen patch features"),
    "pca": ("franca.evaluate.pca", "show patch features as colors"),
    "rasa": ("franca.train.rasa", "remove from patch tokens what tells their position"),
    "export": ("franca.export", "the newest teacher of a run as a folder to share"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the command line names; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        print(f"error: {arguments[0]} is no command\n{_usage()}", file=sys.stderr)
        return 2
    module, _ = COMMANDS[arguments[0]]
    return importlib.import_module(module).main(arguments[1:])


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(["usage: franca COMMAND ...", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
