"""The commands of `reproduce` that need no row: logs parsed, drawn, and held against one another.

Modules are imported by the commands that need them, so that `reproduce list` answers at once.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import typer

from reproduce.asking import command_line
from reproduce.console import ExitZero, Json, command, show, show_verdict, width
from reproduce.errors import ReproduceError
from reproduce.files import short_path
from reproduce.quantities import printable

AxisName = Literal["iteration", "progress", "images", "gpu-hours"]


@command("compare")
def compare_logs(
    mine: Annotated[Path, typer.Argument(help="A run folder or a log.")],
    theirs: Annotated[list[Path], typer.Argument(help="The runs or logs that it is held against.")],
    also: Annotated[
        list[Path] | None, typer.Option(help="Another run of mine, held against the same; may be repeated.")
    ] = None,
    x: Annotated[AxisName, typer.Option("--x", help="What the runs are compared over.")] = "iteration",
    html: Annotated[Path | None, typer.Option(help="Write a report there.")] = None,
    exit_zero: ExitZero = False,
    as_json: Json = False,
) -> int:
    """Hold any logs or run folders against others, without a row, in every dialect that `reproduce parse` reads."""
    from reproduce.comparison import compare_runs
    from reproduce.judging import write_comparison
    from reproduce.lineage import load_history

    if html is not None and also:
        raise ReproduceError("--html is the report of one run", mend="leave out --also, or --html")
    references = [load_history(path) for path in theirs]
    found = [compare_runs(load_history(path), references, axis=x) for path in (mine, *(also or ()))]
    verdicts = [comparison.verdict for comparison in found]
    if as_json and also:
        typer.echo(f"[{','.join(verdict.to_json() for verdict in verdicts)}]")
    else:
        for verdict in verdicts:
            show_verdict(verdict, as_json=as_json, path=None)
    if html is not None:  # should it not be written, the verdict is there
        write_comparison(
            verdicts[0], mine=found[0].mine, references=found[0].references, path=html, command=command_line()
        )
        if not as_json:
            typer.echo(f"\n{short_path(html)}")
    return 0 if exit_zero else max(verdict.exit_code for verdict in verdicts)


@command("figure")
def draw_figure(
    mine: Annotated[Path, typer.Argument(help="A run folder or a log.")],
    to: Annotated[Path, typer.Option(help="The file to write: .pdf, .png or .svg.")],
    theirs: Annotated[list[Path] | None, typer.Argument(help="The runs or logs that it is drawn over.")] = None,
) -> None:
    """Draw a figure for a paper, one column wide: the losses and k-NN of a run over those of others."""
    from reproduce.figures.paper import figure_form, write_paper_figure
    from reproduce.lineage import load_history

    figure_form(to)
    write_paper_figure(to, mine=load_history(mine), references=[load_history(path) for path in theirs or ()])
    typer.echo(short_path(to))


@command("parse")
def parse_file(
    file: Annotated[Path, typer.Argument(help="A run folder or a log.")],
    csv: Annotated[
        Path | None, typer.Option(help="Write the iterations that count as a table there; - prints.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Parse a log and show what is in it: launches, metrics and whatever is broken. Exits with 3 if it holds none."""
    from reproduce.lineage import folder_logs, make_lineage
    from reproduce.logs import parse_log
    from reproduce.tables import render_log

    if as_json and csv == Path("-"):
        raise ReproduceError("--json and --csv - would both print", mend="name a file: --csv FILE")
    file = folder_logs(file)[0] if file.is_dir() else file
    log = parse_log(file)
    lineage = make_lineage(log.records, path=str(file))
    if csv is not None and log.records:
        from reproduce.frames import write_csv

        write_csv(csv, lineage.records)
    content = {**dataclasses.asdict(log), "launches": lineage.launches, "lineage_problems": lineage.problems}
    if csv != Path("-"):
        show(content, as_json=as_json, text=lambda: render_log(log, lineage, width=width()))
    elif not log.records:
        problems = [str(problem) for problem in log.problems] or [f"{file}: no records"]
        typer.echo("\n".join(map(printable, problems)), err=True)
    return 0 if log.records else 3
