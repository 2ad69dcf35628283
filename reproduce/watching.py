"""The commands that watch runs and take hold of them: `status`, `logs`, `cancel`, `resume`.

They read run folders and ask the cluster's queue; nothing has to have been left running for them.
"""

import time
from typing import Annotated

import typer

from reproduce.console import Changes, Json, Row, Seed, SiteName, Until, command, show, width
from reproduce.errors import RunError, SiteError
from reproduce.files import short_path
from reproduce.terminal import printable_lines

Watch = Annotated[bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Print what is added, while the run is being trained.")]
Lines = Annotated[int, typer.Option("--lines", "-n", help="Lines of the end to begin with.", min=0)]

CLEAR = "\x1b[2J\x1b[H"  # typer.echo leaves it out where the output is no terminal
WATCH_S = 15.0  # squeue is a load on the whole cluster
FOLLOW_S = 0.5
ALIVE_S = 15.0


@command("status")
def show_status(
    rows: Annotated[str, typer.Argument(metavar="ROWS", help="A row, or a pattern like 'franca-*'.")] = "*",
    watch: Watch = False,
    as_json: Json = False,
) -> None:
    """Say how every run here stands: state, iteration, speed, time left, verdict, restarts, and why it ended."""
    from reproduce.compose import find_root
    from reproduce.standing import load_standings, render_standings

    while True:
        standings, problem = load_standings(find_root(), pattern=rows)
        if watch:
            typer.echo(CLEAR, nl=False)
        content = {"runs": standings, "queue_problem": problem}
        show(content, as_json=as_json, text=lambda: render_standings(standings, problem, width=width()))  # noqa: B023
        if not watch:
            return
        time.sleep(WATCH_S)


@command("site")
def check_this_site(
    action: Annotated[str, typer.Argument(metavar="check", help="Submit a probe and say what is wrong.")],
    site: SiteName = None,
    wait_s: Annotated[float, typer.Option("--wait", help="Seconds to wait for the probe to start.", min=1.0)] = 600.0,
    as_json: Json = False,
) -> int:
    """Try a site with a job of two nodes: rendezvous, environment, data, shared folder, clock, speed of writing."""
    from reproduce.probes import check_site, render_trials
    from reproduce.resolve import load_site

    if action != "check":
        raise SiteError(f"a site cannot be asked to {action}", mend="reproduce site check")
    trials = check_site(load_site(site), wait_s=wait_s)
    show(trials, as_json=as_json, text=lambda: render_trials(trials, width=width()))
    return 2 if any(trial.outcome == "fail" for trial in trials) else 0


@command("logs")
def print_log(
    row: Row,
    changes: Changes = None,
    seed: Seed = None,
    lines: Lines = 20,
    follow: Follow = False,
    evaluation: Annotated[bool, typer.Option("--evaluation", help="Of the job that evaluates beside it.")] = False,
) -> None:
    """Print the end of a run's log; what a job said before its log began, where there is none."""
    from reproduce.asking import find_run
    from reproduce.runs import is_alive, newest_evaluator, newest_job

    folder = find_run(row, changes, seed=seed).folder
    job = newest_evaluator(folder) if evaluation else newest_job(folder)
    path = folder / "log.txt"
    if (evaluation or not path.is_file()) and job is not None and job.stderr.is_file():
        path = job.stderr
    elif evaluation or not path.is_file():
        raise RunError("there is no log yet", path=folder, mend=f"reproduce status {row}")
    with path.open(errors="replace") as file:
        text = file.read().splitlines(keepends=True)
        typer.echo(printable_lines("".join(text[len(text) - lines if lines < len(text) else 0 :])), nl=False)
        asked = time.monotonic()
        while follow:
            more = file.read()
            typer.echo(printable_lines(more), nl=False)
            if not more and time.monotonic() - asked > ALIVE_S:
                if not is_alive(folder):
                    return
                asked = time.monotonic()
            time.sleep(FOLLOW_S)


@command("cancel")
def cancel_run(row: Row, changes: Changes = None, seed: Seed = None) -> None:
    """Ask a run's job, and the one that evaluates it, to save and end; one that waits is taken out of the queue."""
    from reproduce.asking import find_run
    from reproduce.beside import stop_evaluator
    from reproduce.runs import newest_job

    folder = find_run(row, changes, seed=seed).folder
    training, evaluation = newest_job(folder), stop_evaluator(folder)
    if training is not None and training.is_running():
        training.stop()
    else:
        training = None
    jobs = [f"job {job.job_id}" for job in (training, evaluation) if job is not None]
    if not jobs:
        typer.echo(f"{short_path(folder)}: nothing runs or waits")
        return
    said = f"{' and '.join(jobs)} {'were' if len(jobs) > 1 else 'was'} asked to stop"
    typer.echo(f"{short_path(folder)}: {said}; go on with: reproduce resume {row}")


@command("resume")
def resume_run(
    row: Row, changes: Changes = None, until: Until = None, site: SiteName = None, seed: Seed = None
) -> None:
    """Start a run's job, from its newest checkpoint, and leave it to itself; one that runs is left as it is."""
    from reproduce.asking import command_line, make_screen, resolve_run
    from reproduce.phases import start

    start(resolve_run(row, changes, until=until, site=site, seed=seed), command=command_line(), screen=make_screen())
