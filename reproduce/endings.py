"""A job that is over in; where it ended before its time, the exception that says why, and what to do, out."""

import shlex
import signal
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from reproduce.attempts import INTERRUPTED, newest_checkpoint
from reproduce.causes import BEGINS_ANEW, GOES_ON, LOST, Cause, ask_cause, find_cause
from reproduce.errors import RunError
from reproduce.launch import Job
from reproduce.runs import newest_job, read_state

TRACEBACK_LINES = 12


class FailedRunError(RunError):
    """The trainer or the evaluation failed, through no mistake of the user's."""

    exit_code = 1


class InterruptedRunError(RunError):
    """The run was asked to stop and saved its work; the same command continues it."""

    exit_code = INTERRUPTED


class LeftRunError(RunError):
    """The harness was ended from outside; the job that it followed goes on."""

    exit_code = 128 + signal.SIGTERM


class LostRunError(FailedRunError):
    """The cluster lost the run: a dead node, a preemption, a limit that came too fast. Another launch goes on."""


@contextmanager
def left_on_signal(folder: Path, *, command: Sequence[str]) -> Iterator[None]:
    """Where SIGTERM or a hang-up ends this process and not the job, raise `LeftRunError` with what to type next."""

    def leave(number: int, _frame: FrameType | None) -> None:
        job = newest_job(folder)
        left = f"{job.title} goes on without it" if job and job.is_running() else "nothing runs of this run"
        stop = f"; save and stop it with: {job.stop_command}" if job and job.is_running() else ""
        raise LeftRunError(
            f"this command was ended by {signal.Signals(number).name}: {left}",
            path=folder,
            mend=f"follow it again with: {shlex.join(command)}{stop}",
        )

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_if_cut_short(folder: Path, *, job: Job | None, command: Sequence[str]) -> None:
    """Say why a launch ended before its time: by the exit code where there is one, else by the trainer's last word."""
    state = read_state(folder)
    if job is not None and state is not None and not job.wrote(folder / "state.json"):
        state = None  # what an earlier launch said
    code = job.exit_code() if job else None
    if code is None and state is not None:
        code = {"finished": 0, "paused": 0, "interrupted": INTERRUPTED, "failed": 1, "running": None}[state.state]
    what = f"the training at {state.iteration} of {state.of} iterations" if state else "the training"
    if code == INTERRUPTED:
        raise InterruptedRunError(
            f"{what.replace('the training', 'the run was interrupted')} and saved a checkpoint",
            path=folder,
            mend=f"continue it with: {shlex.join(command)}",
        )
    cause = find_cause(folder, job=job) or ask_cause(job) if job and code not in (0, 2) else None
    if job and cause and (cause.kind != "killed" or code == 1):
        _raise_cause(what, cause, job=job, folder=folder)
    said = job.last_words(lines=4 if code is None else 1) if job else ""  # who killed it says so in several lines
    if code == 1 and state is not None and state.error:
        said = state.error
    raise_if_failed(what, code, job=job, said=said, log=folder / "log.txt", again=_goes_on(folder))


def raise_if_failed(
    what: str, code: int | None, *, job: Job | None, said: str, log: Path, again: str = "the same command tries again"
) -> None:
    """Raise unless the exit code is 0: 2 is the user's mistake, all else (None: killed) a failure.

    again: what the same command does after a kill.
    """
    if code == 0:
        return
    if code == 2:
        raise RunError(said.removeprefix("error: ") or f"{what} was refused", path=job.stderr if job else log)
    mend = "find the cause in the file above" + (f" or in {job.folder}" if job else "")
    how = "was killed" if code is None else "failed"
    if code is not None and code < 0:
        how, said = f"was killed by {signal.Signals(-code).name}", ""
        mend = f"{again}; if nobody killed it, look for a lack of memory"
    because = "" if not said else f":\n{textwrap.indent(said, '  ')}" if "\n" in said else f": {said}"
    raise FailedRunError(f"{what} {how}{because}", path=log, mend=mend)


def _raise_cause(what: str, cause: Cause, *, job: Job, folder: Path) -> None:
    """Raise a cause that is known; of another process than the first with its traceback, which no log has."""
    kind = "" if cause.kind == "error" else f" ({cause.kind})"
    where = f" in process {cause.rank}" if cause.rank else ""
    lines = cause.traceback.rstrip().splitlines()[-TRACEBACK_LINES:] if cause.rank else ()
    text = "\n".join([f"{what} failed{kind}{where}: {cause.said}", *(f"  {line}" for line in lines)])
    path = job.folder / f"{job.job_id}_{cause.rank}_log.err" if cause.rank else folder / "log.txt"
    mend = f"{cause.mend} or in {job.folder}" if cause.kind == "error" else cause.mend
    mend = mend.replace(GOES_ON, _goes_on(folder))
    raise (LostRunError if cause.kind in LOST else FailedRunError)(text, path=path, mend=mend)


def _goes_on(folder: Path) -> str:
    """What the same command does with a run that was cut off."""
    return GOES_ON if newest_checkpoint(folder) else BEGINS_ANEW
