"""Why a job ended: real processes that fail, hang and fill disks, and the words that a cluster leaves in a log."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from reproduce.attempts import exit_file
from reproduce.causes import LOST, find_cause, find_phrase
from reproduce.launch import Job, submit

TWO_TASKS = """
import sys, time, torch
from pathlib import Path
from franca.distributed import barrier, rank, setup, teardown
from franca.train.failures import report_failure
from recipes import make_recipe, make_train_config
folder = Path(sys.argv[1])
setup(make_train_config(make_recipe(), processes=2, batch_per_process=4).execution)
with report_failure(folder, of=40, hang_s=int(sys.argv[3])) as watchdog:
    watchdog.beat()
    if rank() == 1:
        {act}
    barrier()
"""


def run_two(folder: Path, act: str, *, hang_s: int = 0) -> Job:
    """Two processes in a process group, of which the second one does something and the first one waits for it."""
    folder.mkdir(exist_ok=True)
    script = TWO_TASKS.replace("{act}", act)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = ("env", f"PYTHONPATH={path}", sys.executable, "-c", script, str(folder), "-", str(hang_s))
    job = submit(command, folder=folder / "submitit", executor="local", parameters={"tasks_per_node": 2}, run=folder)
    end = time.monotonic() + 120
    while job.is_running():
        assert time.monotonic() < end, "it did not end"
        time.sleep(0.05)
    return job


def test_failing_process_is_found_among_those_it_took_along(tmp_path: Path) -> None:
    """The second process raises, the first one fails of its absence: the cause is the second one's, with its lines."""
    job = run_two(tmp_path / "run", "raise ValueError('a bad image')")
    cause = find_cause(tmp_path / "run", job=job)
    assert cause is not None
    assert (cause.kind, cause.rank, cause.said) == ("error", 1, "ValueError: a bad image (<string>:12)")
    assert cause.traceback.rstrip().endswith("ValueError: a bad image")
    first = json.loads((tmp_path / "run" / "failures" / "rank_0.json").read_text())
    assert first["message"] != "a bad image"


def test_killed_process_is_told_from_those_it_took_along(tmp_path: Path) -> None:
    """A process that is killed leaves no account; that it was killed is said in the place of the others' noise."""
    job = run_two(tmp_path / "run", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    cause = find_cause(tmp_path / "run", job=job)
    assert cause is not None
    assert cause.kind == "killed"
    assert "SIGKILL" in cause.said


@pytest.mark.parametrize("prefix", ["", "[rank1]: "])
def test_error_before_any_account_is_found_in_the_logs(prefix: str, tmp_path: Path) -> None:
    """A process that fails as it starts has printed why; that srun cancelled the others for it is not the cause."""
    job = Job("slurm", "7_1", tmp_path)
    trace = [
        "Traceback (most recent call last):",
        '  File "a.py", line 1, in <module>',
        "    import torch",
        "",
        "OSError: x",
    ]
    lines = [f"{prefix}{line}\n" for line in trace if line]
    (tmp_path / "7_1_1_log.err").write_text("".join(lines))
    absent = ["Traceback (most recent call last):\n", "RuntimeError: Connection closed by peer [vn1]:7\n"]
    cancelled = "slurmstepd-vn1: error: *** STEP 7.0 ON vn1 CANCELLED AT 2026-11-21T18:10:24 ***\n"
    (tmp_path / "7_1_0_log.err").write_text("".join([*absent, cancelled]))
    exit_file(tmp_path, "7_1").write_text("1\n")
    cause = find_cause(tmp_path, job=job)
    assert cause is not None
    assert (cause.kind, cause.said, cause.rank) == ("error", "OSError: x", 1)
    assert cause.traceback == "".join(lines).rstrip()


def test_step_that_a_person_cancelled_is_cancelled(tmp_path: Path) -> None:
    """Where no process of the job ended by itself, the cluster's word counts, whatever was printed on the way."""
    (tmp_path / "7_0_log.err").write_text(
        "Traceback (most recent call last):\nValueError: told\n"
        "slurmstepd-vn1: error: *** STEP 7.0 ON vn1 CANCELLED AT 2026-11-21T18:10:24 ***\n"
    )
    cause = find_cause(tmp_path, job=Job("slurm", "7", tmp_path))
    assert cause is not None
    assert cause.kind == "cancelled"


def test_process_that_hangs_shows_where(tmp_path: Path) -> None:
    """Where one process is stuck, all of them end within the time set, and their stacks say who was where."""
    job = run_two(tmp_path / "run", "time.sleep(100)", hang_s=3)
    cause = find_cause(tmp_path / "run", job=job)
    assert cause is not None
    assert cause.kind == "hang"
    assert "barrier" in (tmp_path / "run" / "failures" / "rank_0.stacks").read_text()
    assert 'File "<string>", line 12 in <module>' in (tmp_path / "run" / "failures" / "rank_1.stacks").read_text()


def test_older_failure_is_not_this_ones(tmp_path: Path) -> None:
    """An account that an earlier launch left tells nothing about this one."""
    failures = tmp_path / "run" / "failures"
    failures.mkdir(parents=True)
    account = {"time": 1.0, "rank": 0, "type": "ValueError", "message": "of old", "where": "a.py:1", "traceback": ""}
    (failures / "rank_0.json").write_text(json.dumps(account).ljust(16384))
    job = submit(("true",), folder=tmp_path / "jobs", executor="local", parameters={}, run=tmp_path / "run")
    while job.is_running():
        time.sleep(0.05)
    assert find_cause(tmp_path / "run", job=job) is None


@pytest.mark.parametrize("text", ["", " " * 16384, '{"time": 9e9, "rank": 0, "type": "Val' + " " * 16000])
def test_account_that_is_not_whole_is_none(text: str, tmp_path: Path) -> None:
    """Blank room, or an account that is just being written, hides nothing and breaks nothing."""
    (tmp_path / "failures").mkdir()
    (tmp_path / "failures" / "rank_0.json").write_text(text)
    assert find_cause(tmp_path, job=Job("local", "7", tmp_path)) is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True)
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


def test_full_disk_is_told_though_there_is_no_room_for_it(small_disk: Path, tmp_path: Path) -> None:
    """A process that fills the disk still leaves its account, in room that was kept."""
    script = (
        "import sys; from pathlib import Path; from franca.train.failures import report_failure\n"
        "with report_failure(Path(sys.argv[1]), of=40, hang_s=0):\n"
        "    (Path(sys.argv[1]) / 'log').write_bytes(b'0' * 2_000_000)"
    )
    command = (sys.executable, "-c", script, str(small_disk))
    job = submit(command, folder=tmp_path / "jobs", executor="local", parameters={}, run=small_disk)
    while job.is_running():
        time.sleep(0.05)
    cause = find_cause(small_disk, job=job)
    assert cause is not None
    assert cause.kind == "full disk"
    assert "make room" in cause.mend


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("slurmstepd: error: Job 7 exceeded memory limit (241567744 > 209715200), being killed", "host memory"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks", "host memory"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "GPU memory"),
        ("slurmstepd: error: *** STEP 7.0 ON vn1 CANCELLED AT 2026-11-21T15:00:00 DUE TO TIME LIMIT ***", "time limit"),
        ("slurmstepd: error: *** JOB 7 ON vn1 CANCELLED AT 2026-11-21T15:00:00 DUE TO PREEMPTION ***", "preemption"),
        (
            "slurmstepd: error: *** JOB 7 ON vn1 CANCELLED AT 2026-11-21T15:00:00 DUE TO NODE FAILURE, SEE SLURMCTLD "
            "LOG FOR DETAILS ***",
            "node failure",
        ),
        ("srun: error: Node failure on vn2", "node failure"),
        ("slurmstepd: error: *** STEP 7.0 ON vn1 CANCELLED AT 2026-11-21T15:00:00 ***", "cancelled"),
        ("OSError: [Errno 28] No space left on device", "full disk"),
        ("OSError: [Errno 122] Disk quota exceeded", "full disk"),
    ],
)
def test_words_of_the_cluster_are_understood(text: str, kind: str) -> None:
    """What SLURM and torch print tells the cause, which has a mend; the last such line counts."""
    cause = find_phrase(f"some line\n{text}\nsrun: error: vn1: task 0: Killed")
    assert cause is not None
    assert cause.kind == kind
    assert cause.mend
    limit = "slurmstepd: error: *** JOB 7 ON vn1 CANCELLED AT 2026-11-21T15:00:00 DUE TO TIME LIMIT ***"
    later = find_phrase(f"{text}\n{limit}")
    assert later is not None
    assert later.kind == "time limit"


def test_cause_is_found_before_its_effect() -> None:
    """A step over its memory is cancelled for it: the memory counts, though the cancelling is said last."""
    over = "slurmstepd-vn4: error: StepId=7.0 exceeded memory limit (546778112 > 536870912), being killed"
    cause = find_phrase(f"{over}\nslurmstepd-vn3: error: *** STEP 7.0 ON vn3 CANCELLED AT 2026-11-21T15:00:00 ***\n")
    assert cause is not None
    assert (cause.kind, cause.said) == ("host memory", over[over.index("exceeded") :])


def test_what_a_job_survived_is_not_its_end() -> None:
    """A dead node before the newest start was mended by the cluster; what came after it is the cause."""
    node = "slurmstepd: error: *** JOB 7 ON vn1 CANCELLED AT 2026-11-21T15:00:00 DUE TO NODE FAILURE, SEE LOG ***"
    since = datetime(2026, 11, 21, 15, 30).timestamp()
    assert find_phrase(node, since=since) is None
    cause = find_phrase(
        f"{node}\nslurmstepd: error: *** JOB 7 ON vn2 CANCELLED AT 2026-11-21T16:00:00 ***", since=since
    )
    assert cause is not None
    assert cause.kind == "cancelled"


def test_only_what_the_run_is_not_to_blame_for_is_tried_again() -> None:
    """Lost nodes and limits are worth another launch as it is; lack of memory or room and errors are not."""
    assert {"time limit", "preemption", "node failure", "hang"} == LOST


def test_ordinary_log_has_no_cause() -> None:
    """Lines of a trainer that ends well tell of no failure."""
    assert find_phrase("I20261121 15:00:00 7 franca loop.py:98] Starting training from iteration 0\n") is None
