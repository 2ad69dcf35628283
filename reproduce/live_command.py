"""The command `watch`: a run followed check by check. Modules are imported by the command that needs them."""

from typing import Annotated, Literal

import typer

from reproduce.console import Changes, ExitZero, Json, Row, Seed, command, show_verdict
from reproduce.quantities import printable


@command("watch")
def watch_run(
    row: Row,
    changes: Changes = None,
    seed: Seed = None,
    stop_on: Annotated[
        Literal["failed"] | None, typer.Option("--stop-on", help="End a run that a check proves off; it is resumable.")
    ] = None,
    notify_command: Annotated[
        str | None, typer.Option(help="A program that is given each notice as JSON on its standard input.")
    ] = None,
    notify_url: Annotated[str | None, typer.Option(help="An address that each notice is posted to as JSON.")] = None,
    exit_zero: ExitZero = False,
    as_json: Json = False,
) -> int:
    """Follow a run: each check is printed as it turns, until the run has ended; then its verdict."""
    from reproduce.asking import find_run
    from reproduce.live import Notify, follow_run

    def say(text: str) -> None:
        typer.echo(printable(text), err=as_json)

    verdict = follow_run(
        find_run(row, changes, seed=seed),
        stop_on_failed=stop_on is not None,
        notify=Notify(notify_command, notify_url),
        say=say,
    )
    if verdict is None:
        return 3
    show_verdict(verdict, as_json=as_json, path=None)
    return 0 if exit_zero else verdict.exit_code
