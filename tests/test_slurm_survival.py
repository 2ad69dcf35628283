"""What befalls a run on a real SLURM cluster, and that nothing of it is lost. Skipped where there is no cluster."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from slurm_runs import COMMAND, LONG, NEEDS_CLUSTER, SLURM, Silent, on_cluster, wait_until, when_training
from small_runs import ROOT, make_resolved

from reproduce.attempts import newest_checkpoint
from reproduce.endings import FailedRunError, InterruptedRunError
from reproduce.launch import submit
from reproduce.phases import POLL_S, train
from reproduce.runs import is_alive, newest_job, read_provenance, read_state

pytestmark = NEEDS_CLUSTER
CLUSTER = ROOT / "tests" / "slurm"
ENDLESS = {"iterations": 100_000, "evaluation": {"period_iterations": 100_000}}  # until it is stopped


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's cluster has no other users to be considerate of."""
    monkeypatch.setitem(POLL_S, "slurm", 0.5)


@pytest.fixture
def breakable() -> None:
    """A cluster whose parts a test may break: the one that `tests/slurm/up` started."""
    if "SLURM_TEST_ROOT" not in os.environ:
        pytest.skip("the cluster here is not ours to break")


def cluster(*arguments: str) -> None:
    subprocess.run([str(CLUSTER / arguments[0]), *arguments[1:]], check=True, capture_output=True)


def where(job: str) -> str:
    """The nodes that a job has; none while it waits."""
    return subprocess.run(["squeue", "-h", "-o", "%N", "-j", job], capture_output=True, text=True).stdout.strip()


def starts(folder: Path) -> list[int]:
    """From which iterations the run's newest job was started."""
    job = newest_job(folder)
    assert job is not None
    return [start.iteration for start in job.starts()]


def log_of(folder: Path) -> str:
    return (folder / "log.txt").read_text()


def weights_of(folder: Path) -> dict[str, str]:
    """The hash of every teacher that a run left."""
    paths = sorted(folder.glob("eval/training_*/*.safetensors"))
    assert paths
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def files_of(checkpoint: Path) -> dict[str, str]:
    """The hash of every file of a checkpoint, as it says itself."""
    files = json.loads((checkpoint / "checkpoint.json").read_text())["files"]
    assert files
    return dict(files)


def assert_as_left_alone(folder: Path, *, recipe: dict[str, Any], alone: Path) -> None:
    """A run that was stopped has the checkpoint, bit for bit, of one that came as far on this machine, undisturbed."""
    done = newest_checkpoint(folder)
    undisturbed = make_resolved(alone, recipe=recipe, until_iteration=done)
    train(undisturbed, command=COMMAND, screen=Silent())
    name = f"checkpoints/{done:06d}"
    assert files_of(folder / name) == files_of(undisturbed.folder / name)


def test_run_through_the_clusters_own_time_limits_is_as_one_left_alone(tmp_path: Path) -> None:
    """A limit of two minutes runs out twice, by SLURM's own clock: nothing is lost, and nothing is different."""
    folder = tmp_path / "run"
    limited = dataclasses.replace(SLURM, timeout_min=2, signal_delay_s=5)  # one that a busy machine can begin within

    def begun() -> list[int]:  # a notice may come before there is anything to save
        return sorted(set(starts(folder)))

    def stop_third(_: str) -> None:
        wait_until(lambda: len(begun()) == 3, seconds=900)
        wait_until(lambda: newest_checkpoint(folder) > begun()[2])
        job = newest_job(folder)
        assert job is not None
        job.stop()

    thread = when_training(folder, stop_third)
    with pytest.raises(InterruptedRunError):
        train(on_cluster(folder, slurm=limited, recipe=ENDLESS), command=COMMAND, screen=Silent())
    thread.join()
    assert begun()[0] == 0
    assert all(f"Starting training from iteration {iteration}\n" in log_of(folder) for iteration in begun())
    assert_as_left_alone(folder, recipe=ENDLESS, alone=tmp_path / "alone")


def test_node_that_is_lost_sight_of_gets_no_second_writer(breakable: None, tmp_path: Path) -> None:
    """Where slurmd alone dies, its tasks live on: the job that SLURM starts elsewhere waits until they are gone."""
    folder = tmp_path / "run"

    def lose(job: str) -> None:
        wait_until(lambda: newest_checkpoint(folder) > 0)
        node = where(job)
        cluster("node", "kill", node)
        wait_until(lambda: where(job) not in ("", node))
        before = newest_checkpoint(folder)
        wait_until(lambda: newest_checkpoint(folder) > before)  # the lost node's tasks are alive
        assert starts(folder) == [0]
        cluster("up")  # a slurmd that comes back ends what SLURM has given up
        wait_until(lambda: log_of(folder).count("Starting training") == 2)
        found = newest_job(folder)
        assert found is not None
        found.stop()

    try:
        thread = when_training(folder, lose)
        with pytest.raises(InterruptedRunError):
            train(on_cluster(folder, recipe=ENDLESS), command=COMMAND, screen=Silent())
        thread.join()
    finally:
        cluster("up")
    first, second = starts(folder)
    assert first == 0 < second
    assert len(read_provenance(folder)["launches"]) == 1
    assert_as_left_alone(folder, recipe=ENDLESS, alone=tmp_path / "alone")


def test_run_through_two_time_limits_is_as_one_left_alone(tmp_path: Path) -> None:
    """Told twice that its time is up, a run saves, is requeued and ends bit for bit as an uninterrupted one."""
    folder = tmp_path / "run"

    def run_out(job: str) -> None:
        for count in (1, 2):
            wait_until(lambda begun=count: log_of(folder).count("Starting training") == begun)  # type: ignore[misc]
            time.sleep(0.5)
            subprocess.run(["scancel", "--signal=USR2", job], check=True)

    notice = when_training(folder, run_out)
    assert train(on_cluster(folder, recipe=LONG), command=COMMAND, screen=Silent()).state == "finished"
    notice.join()
    first, second, third = starts(folder)
    assert first == 0 < second < third
    alone = make_resolved(tmp_path / "alone", recipe=LONG)
    train(alone, command=COMMAND, screen=Silent())
    assert weights_of(folder) == weights_of(alone.folder)


def test_run_survives_its_node(breakable: None, tmp_path: Path) -> None:
    """A node that dies under a run is no end: SLURM starts the job elsewhere, which goes on from its checkpoint."""
    folder = tmp_path / "run"

    def crash(job: str) -> None:
        wait_until(lambda: any((folder / "checkpoints").glob("0*")))
        cluster("node", "crash", where(job))

    try:
        thread = when_training(folder, crash)
        state = train(on_cluster(folder, recipe=LONG), command=COMMAND, screen=Silent())
        thread.join()
    finally:
        cluster("up")
    assert state.state == "finished"
    assert len(read_provenance(folder)["launches"]) == 1
    first, second = starts(folder)
    assert first == 0 < second
    assert f"Starting training from iteration {second}\n" in log_of(folder)


def test_run_that_the_cluster_gives_up_is_launched_again(breakable: None, tmp_path: Path) -> None:
    """Where SLURM may not start a job again, the harness does, once its node is gone, from the last checkpoint."""
    folder = tmp_path / "run"
    final = dataclasses.replace(SLURM, additional_parameters={"no-requeue": True})

    def crash(job: str) -> None:
        wait_until(lambda: any((folder / "checkpoints").glob("0*")))
        cluster("node", "crash", where(job))

    try:
        thread = when_training(folder, crash)
        state = train(on_cluster(folder, slurm=final, recipe=LONG), command=COMMAND, screen=Silent())
        thread.join()
    finally:
        cluster("up")
    assert state.state == "finished"
    assert len(read_provenance(folder)["launches"]) == 2
    assert starts(folder)[0] > 0


def test_run_survives_the_controller(breakable: None, tmp_path: Path) -> None:
    """While slurmctld is away the run counts as running; when it is back, it is followed to its end."""
    folder = tmp_path / "run"

    def restart(_: str) -> None:
        time.sleep(6)  # what slurmctld was told within its last five seconds, it may forget
        file = Path(os.environ["SLURM_TEST_ROOT"]) / "run" / "slurmctld.pid"
        os.kill(int(file.read_text()), signal.SIGKILL)
        assert is_alive(folder)
        cluster("up")

    thread = when_training(folder, restart)
    state = train(on_cluster(folder, recipe=LONG), command=COMMAND, screen=Silent())
    thread.join()
    assert state.state == "finished"
    assert starts(folder) == [0]


def test_killed_client_is_replaced(tmp_path: Path) -> None:
    """The job outlives a harness that is killed, and the next one follows it instead of submitting a second."""
    folder = tmp_path / "run"
    script = (
        "import sys; from pathlib import Path; from slurm_runs import COMMAND, LONG, Silent, on_cluster\n"
        "from reproduce.phases import POLL_S, train\n"
        "train(on_cluster(Path(sys.argv[1]), recipe=LONG), command=COMMAND, screen=Silent())"
    )
    client = subprocess.Popen([sys.executable, "-c", script, str(folder)], cwd=ROOT / "tests", start_new_session=True)
    wait_until(lambda: (state := read_state(folder)) is not None and state.iteration > 0)
    os.killpg(client.pid, signal.SIGKILL)
    client.wait()
    assert train(on_cluster(folder, recipe=LONG), command=COMMAND, screen=Silent()).state == "finished"
    assert len(read_provenance(folder)["launches"]) == 1
    assert starts(folder) == [0]


def test_failing_task_ends_those_that_would_wait_for_it(tmp_path: Path) -> None:
    """A task that fails takes the job's others along, though they wait for it without looking."""
    script = "import os, sys, time; time.sleep(300) if os.environ['RANK'] == '0' else sys.exit(3)"
    parameters = {"nodes": 2, "tasks_per_node": 1, "timeout_min": 60, "slurm_srun_args": ["--kill-on-bad-exit=1"]}
    job = submit((sys.executable, "-c", script), folder=tmp_path, executor="slurm", parameters=parameters)
    wait_until(lambda: not job.is_running())


def test_leak_of_memory_is_named(tmp_path: Path) -> None:
    """A job that the cluster kills for its memory fails with that cause and its mend, and is not tried again."""
    small = dataclasses.replace(SLURM, mem_gb_per_node=None, additional_parameters={"mem": "100M"})
    with pytest.raises(FailedRunError, match=r"host memory.*exceeded memory limit") as error:
        train(on_cluster(tmp_path / "run", slurm=small), command=COMMAND, screen=Silent())
    assert "mem_gb_per_node" in str(error.value.mend)
    assert len(read_provenance(tmp_path / "run")["launches"]) == 1
