"""A run that is evaluated apart in; the job beside its training launched, taken up again, launched again, waited for.

It never fails the training: what it could not measure is said, waits in the run folder, and is measured when the run is
asked for again.
"""

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from reproduce.attempts import IDLE_STARTS, INTERRUPTED, NOTHING, waiting_teachers
from reproduce.containers import python_command
from reproduce.endings import FailedRunError
from reproduce.errors import RunError, SiteError
from reproduce.files import held, short_path
from reproduce.launch import Job, evaluation_parameters, render_script, submit, with_snapshot
from reproduce.progress import newest_evaluation
from reproduce.resolve import Resolved
from reproduce.runs import is_apart, newest_evaluator, newest_job, record_evaluator
from reproduce.snapshot import CODE, snapshot_path, take_snapshot

POLL_S = {"local": 0.5, "slurm": 15.0}  # squeue is a load on the whole cluster


class Beside:
    """The evaluation job of one run, as one harness sees it. `failure` is why it is not launched any more."""

    def __init__(self, resolved: Resolved, *, say: Callable[[str], None]) -> None:
        self.resolved = resolved
        self.folder = resolved.folder
        self.say = say
        self.apart = is_apart(resolved.folder)
        self.seen: Job | None = None
        self.killed_at: list[int] = []
        self.failure: FailedRunError | None = None

    def keep(self) -> None:
        """Launch the job beside a run that trains, unless it runs, was asked to end, or comes to nothing."""
        if not self.apart or self.failure:
            return
        job = newest_evaluator(self.folder)
        if job is not None and job.is_running():
            self.seen = job
            return
        if job is None or job != self.seen or self._is_worth_another(job):
            self._launch()
        if self.failure:
            self.say(f"{self.failure}\nthe training goes on without it")

    def finish(self) -> None:
        """Once nothing trains: wait until the job has ended, launching it where teachers still wait.

        Ctrl-C ends a job of this machine. Raises `FailedRunError` where teachers still wait then.
        """
        if not self.apart:
            return
        told = False
        while True:
            job = newest_evaluator(self.folder)
            waiting = waiting_teachers(self.folder)
            if job is not None and job.is_running():
                self.seen = job
                if waiting and not told:
                    self.say(f"{short_path(self.folder)}: {_teachers(waiting)} to be evaluated, by job {job.job_id}")
                    told = True
                self._wait(job)
            elif not waiting:
                if self.seen is not None:
                    newest = newest_evaluation(self.folder)
                    said = f"every teacher is evaluated, the last after {newest} iterations"
                    if newest is None:
                        said = "the untrained network is evaluated, no teacher is due yet"
                    self.say(f"{short_path(self.folder)}: {said}")
                return
            else:
                if job is None or job != self.seen or self._is_worth_another(job):
                    self._launch()
                if self.failure:
                    raise self.failure

    def _launch(self) -> None:
        """Launch the job, unless another harness has."""
        with held(self.folder / "launch.lock"):
            job = newest_evaluator(self.folder)
            if job is None or not job.is_running():
                try:
                    job = self._submit()
                except (RunError, SiteError) as error:
                    self._fail(f"could not be launched: {error.message}", path=error.path)
                    return
                record_evaluator(self.folder, job=job)
                self.say(f"{short_path(self.folder)}: evaluating as job {job.job_id} on {self.resolved.site.name}")
            self.seen = job

    def _submit(self) -> Job:
        resolved, training = self.resolved, newest_job(self.folder)
        after = training.job_id if training is not None and training.is_running() else None
        return submit(
            evaluator(resolved),
            folder=self.folder / "submitit",
            executor=resolved.site.executor,
            parameters=evaluation_parameters(resolved, after=after),
            evaluates=self.folder,
            snapshot=take_snapshot(self.folder / CODE),
        )

    def _is_worth_another(self, job: Job) -> bool:
        """Whether a job that has ended should be followed by another; `failure` says why not."""
        code, said = job.exit_code(), job.last_words().removeprefix("error: ")
        if code == 0:
            return True
        if code is None or code < 0:
            self.killed_at.append(next(iter(waiting_teachers(self.folder)), NOTHING))
            if self.killed_at[-IDLE_STARTS:] != IDLE_STARTS * self.killed_at[-1:]:
                self.say(f"{short_path(self.folder)}: the evaluation (job {job.job_id}) was killed")
                return True
            how = f"was killed {IDLE_STARTS} times at one teacher: {said}"
        else:
            how = "was asked to end" if code == INTERRUPTED else f"failed: {said}"
        self._fail(how, path=job.stderr)
        return False

    def _fail(self, how: str, *, path: Path | None) -> None:
        again = shlex.join(("reproduce", "evaluate", self.resolved.spec.row, *self.resolved.spec.overrides))
        self.failure = FailedRunError(f"the evaluation {how}", path=path, mend=again)

    def _wait(self, job: Job) -> None:
        try:
            time.sleep(POLL_S[job.executor])
        except KeyboardInterrupt:
            if job.executor == "local":
                job.stop()
            raise


def render_evaluator(resolved: Resolved) -> str | None:
    """What would be launched beside a run's training: sbatch's script, in which JOB is the training's.

    Empty on this machine, where it is a process; None where the training evaluates.
    """
    if resolved.config.execution.evaluate == "inline":
        return None
    if resolved.site.executor == "local":
        return ""
    parameters = evaluation_parameters(resolved, after="JOB")
    parameters = with_snapshot(parameters, snapshot=snapshot_path(resolved.folder / CODE))
    return render_script(resolved.folder / "submitit", parameters=parameters, ahead=1)


def stop_evaluator(folder: Path) -> Job | None:
    """Ask the job beside a run to end, if there is one; what it was measuring is measured when it is launched again."""
    job = newest_evaluator(folder)
    if job is None or not job.is_running():
        return None
    job.stop()
    return job


def evaluator(resolved: Resolved) -> tuple[str, ...]:
    """The command of the job beside a run's training."""
    folder = str(resolved.folder.resolve())
    python = python_command(resolved.site, root=resolved.spec.root)
    measure = (*python, "-m", "franca.evaluate", folder, "--all")  # the queue is asked outside of a container
    return (sys.executable, "-m", "reproduce.evaluator", folder, *measure)


def _teachers(waiting: tuple[int, ...]) -> str:
    return "1 teacher waits" if len(waiting) == 1 else f"{len(waiting)} teachers wait"
