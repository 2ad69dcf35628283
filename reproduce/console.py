"""What every command of `reproduce` shares: the application, its options, exit codes, and how results are printed.

Modules are imported by the commands that need them, so that `reproduce list` answers at once.
"""

import dataclasses
import functools
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reproduce.errors import ReproduceError
from reproduce.files import short_path
from reproduce.json_text import render_json
from reproduce.terminal import printable_lines

if TYPE_CHECKING:
    from reproduce.verdict import Verdict

EXIT_CODES = (
    "Exit codes: 0 nothing contradicts the row · 1 something does, or the training failed · 2 a mistake in the "
    "command, a file or the site, said in one line · 3 not enough evidence · 75 stopped from outside, or 130 by "
    "Ctrl-C: the work is saved and the same command goes on."
)
app = typer.Typer(
    help="Reproduce published vision pretraining runs: launch, parse, judge, report.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def complete_row(incomplete: str) -> list[str]:
    """Names of rows, for the shell's Tab key."""
    from reproduce.spec import list_rows

    return [row.row for row in list_rows() if row.row.startswith(incomplete)]


Row = Annotated[
    str, typer.Argument(metavar="ROW", help="A row, as `reproduce list` names it.", autocompletion=complete_row)
]
Rows = Annotated[
    list[str] | None,
    typer.Argument(metavar="ROW", help="Rows; all of them if none is named.", autocompletion=complete_row),
]
Changes = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes of the recipe, or seed=N: another run.")
]
Until = Annotated[str | None, typer.Option(help="Stop early: after 5% of the run, or after 500 iterations.")]
SiteName = Annotated[str | None, typer.Option("--site", help="Where to run: a file of experiments/site/.")]
Seed = Annotated[int | None, typer.Option(help="A seed in place of the row's own.", min=0)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ExitZero = Annotated[bool, typer.Option("--exit-zero", help="Exit with 0 whatever the verdict.")]


def command(name: str) -> Callable[[Callable[..., int | None]], Callable[..., None]]:
    """Register a function that returns its exit code; errors become a message and a code, never a traceback."""

    def register(function: Callable[..., int | None]) -> Callable[..., None]:
        @app.command(name, epilog=EXIT_CODES)
        @functools.wraps(function)
        def wrapper(*arguments: Any, **options: Any) -> None:
            try:
                code = function(*arguments, **options) or 0
                sys.stdout.flush()
            except ReproduceError as error:
                typer.echo(printable_lines(f"error: {error}"), err=True)
                code = error.exit_code
            except KeyboardInterrupt:
                code = 130
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at Python's own end
                code = 141
            except OSError as error:
                if error.filename is None:
                    raise
                mend = "mend: make room there, or name a folder that may be read and written"
                typer.echo(printable_lines(f"error: {error.filename}: {error.strerror}\n{mend}"), err=True)
                code = 2
            raise typer.Exit(code)

        return wrapper

    return register


def show(content: Any, *, as_json: bool, text: Callable[[], str]) -> None:
    """Print JSON, or text for people."""
    if as_json:
        typer.echo(render_json(to_plain(content)))
    else:
        typer.echo(text())


def to_plain(value: Any) -> Any:
    """What JSON has a form for: dataclasses as objects, paths as text, numbers that are not finite as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def width() -> int:
    """Columns of the terminal; of a file or pipe, as many as read well in one."""
    return shutil.get_terminal_size(fallback=(160, 24)).columns


def show_verdict(verdict: "Verdict", *, as_json: bool, path: Path | None) -> None:
    """Print a verdict as its own JSON or as tables with the file that was written."""
    from reproduce.tables import render_verdict

    if as_json:
        typer.echo(verdict.to_json(), nl=False)
        return
    typer.echo(render_verdict(verdict, width=width()))
    if path is not None:
        typer.echo(f"\n{short_path(path)}")
