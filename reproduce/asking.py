"""What a person typed in, the run that it means and the screen that answers out: shared by the commands.

Modules are imported where they are needed, so that commands which need little answer at once.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reproduce.judging import RunFiles
    from reproduce.phases import Screen
    from reproduce.resolve import Resolved


def resolve_run(
    row: str, changes: Sequence[str] | None, *, until: str | None, site: str | None, seed: int | None
) -> "Resolved":
    """A row with its changes, laid out on a site."""
    from reproduce.judging import load_run_spec
    from reproduce.resolve import load_site, resolve

    return resolve(load_run_spec(row, changes=changes or (), seed=seed), site=load_site(site), until=until)


def find_run(row: str, changes: Sequence[str] | None, *, seed: int | None) -> "RunFiles":
    """The files of a row's run, for which no site is needed."""
    from reproduce.judging import find_files, load_run_spec

    return find_files(load_run_spec(row, changes=changes or (), seed=seed))


def make_screen() -> "Screen":
    """A bar that moves on a terminal, a line now and then elsewhere."""
    from reproduce.screen import LiveScreen, PlainScreen

    return LiveScreen() if sys.stderr.isatty() else PlainScreen(sys.stderr)


def command_line() -> list[str]:
    """What the user typed, as it can be typed again."""
    return ["reproduce", *sys.argv[1:]]
