"""A job's task in, its command's exit code out: what submitit pickles and every task of a job runs, at every start.

A cluster starts a job again after a time limit, a preemption or a dead node, without asking who submitted it. So each
start is written down beside the job, with how far the run's checkpoints had come, and a job that is started again and
again without coming further ends itself.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from reproduce.files import is_locked, write_whole

INTERRUPTED = 75  # EX_TEMPFAIL: the command saved its work and asks to be started again
MISTAKE = 2
FORWARDED = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
KILLED = "error: the trainer was killed by"
KNN = "results_eval_knn.json"
NOTHING = -1  # in place of the teacher that is to be measured first
IDLE_STARTS = 4  # this many starts at one and the same iteration, and the job gives up
ORPHAN_S = 1200.0  # less than the half hour for which the job's other processes wait for the first one
GRACE_S = 10.0  # between a task's failure and the end of the others: time to say what they know, and to end themselves


@dataclass(frozen=True)
class Start:
    """One start of a job: when, and how many iterations the run's newest checkpoint then held.

    Of a job that evaluates, after how many the teacher came that it had to measure first.
    """

    time: str
    iteration: int


@dataclass(frozen=True)
class Command:
    """What submitit pickles: runs `arguments` as a child, hands signals on to it, returns its exit code.

    SIGUSR2 is the cluster's notice that the time is up: once the child has saved its work, submitit's own handler,
    which asks `checkpoint` what to start next, requeues the job. `visible_gpus` is CUDA_VISIBLE_DEVICES as the user set
    it: submitit's local executor would count GPUs from 0 again. `run` is the run folder whose checkpoints are the
    job's progress, `evaluates` one whose teachers it measures. A task that fails where there are several ends with the
    command's code, on which srun ends the rest.
    """

    arguments: tuple[str, ...]
    visible_gpus: str | None = None
    run: str | None = None
    evaluates: str | None = None

    def __call__(self) -> int:
        import submitit

        job = submitit.JobEnvironment()
        folder, first = job.paths.folder, job.global_rank == 0
        here = first and job.cluster == "local"
        if here:  # its child inherits the lock: what outlives a killed controller is seen all the same
            fcntl.flock(sys.stderr, fcntl.LOCK_EX)
        if first:
            exit_file(folder, job.job_id).unlink(missing_ok=True)
            self._write_start(folder, job.job_id)
        _export_ranks(tasks=job.num_tasks)
        if self.visible_gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.visible_gpus
        code = _run_child(self.arguments, pid=pid_file(folder, job.job_id) if here else None)
        if first:
            write_whole(exit_file(folder, job.job_id), f"{code}\n")
        if job.num_tasks > 1 and code not in (0, MISTAKE, INTERRUPTED):
            time.sleep(GRACE_S)
            sys.exit(abs(code))
        return code

    def checkpoint(self) -> Any:
        """What submitit starts when the job comes back: the same command, which continues by itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _write_start(self, folder: Path, job_id: str) -> None:
        """Note this start; end the job, as failed, where the last ones all began where this one would."""
        earlier = load_starts(folder, job_id)
        if self.run and earlier and not _outlive(Path(self.run) / "train.lock"):
            print(f"error: an earlier start of this job still trains in {self.run}, on a lost node", file=sys.stderr)
            write_whole(exit_file(folder, job_id), "1\n")
            sys.exit(1)
        iteration = self._progress()
        idle = len(earlier) >= IDLE_STARTS and {start.iteration for start in earlier[-IDLE_STARTS:]} == {iteration}
        if idle and iteration != NOTHING:
            print(f"error: started {IDLE_STARTS} times at iteration {iteration} and came no further", file=sys.stderr)
            write_whole(exit_file(folder, job_id), "1\n")
            sys.exit(1)
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "iteration": iteration}
        with starts_file(folder, job_id).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _progress(self) -> int:
        """What changes as the job comes further, if it has something to come further with."""
        if self.run:
            return newest_checkpoint(Path(self.run))
        return next(iter(waiting_teachers(Path(self.evaluates))), NOTHING) if self.evaluates else NOTHING


def starts_file(folder: Path, job_id: str) -> Path:
    """Where the starts of a job are written down, one a line."""
    return folder / f"{job_id}_starts.jsonl"


def exit_file(folder: Path, job_id: str) -> Path:
    """Where the exit code of a job's newest start is, once it has ended by itself."""
    return folder / f"{job_id}_exit_code"


def pid_file(folder: Path, job_id: str) -> Path:
    """Where a job of this machine notes the process id of its newest start's command."""
    return folder / f"{job_id}_pid"


def load_starts(folder: Path, job_id: str) -> tuple[Start, ...]:
    """All starts of a job, oldest first; a torn last line is left out."""
    path = starts_file(folder, job_id)
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return tuple(Start(**json.loads(line)) for line in lines if line.endswith("\n"))


def newest_checkpoint(run: Path) -> int:
    """The iteration of the newest checkpoint in a run folder; 0 without one."""
    return max((int(path.name) for path in run.glob("checkpoints/*") if path.name.isdigit()), default=0)


def _outlive(lock: Path) -> bool:
    """Wait until nobody trains: on a node that the cluster lost sight of, an earlier start may live on and write."""
    end = time.monotonic() + ORPHAN_S
    while is_locked(lock):
        if time.monotonic() > end:
            return False
        time.sleep(1.0)
    return True


def waiting_teachers(run: Path) -> tuple[int, ...]:
    """The iterations after which a run's teacher was written and is not evaluated yet; 0 is the untrained network."""
    names = [path.parent.name.removeprefix("training_") for path in run.glob("eval/training_*/*.safetensors")]
    places = {0: "untrained"} | {int(name) + 1: f"training_{name}" for name in names if name.isdigit()}
    return tuple(done for done, place in sorted(places.items()) if not (run / "eval" / place / KNN).is_file())


def _run_child(arguments: Sequence[str], *, pid: Path | None) -> int:
    """Run a command to its end and return its exit code; signals go on to it, SIGUSR2 requeues the job.

    pid: where its process id is noted.
    """
    requeue = signal.getsignal(signal.SIGUSR2)
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if process is not None:
            process.send_signal(number)

    for number in FORWARDED:
        signal.signal(number, forward)
    process = subprocess.Popen(arguments)
    if pid is not None:
        write_whole(pid, f"{process.pid}\n")
    if received:
        process.send_signal(received[-1])
    code = process.wait()
    if -code in received:  # it had not come to handle signals yet, so there was nothing to save
        code = INTERRUPTED
    if code < 0:
        print(KILLED, signal.Signals(-code).name, file=sys.stderr)
    # A notice that comes while it saves because it was told to stop does not bring it back
    if received[:1] == [signal.SIGUSR2] and code == INTERRUPTED and callable(requeue):
        requeue(signal.SIGUSR2, None)
    return code


def _export_ranks(*, tasks: int) -> None:
    """Tell several tasks of one job about one another, in the variables that torch.distributed reads.

    All but the port, which is left to the trainer: submitit's may be one that a connection has just been given.
    """
    from submitit.helpers import TorchDistributedEnvironment

    if tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        del os.environ["MASTER_PORT"]
