"""What the job beside a training is: a run folder in, a command run whenever a teacher waits, until the run is over.

    python -m reproduce.evaluator RUN COMMAND...

The command measures all that waits and ends, so that nothing is held between two teachers. Everything that this knows
is in the run folder: ended at any moment and started again, it goes on. The cluster is asked seldom.
"""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from reproduce.attempts import FORWARDED, IDLE_STARTS, INTERRUPTED, MISTAKE, NOTHING, waiting_teachers
from reproduce.runs import is_alive, newest_job, read_state

POLL_S = 2.0
ASK_S = 60.0  # at most between two questions whether the run is over; they become rarer while its state stays the same
ENDED = ("finished", "paused", "failed")


def attend(run: Path, command: Sequence[str], *, poll_s: float = POLL_S) -> int:
    """Run `command` whenever a teacher of `run` waits; 0 when the run is over and none is left.

    Returns the command's exit code where it was interrupted, where it names a mistake, and where it failed
    `IDLE_STARTS` times in a row at one and the same teacher.
    """
    failed_at, tries = NOTHING, 0
    last, gap, ask_at = None, poll_s, 0.0
    while True:
        state, now, over = read_state(run), time.monotonic(), False
        if state is not None and state.state != last:
            last, gap, ask_at = state.state, poll_s, now
        if now >= ask_at:
            over = is_over(run)  # before the teachers: the last one is written before the run is over
            gap = min(2 * gap, ASK_S)
            ask_at = now + gap
        waiting = waiting_teachers(run)
        if not waiting and over:
            return 0
        if waiting:
            code = run_to_end(command)
            if code in (MISTAKE, INTERRUPTED):
                return code
            if code or waiting[0] in waiting_teachers(run):
                tries = tries + 1 if waiting[0] == failed_at else 1
                failed_at = waiting[0]
                if tries == IDLE_STARTS:
                    return code or 1
                time.sleep(poll_s * 4**tries)  # what is short of memory or of a file system may have it again
        time.sleep(poll_s)


def is_over(run: Path) -> bool:
    """Whether nothing trains the run and nothing will.

    Where the queue cannot be asked, by what the trainer last said: an interrupted run may come back.
    """
    job = newest_job(run)
    if job is not None and job.executor == "slurm" and shutil.which("squeue") is None:
        state = read_state(run)
        return state is not None and state.state in ENDED and job.wrote(run / "state.json")
    return not is_alive(run)


def run_to_end(command: Sequence[str]) -> int:
    """A command's exit code. It is ended along with this process; a signal that ended it counts as interruption."""
    with subprocess.Popen(command) as process:
        try:
            code = process.wait()
        finally:
            process.terminate()
    return INTERRUPTED if -code in FORWARDED else code


def main(arguments: Sequence[str]) -> int:
    """Attend the run that the command line names; returns the exit code."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        sys.exit(INTERRUPTED)

    for number in FORWARDED:
        signal.signal(number, stop)
    return attend(Path(arguments[0]), arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
