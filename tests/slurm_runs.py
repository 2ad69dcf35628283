"""Runs small enough to be trained in a test, on the SLURM cluster that answers here; none of it where none does."""

import dataclasses
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import make_resolved

from reproduce.progress import Progress
from reproduce.resolve import Resolved
from reproduce.runs import newest_job, read_state
from reproduce.sites import Slurm

HAS_CLUSTER = shutil.which("sbatch") is not None and subprocess.run(["sinfo"], capture_output=True).returncode == 0
NEEDS_CLUSTER = [
    pytest.mark.slurm,
    pytest.mark.timeout(2400),  # clusters take their time, the machine is busy, and tests wait for one another
    pytest.mark.skipif(not HAS_CLUSTER, reason="no SLURM cluster answers here (sbatch, sinfo)"),
]
COMMAND = ("reproduce", "train", "digits", "--site", "slurm")
SLURM = Slurm(
    partition=None,
    account=None,
    qos=None,
    constraint=None,
    timeout_min=60,
    signal_delay_s=30,
    cpus_per_task=1,
    mem_gb_per_node=4,
    setup=(),
    environment={},
    additional_parameters={},
)
LONG = {"iterations": 600, "evaluation": {"period_iterations": 600}}


class Silent:
    """A screen that shows nothing."""

    def say(self, text: str) -> None:
        pass

    def show(self, progress: Progress) -> None:
        pass

    def end(self) -> None:
        pass


def on_cluster(folder: Path, *, slurm: Slurm = SLURM, **changes: object) -> Resolved:
    resolved = make_resolved(folder, **changes)  # type: ignore[arg-type]
    site = dataclasses.replace(resolved.site, name="slurm", executor="slurm", slurm=slurm)
    return dataclasses.replace(resolved, site=site)


def wait_until(condition: Callable[[], bool], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


def when_training(folder: Path, act: Callable[[str], None]) -> threading.Thread:
    """Do something with the job's id once the trainer is at its first iterations."""

    def wait() -> None:
        wait_until(lambda: (state := read_state(folder)) is not None and state.iteration > 0)
        job = newest_job(folder)
        assert job is not None
        act(job.job_id)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread
