"""Starts of a job: counted, and given up where they lead nowhere."""

import fcntl
import json
import sys
import time
from pathlib import Path

import pytest

from reproduce.attempts import IDLE_STARTS, Start, load_starts, newest_checkpoint, starts_file
from reproduce.launch import Job, submit


def finish(job: Job) -> None:
    end = time.monotonic() + 200
    while job.is_running():
        assert time.monotonic() < end, "it did not end"
        time.sleep(0.05)


def requeueing(folder: Path, *, saves: bool) -> Job:
    """A job whose command asks for the time limit's signal at once, again and again, with or without a checkpoint."""
    script = (
        "import os, signal, sys, time; from pathlib import Path\n"
        "run = Path(sys.argv[1]); done = len(list((run / 'checkpoints').glob('*')))\n"
        "if done >= 5: sys.exit(0)\n"
        "signal.signal(signal.SIGUSR2, lambda *_: sys.exit(75))\n"
        f"if {saves}: (run / 'checkpoints' / f'{{done + 1:06d}}').mkdir()\n"
        "os.kill(os.getppid(), signal.SIGUSR2); time.sleep(30)"
    )
    (folder / "checkpoints").mkdir(parents=True)
    command = (sys.executable, "-c", script, str(folder))
    return submit(command, folder=folder / "jobs", executor="local", parameters={}, run=folder)


def test_starts_are_written_down(tmp_path: Path) -> None:
    """A job that is requeued with progress each time goes on, and its starts say from where."""
    job = requeueing(tmp_path, saves=True)
    finish(job)
    assert job.exit_code() == 0
    assert [start.iteration for start in job.starts()] == [0, 1, 2, 3, 4, 5]


def test_job_without_progress_gives_up(tmp_path: Path) -> None:
    """A job that is started again and again at one iteration ends as failed and says so."""
    job = requeueing(tmp_path, saves=False)
    finish(job)
    assert len(job.starts()) == IDLE_STARTS
    assert job.exit_code() == 1
    assert f"started {IDLE_STARTS} times at iteration 0 and came no further" in job.stderr.read_text()


@pytest.mark.parametrize(("waits", "starts", "code"), [(True, IDLE_STARTS, 1), (False, 6, 0)])
def test_evaluation_gives_up_at_a_teacher_and_never_at_waiting(
    waits: bool, starts: int, code: int, tmp_path: Path
) -> None:
    """A job that never comes to the end of one teacher gives up; one that only waited may do so as long as it likes."""
    results = tmp_path / "eval" / "untrained" / "results_eval_knn.json"
    results.parent.mkdir(parents=True)
    if not waits:
        results.touch()
    script = (
        "import os, signal, sys, time; from pathlib import Path; calls = Path(sys.argv[1]) / 'calls'\n"
        "calls.open('a').write('x')\n"
        "if len(calls.read_text()) == 6: sys.exit(0)\n"
        "signal.signal(signal.SIGUSR2, lambda *_: sys.exit(75)); os.kill(os.getppid(), signal.SIGUSR2); time.sleep(60)"
    )
    command = (sys.executable, "-c", script, str(tmp_path))
    job = submit(command, folder=tmp_path / "jobs", executor="local", parameters={}, evaluates=tmp_path)
    finish(job)
    assert (len(job.starts()), job.exit_code()) == (starts, code)


def test_stopped_job_is_not_brought_back_by_its_time_limit(tmp_path: Path) -> None:
    """A job that was told to stop ends, though the notice of its time limit comes while it saves."""
    script = (
        "import os, signal, sys, time; from pathlib import Path\n"
        "def stop(*_): os.kill(os.getppid(), signal.SIGUSR2); time.sleep(1); sys.exit(75)\n"
        "signal.signal(signal.SIGUSR2, lambda *_: None); signal.signal(signal.SIGTERM, stop)\n"
        "Path(sys.argv[1]).touch(); time.sleep(60)"
    )
    command = (sys.executable, "-c", script, str(tmp_path / "ready"))
    job = submit(command, folder=tmp_path / "jobs", executor="local", parameters={}, run=tmp_path)
    end = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    job.stop()
    finish(job)
    assert len(job.starts()) == 1
    assert job.exit_code() == 75


def test_restart_waits_for_a_start_that_lives_on(tmp_path: Path) -> None:
    """While an earlier start trains on, on a node that the cluster lost, the next one waits: two would both write."""
    with (tmp_path / "train.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        job = requeueing(tmp_path, saves=True)
        end = time.monotonic() + 60
        while not (tmp_path / "checkpoints" / "000001").is_dir():
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(3)
        assert [start.iteration for start in job.starts()] == [0]
    finish(job)
    assert [start.iteration for start in job.starts()] == [0, 1, 2, 3, 4, 5]


def test_torn_start_is_left_out(tmp_path: Path) -> None:
    """A line that was being written when the machine died is no start."""
    line = json.dumps({"time": "2026-01-01T00:00:00+00:00", "iteration": 7})
    starts_file(tmp_path, "3_1").write_text(f"{line}\n{line[:-9]}")
    assert load_starts(tmp_path, "3_1") == (Start("2026-01-01T00:00:00+00:00", 7),)
    assert load_starts(tmp_path, "4") == ()


@pytest.mark.parametrize(("names", "newest"), [((), 0), (("000020", "000100", ".000120.draft"), 100)])
def test_newest_checkpoint_is_a_whole_one(names: tuple[str, ...], newest: int, tmp_path: Path) -> None:
    """Progress is what a checkpoint keeps: drafts do not count."""
    for name in names:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest_checkpoint(tmp_path) == newest


def test_exit_code_is_that_of_the_first_task(tmp_path: Path) -> None:
    """Of two tasks the first one fails: its exit code is the job's."""
    script = "import os, sys; sys.exit(3 if os.environ['RANK'] == '0' else 0)"
    command = (sys.executable, "-c", script)
    job = submit(command, folder=tmp_path, executor="local", parameters={"tasks_per_node": 2})
    finish(job)
    assert job.exit_code() == 3
