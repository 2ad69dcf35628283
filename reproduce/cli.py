"""The command `reproduce`: reads the command line, calls one module, prints what it found, ends with its exit code.

Modules are imported by the commands that need them, so that `reproduce list` answers at once.
"""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from reproduce.asking import command_line, find_run, make_screen, resolve_run
from reproduce.console import (
    Changes,
    ExitZero,
    Json,
    Row,
    Rows,
    Seed,
    SiteName,
    Until,
    app,
    command,
    show,
    show_verdict,
    width,
)
from reproduce.files import short_path
from reproduce.live_command import watch_run as watch_run  # these modules register their commands
from reproduce.log_commands import compare_logs as compare_logs
from reproduce.terminal import printable_lines


@command("list")
def list_rows(as_json: Json = False) -> int:
    """List the rows: what each is and costs, whether its log was published, and how far it was run here."""
    from reproduce.overview import list_row_states, render_rows

    states, broken = list_row_states()
    show(states, as_json=as_json, text=lambda: render_rows(states, width=width()))
    for error in broken:
        typer.echo(printable_lines(f"error: {error}"), err=True)
    return 2 if broken else 0


@command("show")
def show_row(
    row: Row,
    changes: Changes = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="The configuration as it would run here.")] = False,
    until: Until = None,
    site: SiteName = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Show a row: its recipe, and with --resolved all that a run of it on this site would be given."""
    import yaml

    from franca.config import to_mapping
    from reproduce.judging import find_files, load_run_spec

    if resolved:
        laid_out = resolve_run(row, changes, until=until, site=site, seed=seed)
        for note in laid_out.notes:
            typer.echo(note, err=True)
        content = to_mapping(laid_out.config)
    else:
        spec = load_run_spec(row, changes=changes or (), seed=seed)
        content = {
            "row": spec.name,
            "title": spec.title,
            "summary": spec.summary,
            "run": find_files(spec).run,
            "fingerprint": spec.fingerprint,
            "seed": spec.seed,
            "notes": list(spec.notes),
            "changes": [str(change) for change in spec.changes],
            "recipe": to_mapping(spec.recipe),
        }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True).rstrip()
    show(content, as_json=as_json, text=lambda: printable_lines(text))


@command("audit")
def audit_rows(rows: Rows = None, as_json: Json = False) -> None:
    """Hold what was published of a row against itself: documents, configurations, scripts and what is run."""
    from reproduce import audit, spec

    specs = [spec.load_spec(row) for row in rows or [summary.row for summary in spec.list_rows()]]
    findings = {item.name: {"findings": audit.audit(item), "cross_checks": audit.cross_checks(item)} for item in specs}
    show(findings, as_json=as_json, text=lambda: "\n".join(audit.render_audit(item) for item in specs).rstrip())


@command("plan")
def plan_row(
    row: Row,
    changes: Changes = None,
    site: SiteName = None,
    gpu: Annotated[
        str | None, typer.Option(help="A GPU by torch's name of it, in place of the documented one.")
    ] = None,
    mfu: Annotated[float, typer.Option(help="The share of the GPU's peak to reckon with.", min=0.01, max=1.0)] = 0.35,
    as_json: Json = False,
) -> None:
    """Say what a run of a row takes, before anything of it is there: parameters, FLOPs, memory, layout, time, data."""
    from reproduce.judging import load_run_spec
    from reproduce.plan import make_plan, render_plan
    from reproduce.resolve import load_site

    plan = make_plan(load_run_spec(row, changes=changes or (), seed=None), site=load_site(site), gpu=gpu, mfu=mfu)
    show(plan, as_json=as_json, text=lambda: render_plan(plan, width=width()))


@command("run")
def run_row(
    row: Row,
    changes: Changes = None,
    until: Until = None,
    site: SiteName = None,
    seed: Seed = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the job that would be submitted, for sbatch or this machine.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Train, evaluate, judge and report a row; what is already done is not done again."""
    from reproduce.beside import evaluator, render_evaluator
    from reproduce.judging import RunFiles, judge_run, write_report
    from reproduce.phases import evaluate, launch_note, render_launch, train

    laid_out, screen = resolve_run(row, changes, until=until, site=site, seed=seed), make_screen()
    if dry_run:
        typer.echo(render_launch(laid_out), nl=False)
        if laid_out.site.executor == "slurm":  # its script is what sbatch is given, to the byte
            screen.say(launch_note(laid_out))
        beside = render_evaluator(laid_out)
        if beside is not None:
            screen.say(
                f"beside it, a second job evaluates; its process is: {shlex.join(evaluator(laid_out))}\n{beside}"
            )
        return 0
    for note in laid_out.notes:
        screen.say(note)
    train(laid_out, command=command_line(), screen=screen)
    evaluate(laid_out, screen=screen)
    files = RunFiles(laid_out.spec, laid_out.run)
    verdict = judge_run(files)
    report = write_report(files)
    show_verdict(verdict, as_json=as_json, path=report)
    return verdict.exit_code


@command("train")
def train_row(row: Row, changes: Changes = None, until: Until = None, site: SiteName = None, seed: Seed = None) -> None:
    """Train a row, or go on where it was cut off. Ctrl-C saves a checkpoint; a job of a cluster is left running."""
    from reproduce.phases import train

    laid_out, screen = resolve_run(row, changes, until=until, site=site, seed=seed), make_screen()
    for note in laid_out.notes:
        screen.say(note)
    train(laid_out, command=command_line(), screen=screen)


@command("evaluate")
def evaluate_row(row: Row, changes: Changes = None, site: SiteName = None, seed: Seed = None) -> int:
    """Evaluate the newest teacher of a run: k-NN by the published protocol."""
    from reproduce.phases import evaluate

    laid_out = resolve_run(row, changes, until=None, site=site, seed=seed)
    return 3 if evaluate(laid_out, screen=make_screen()) is None else 0


@command("weights")
def evaluate_released(
    row: Row,
    file: Annotated[list[Path] | None, typer.Option(help="A file in place of its download; one for each part.")] = None,
    size: Annotated[int | None, typer.Option(help="Weights for images of so many pixels: 224 or 518.")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Also weights that were withdrawn or are doubted.")] = False,
    protocol: Annotated[str, typer.Option(help="knn, linear and logreg, joined by commas.")] = "knn,linear",
    device: Annotated[str | None, typer.Option(help="cpu or cuda, in place of the site's.")] = None,
    linear_iterations: Annotated[int, typer.Option(help="Steps of the linear probe.", min=1)] = 12_500,
    site: SiteName = None,
    as_json: Json = False,
) -> int:
    """Evaluate a row's released weights by the published protocol, against every version of the published numbers."""
    from reproduce.judging import MAIN, RunFiles, write_report
    from reproduce.resolve import load_site
    from reproduce.spec import load_spec
    from reproduce.weights import Protocol, evaluate_weights, render_verdict

    spec, screen = load_spec(row), make_screen()
    how = Protocol(tuple(protocol.split(",")), px=size, device=device, linear_iterations=linear_iterations)
    verdict, path = evaluate_weights(
        spec, site=load_site(site), protocol=how, given=file or (), anyway=anyway, say=screen.say
    )
    files = RunFiles(spec, MAIN)
    report = write_report(files) if files.report("json").is_file() or not files.folder.is_dir() else path
    show(verdict, as_json=as_json, text=lambda: f"{render_verdict(verdict)}\n{short_path(report)}")
    return verdict.exit_code


@command("judge")
def judge_row(
    row: Row, changes: Changes = None, seed: Seed = None, exit_zero: ExitZero = False, as_json: Json = False
) -> int:
    """Hold a run's log against the row's published log and metrics, and write the verdict to reports/ROW.json."""
    from reproduce.judging import judge_run

    files = find_run(row, changes, seed=seed)
    verdict = judge_run(files)
    show_verdict(verdict, as_json=as_json, path=files.report("json"))
    return 0 if exit_zero else verdict.exit_code


@command("report")
def report_row(row: Row, changes: Changes = None, seed: Seed = None) -> None:
    """Write reports/ROW.html, its badge, and the index of all rows."""
    from reproduce.judging import load_verdict, write_report

    files = find_run(row, changes, seed=seed)
    path = write_report(files)
    verdict = load_verdict(files)
    said = verdict.outcome.upper() if verdict else "not run yet: the report is an audit"
    typer.echo(f"{short_path(path)}  {said}")


@command("fetch")
def fetch_log(row: Row) -> None:
    """Download the row's published log at its pinned commit and verify it."""
    from reproduce.references import fetch_reference
    from reproduce.spec import load_spec

    spec = load_spec(row)
    typer.echo(short_path(fetch_reference(spec.published_log, root=spec.root)))


@command("publish")
def publish_run(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    target: Annotated[Path, typer.Argument(help="A folder that does not exist yet, such as logfiles/ROW/seed-1.")],
) -> None:
    """Copy a finished run's log, configuration and evaluations, without weights, for others to be judged by."""
    from reproduce.published import publish_log

    for path in publish_log(run, target):
        typer.echo(short_path(path))


@command("lock")
def lock_rows() -> None:
    """Add every new version of a row to versions.lock; a locked recipe never changes under its version."""
    from reproduce.versions import write_lock

    for name in write_lock():
        typer.echo(name)


@command("pipeline")
def print_pipeline(
    write: Annotated[bool, typer.Option("--write", help="Write dvc.yaml instead of printing it.")] = False,
) -> None:
    """Generate dvc.yaml from the rows."""
    from reproduce.compose import find_root
    from reproduce.files import write_whole
    from reproduce.pipeline import render_pipeline
    from reproduce.spec import list_rows

    root = find_root()
    text = render_pipeline(list_rows(root=root), root=root)
    if write:
        write_whole(root / "dvc.yaml", text)
    else:
        typer.echo(text, nl=False)


def main() -> None:
    """The entry point of the command `reproduce`."""
    from reproduce import signing, sweeping, watching  # noqa: F401  they bring their commands along

    app(prog_name="reproduce")
