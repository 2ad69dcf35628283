"""Jobs are real: every test submits a small command through submitit and watches what becomes of it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from shell import wait_for

from reproduce.errors import RunError, SiteError
from reproduce.launch import Job, load_job, submit

SAVES_WHEN_ASKED = """
import signal, sys, time
from pathlib import Path
def save(number, frame):
    Path(sys.argv[1]).write_text(signal.Signals(number).name)
    sys.exit(75)
for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, save)
Path(sys.argv[2]).touch()
time.sleep(60)
"""


def start(script: str, *arguments: str, folder: Path) -> Job:
    return submit((sys.executable, "-c", script, *arguments), folder=folder, executor="local", parameters={})


def wait_for_end(job: Job) -> None:
    wait_for(lambda: not job.is_running())


def test_job_reports_exit_code_and_output(tmp_path: Path) -> None:
    """A job's exit code and its last words are there once it has ended."""
    job = start("import sys; print('error: no data at /nowhere', file=sys.stderr); sys.exit(2)", folder=tmp_path)
    wait_for_end(job)
    assert job.exit_code() == 2
    assert job.last_words() == "error: no data at /nowhere"


def test_job_ends_with_code_75_when_stopped(tmp_path: Path) -> None:
    """Stopping a job hands SIGTERM to its command, which saves and exits with 75: no failure."""
    saved, ready = tmp_path / "saved", tmp_path / "ready"
    job = start(SAVES_WHEN_ASKED, str(saved), str(ready), folder=tmp_path / "jobs")
    wait_for(ready.exists)
    assert job.is_running()
    assert job.exit_code() is None
    job.stop()
    wait_for_end(job)
    assert saved.read_text() == "SIGTERM"
    assert job.exit_code() == 75


def test_job_stopped_before_command_handles_signals(tmp_path: Path) -> None:
    """A command that dies of the signal it was sent counts as interrupted: it had nothing to save yet."""
    ready = tmp_path / "ready"
    job = start(f"import time; open({str(ready)!r}, 'w').close(); time.sleep(60)", folder=tmp_path / "jobs")
    wait_for(ready.exists)
    job.stop()
    wait_for_end(job)
    assert job.exit_code() == 75


def test_job_outlives_its_harness(tmp_path: Path) -> None:
    """A harness killed with its whole process group leaves the job running, and a later process finds it again."""
    ready = tmp_path / "ready"
    script = "import sys, time; open(sys.argv[1], 'w').close(); time.sleep(3); sys.exit(7)"
    harness = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from reproduce.launch import submit;"
            "submit((sys.executable, '-c', *sys.argv[2:]), folder=Path(sys.argv[1]),"
            " executor='local', parameters={}); time.sleep(60)",
            str(tmp_path / "jobs"),
            script,
            str(ready),
        ],
        start_new_session=True,
    )
    wait_for(ready.exists)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGKILL):
        os.killpg(harness.pid, number)
    harness.wait()
    job = load_job(tmp_path / "jobs" / "0001")
    assert job.is_running()
    wait_for_end(job)
    assert job.exit_code() == 7


def test_preempted_job_is_started_again(tmp_path: Path) -> None:
    """SIGUSR2 to a task saves, requeues the job and starts the same command again."""
    starts, saved, ready = tmp_path / "starts", tmp_path / "saved", tmp_path / "ready"
    script = (
        "import os, sys\nwith open(sys.argv[3], 'a') as file: file.write(f'{os.getppid()}\\n')\n"
        "if os.path.exists(sys.argv[1]): sys.exit(0)\n" + SAVES_WHEN_ASKED
    )
    job = start(script, str(saved), str(ready), str(starts), folder=tmp_path / "jobs")
    wait_for(ready.exists)
    os.kill(int(starts.read_text()), signal.SIGUSR2)
    wait_for_end(job)
    assert saved.read_text() == "SIGUSR2"
    assert len(starts.read_text().splitlines()) == 2
    assert job.exit_code() == 0


def test_what_outlives_a_killed_job_is_seen_and_stopped(tmp_path: Path) -> None:
    """While a command lives on whose task was killed, its job runs and can be stopped; it leaves no exit code."""
    parent = tmp_path / "parent"
    script = "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getppid()} {os.getpid()}'); time.sleep(60)"
    job = start(script, str(parent), folder=tmp_path / "jobs")
    wait_for(lambda: parent.exists() and parent.read_text() != "")
    task, command = parent.read_text().split()
    assert job.title == f"job {job.job_id}"
    os.kill(int(task), signal.SIGKILL)
    wait_for(lambda: job.process == command)
    assert job.is_running()
    assert command in job.title
    job.stop()
    wait_for_end(job)
    assert job.exit_code() is None


def test_tasks_know_one_another(tmp_path: Path) -> None:
    """Two tasks of one job see ranks 0 and 1 of a world of 2 and the same address."""
    script = (
        "import os, sys; e = os.environ; open(f'{sys.argv[1]}/{e[\"RANK\"]}', 'w').write("
        "' '.join(e[k] for k in ('LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR')))"
    )
    command = (sys.executable, "-c", script, str(tmp_path))
    job = submit(command, folder=tmp_path / "jobs", executor="local", parameters={"tasks_per_node": 2})
    wait_for_end(job)
    first, second = (tmp_path / "0").read_text().split(), (tmp_path / "1").read_text().split()
    assert first[:2] == ["0", "2"]
    assert second[:2] == ["1", "2"]
    assert first[2:] == second[2:]


def test_every_job_has_its_own_folder(tmp_path: Path) -> None:
    """The result of an earlier job is never taken for that of a later one."""
    first = start("import sys; sys.exit(3)", folder=tmp_path)
    second = start("import sys; sys.exit(4)", folder=tmp_path)
    wait_for_end(first)
    wait_for_end(second)
    assert first.folder != second.folder
    assert (first.exit_code(), second.exit_code()) == (3, 4)


def test_slurm_without_sbatch_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SLURM site on a machine without sbatch is the user's mistake, said before anything is written."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SiteError, match="sbatch is not on the PATH"):
        submit(["true"], folder=tmp_path / "jobs", executor="slurm", parameters={})
    assert not (tmp_path / "jobs").exists()


def test_refused_parameters_are_reported(tmp_path: Path) -> None:
    """What submitit says against the request reaches the user as the reason."""
    with pytest.raises(RunError, match="only one node"):
        submit(["true"], folder=tmp_path, executor="local", parameters={"nodes": 2})


def test_unwritable_folder_is_reported(tmp_path: Path) -> None:
    """A job folder that cannot be made is reported with its path."""
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write here: Not a directory"):
        submit(["true"], folder=tmp_path / "file" / "jobs", executor="local", parameters={})


def test_folder_without_job_is_reported(tmp_path: Path) -> None:
    """A folder in which no job was recorded is no job."""
    with pytest.raises(RunError, match="no job was recorded here"):
        load_job(tmp_path)


def test_gpus_chosen_by_the_user_stay_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_VISIBLE_DEVICES of the shell reaches a local job as it was, and a job without GPUs sees none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5a,3")
    script = "import os, sys; open(sys.argv[1], 'w').write(os.environ['CUDA_VISIBLE_DEVICES'])"
    for gpus, expected in ((2, "GPU-5a,3"), (0, "")):
        command = (sys.executable, "-c", script, str(tmp_path / str(gpus)))
        job = submit(command, folder=tmp_path / "jobs", executor="local", parameters={"gpus_per_node": gpus})
        wait_for_end(job)
        assert (tmp_path / str(gpus)).read_text() == expected
