"""What `reproduce train` and `reproduce evaluate` do: start or take up a job, follow it, and say how it ended."""

import importlib.util
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from reproduce.attempts import newest_checkpoint
from reproduce.beside import POLL_S, Beside, stop_evaluator
from reproduce.containers import python_command
from reproduce.endings import FailedRunError, LostRunError, left_on_signal, raise_if_cut_short, raise_if_failed
from reproduce.errors import RunError, SiteError
from reproduce.files import held, short_path, write_whole
from reproduce.launch import Job, evaluation_parameters, make_parameters, render_script, submit, with_snapshot
from reproduce.progress import Progress, newest_evaluation, read_progress
from reproduce.resolve import Resolved
from reproduce.runs import RunState, is_alive, newest_job, open_run, read_evaluation, read_state, record_launch
from reproduce.sites import Site
from reproduce.snapshot import CODE, snapshot_path, take_snapshot

TRAINER_NEEDS = {
    "torch": "torch",
    "jaxtyping": "jaxtyping",
    "PIL": "pillow",
    "safetensors": "safetensors",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
}


class Screen(Protocol):
    """Where a phase says what it does."""

    def say(self, text: str) -> None:
        """One line for good."""

    def show(self, progress: Progress) -> None:
        """Where the run stands now; it replaces what was shown before."""

    def end(self) -> None:
        """Nothing more will be shown of this run."""


def train(resolved: Resolved, *, command: Sequence[str], screen: Screen) -> RunState:
    """Train until the recipe's end, or `until_iteration` of the configuration; returns the run's last state.

    Evaluated apart, the run's teachers are measured by a job beside it, which is waited for and never fails it.
    A job that is already at it is taken up, never doubled; one that the cluster lost is followed by another while that
    brings new checkpoints. Raises `FailedRunError`, `InterruptedRunError`, or
    `KeyboardInterrupt` once the job that was started here has saved its work.
    """
    require_trainer(resolved.site)
    target = resolved.config.execution.until_iteration or resolved.config.recipe.iterations
    started, lost_at = False, -1
    while True:
        folder = open_run(resolved, command=command, root=resolved.spec.root)
        state = read_state(folder)
        if state is not None and state.iteration >= target and not is_alive(folder):
            screen.say(f"{short_path(folder)}: {state.state}, {state.iteration} of {state.of} iterations done")
            try:
                Beside(resolved, say=screen.say).finish()
            except FailedRunError as error:
                screen.say(str(error))
            return state
        if started:
            raise FailedRunError(
                f"the trainer ended at {state.iteration if state else 0} of {target} iterations and did not say why",
                path=folder / "log.txt",
            )
        job = None
        try:
            job, started = _start_or_take_up(resolved, folder=folder, screen=screen)
            _follow(resolved, job=job, target=target, command=command, screen=screen)
        except KeyboardInterrupt:
            _stop(job if started else None, folder=folder, command=command, screen=screen)
            raise
        try:
            raise_if_cut_short(folder, job=job, command=command)
        except LostRunError as error:
            if newest_checkpoint(folder) == lost_at:
                raise
            lost_at, started = newest_checkpoint(folder), False
            screen.say(f"{error.message}\ngoing on from iteration {lost_at}")


def render_launch(resolved: Resolved) -> str:
    """What `train` would hand over for this run as it stands: sbatch's script, or the line that starts the trainer."""
    files, snapshot = resolved.folder / "submitit", snapshot_path(resolved.folder / CODE)
    if resolved.site.executor == "slurm":
        parameters = make_parameters(resolved, nodes=resolved.nodes, tasks_per_node=resolved.tasks_per_node)
        return render_script(files, parameters=with_snapshot(parameters, snapshot=snapshot))
    line = shlex.join(trainer(resolved))
    head = f"# {resolved.tasks_per_node} × on this machine, with the code of {short_path(snapshot)}"
    return f"{head}\n# {launch_note(resolved)}\n{line}\n"


def launch_note(resolved: Resolved) -> str:
    """What a launch writes before the command that `render_launch` shows can run, and where that run stops."""
    until, of = resolved.config.execution.until_iteration, resolved.config.recipe.iterations
    part = f"trains until iteration {until:,} of {of:,}" if until else f"trains all {of:,} iterations"
    folder = short_path(resolved.folder)
    process = f"\neach process is: {shlex.join(trainer(resolved))}" if resolved.site.executor == "slurm" else ""
    return f"{part}; needs what a launch writes into {folder} first (config.yaml, code, submitit){process}"


def start(resolved: Resolved, *, command: Sequence[str], screen: Screen) -> None:
    """Start the run's job, unless there is nothing left to do or one is at it, and leave it to itself."""
    require_trainer(resolved.site)
    target = resolved.config.execution.until_iteration or resolved.config.recipe.iterations
    folder = open_run(resolved, command=command, root=resolved.spec.root)
    state = read_state(folder)
    if state is not None and state.iteration >= target and not is_alive(folder):
        screen.say(f"{short_path(folder)}: {state.state}, {state.iteration} of {state.of} iterations done")
        return
    _start_or_take_up(resolved, folder=folder, screen=screen)
    Beside(resolved, say=screen.say).keep()


def evaluate(resolved: Resolved, *, screen: Screen) -> Path | None:
    """Evaluate the run's newest teacher; returns the path of `evaluation.json`, left as it is where it is of that one.

    None where the run has not come to its first evaluation yet: there is no teacher to evaluate.
    """
    require_trainer(resolved.site)
    folder, beside = resolved.folder, Beside(resolved, say=screen.say)
    result = folder / "evaluation.json"
    if not (folder / "config.yaml").is_file():
        mend = shlex.join(("reproduce", "train", resolved.spec.row, *resolved.spec.overrides))
        raise RunError("nothing is trained yet", path=folder, mend=mend)
    if is_alive(folder) and not beside.apart:
        raise RunError("the run is being trained", path=folder, mend="evaluate it when it has ended, or stop it first")
    while is_alive(folder):
        beside.keep()
        time.sleep(POLL_S[resolved.site.executor])
    beside.finish()
    done = newest_evaluation(folder)
    if done is None:
        period = resolved.config.recipe.evaluation.period_iterations
        screen.say(
            f"{short_path(folder)}: no teacher to evaluate yet, the run keeps the first after {period} iterations"
        )
        return None
    if result.is_file() and read_evaluation(folder)["iteration"] == done:
        screen.say(f"{short_path(result)}: evaluated after {done} iterations")
        return result
    measured = folder / "eval" / f"training_{done - 1}" / "evaluation.json"
    if beside.apart and measured.is_file():
        write_whole(result, measured.read_bytes())
        screen.say(f"{short_path(result)}: evaluated after {done} iterations, beside the training")
        return result
    screen.say(f"{short_path(folder)}: evaluating the teacher after {done} iterations")
    _evaluate_newest(resolved)
    return result


def _evaluate_newest(resolved: Resolved) -> None:
    """Run the job that evaluates a run's newest teacher, to its end."""
    folder = resolved.folder
    job = submit(
        (*python_command(resolved.site, root=resolved.spec.root), "-m", "franca.evaluate", str(folder.resolve())),
        folder=folder / "submitit",
        executor=resolved.site.executor,
        parameters=evaluation_parameters(resolved),
        snapshot=take_snapshot(folder / CODE),
    )
    try:
        while job.is_running():
            time.sleep(POLL_S[job.executor])
    except KeyboardInterrupt:
        job.stop()
        raise
    raise_if_failed("the evaluation", job.exit_code(), job=job, said=job.last_words(), log=job.stderr)


def trainer(resolved: Resolved) -> tuple[str, ...]:
    """The command that each task of a run's job is."""
    python = python_command(resolved.site, root=resolved.spec.root)
    return (*python, "-m", "franca.train", str((resolved.folder / "config.yaml").resolve()))


def require_trainer(site: Site) -> None:
    """Find what the trainer imports without importing it: torch alone takes seconds. A container has its own."""
    if site.container is not None:
        return
    missing = [package for module, package in TRAINER_NEEDS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise SiteError(f"the trainer needs {', '.join(missing)}", mend="pip install -c constraints.txt -e '.[train]'")


def _start_or_take_up(resolved: Resolved, *, folder: Path, screen: Screen) -> tuple[Job | None, bool]:
    """The job that trains, and whether it was started here. It is None where a person started the trainer by hand."""
    with held(folder / "launch.lock"):
        if is_alive(folder):
            job = newest_job(folder)
            if job is not None and not job.is_running() and job.exit_code() is not None:
                job = None
            screen.say(f"{short_path(folder)}: already being trained{f' by {job.title}' if job else ''}, following it")
            return job, False
        job = submit(
            trainer(resolved),
            folder=folder / "submitit",
            executor=resolved.site.executor,
            parameters=make_parameters(resolved, nodes=resolved.nodes, tasks_per_node=resolved.tasks_per_node),
            run=folder,
            snapshot=take_snapshot(folder / CODE),
        )
        record_launch(folder, job=job, site=resolved.site.name)
        screen.say(f"{short_path(folder)}: training as job {job.job_id} on {resolved.site.name}")
        return job, True


def _follow(resolved: Resolved, *, job: Job | None, target: int, command: Sequence[str], screen: Screen) -> None:
    """Show where the run stands until nothing trains it any more; keep a job beside it that evaluates."""
    folder, beside = resolved.folder, Beside(resolved, say=screen.say)
    try:
        with left_on_signal(folder, command=command):
            while is_alive(folder):
                beside.keep()
                screen.show(read_progress(folder, target=target))
                time.sleep(POLL_S[job.executor if job else "local"])
        screen.show(read_progress(folder, target=target))
    finally:
        screen.end()


def _stop(job: Job | None, *, folder: Path, command: Sequence[str], screen: Screen) -> None:
    """Ctrl-C: stop a job of this machine that was started here, and leave alone what others or a cluster run."""
    try:
        if job is not None and job.executor == "local":
            screen.say("stopping: the trainer saves a checkpoint first (Ctrl-C again leaves it running)")
            job.stop()
            stop_evaluator(folder)
            while is_alive(folder):
                time.sleep(0.1)
            state = read_state(folder)
            done = f" at {state.iteration} of {state.of} iterations" if state else ""
            screen.say(f"stopped{done}; continue with: {shlex.join(command)}")
            return
    except KeyboardInterrupt:
        pass
    if is_alive(folder):
        running = newest_job(folder)
        how = f"; stop it with: {running.stop_command}" if running else ""
        screen.say(f"left running{how}; follow it again with: {shlex.join(command)}")
