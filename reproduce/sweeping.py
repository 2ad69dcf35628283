"""The command `sweep`: many runs at once, shown with what they take before any is submitted."""

import sys
from typing import Annotated

import typer

from reproduce.asking import command_line, make_screen
from reproduce.console import SiteName, Until, command, width
from reproduce.errors import ReproduceError
from reproduce.files import short_path


@command("sweep")
def sweep_rows(
    rows: Annotated[str, typer.Argument(metavar="ROWS", help="A row, or a pattern like 'franca-*'.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=A,B", help="Lists of values, each with each: Hydra's sweep syntax."),
    ] = None,
    until: Until = None,
    site: SiteName = None,
    parallel: Annotated[int, typer.Option(help="Jobs that may run at a time.", min=1)] = 8,
    max_gpu_hours: Annotated[float | None, typer.Option(help="Refuse what would take more.", min=0.0)] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write one page over all runs, reports/sweeps/NAME.html; submit nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Submit without asking.")] = False,
) -> None:
    """Train many runs as an array of jobs; asked again, submit only those that are missing and show the others."""
    from reproduce.resolve import load_site
    from reproduce.sweep_report import write_sweep_report
    from reproduce.sweeps import check_cost, make_sweep, render_sweep, submit_sweep

    members = make_sweep(rows, changes or (), site=load_site(site), until=until)
    typer.echo(render_sweep(members, width=width()))
    if report:
        words = (rows, *(changes or ()), *(("--until", until) if until else ()))
        typer.echo(short_path(write_sweep_report(members, words=words, command=command_line())))
        return
    if not any(member.is_missing for member in members):
        return
    check_cost(members, max_gpu_hours=max_gpu_hours)
    if not yes:
        if not sys.stdin.isatty():
            raise ReproduceError("nobody is there to be asked", mend="add --yes")
        if not typer.confirm("Submit them?"):
            return
    submit_sweep(members, parallel=parallel, command=command_line(), screen=make_screen())
