"""Training on a real SLURM cluster: requeued, stopped, refused. Skipped where there is no cluster."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_runs import COMMAND, LONG, NEEDS_CLUSTER, SLURM, Silent, on_cluster, wait_until, when_training
from small_runs import IMAGE, make_runtime

from reproduce.endings import InterruptedRunError
from reproduce.errors import SiteError
from reproduce.launch import make_parameters, submit
from reproduce.phases import POLL_S, evaluate, render_launch, train
from reproduce.runs import newest_job, read_evaluation, read_provenance, read_state
from reproduce.sites import Container
from reproduce.snapshot import take_snapshot

pytestmark = NEEDS_CLUSTER


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's cluster has no other users to be considerate of."""
    monkeypatch.setitem(POLL_S, "slurm", 0.5)


def test_row_is_trained_and_evaluated_by_the_cluster(tmp_path: Path) -> None:
    """A run goes through sbatch to its end, on two tasks that know one another, and so does its evaluation."""
    resolved = on_cluster(tmp_path / "run", processes=2, batch_per_process=4)
    resolved = dataclasses.replace(resolved, nodes=2)
    assert train(resolved, command=COMMAND, screen=Silent()).state == "finished"
    assert evaluate(resolved, screen=Silent()) is not None
    assert read_evaluation(resolved.folder)["iteration"] == 40
    assert [launch["executor"] for launch in read_provenance(resolved.folder)["launches"]] == ["slurm"]


def test_dry_run_is_what_the_cluster_is_given(tmp_path: Path) -> None:
    """The script that is printed before a launch is the one that is then submitted, to the byte."""
    resolved = on_cluster(tmp_path / "run", until_iteration=1)
    text = render_launch(resolved)
    assert not (tmp_path / "run").exists()
    train(resolved, command=COMMAND, screen=Silent())
    job = newest_job(resolved.folder)
    assert job is not None
    assert (job.folder / f"{job.job_id}_submission.sh").read_text() == text


def test_job_runs_the_code_and_the_variables_it_was_submitted_with(tmp_path: Path) -> None:
    """A job's trainer is the copy in its run folder, and the site's variables reach it."""
    slurm = dataclasses.replace(SLURM, environment={"FRANCA_ROOM": "a b", "FRANCA_NUMBER": 3})
    resolved = on_cluster(tmp_path / "run", slurm=slurm)
    script = "import os, franca; print(franca.__file__, os.environ['FRANCA_ROOM'], os.environ['FRANCA_NUMBER'])"
    snapshot = take_snapshot(tmp_path / "code")
    parameters = make_parameters(resolved, nodes=1, tasks_per_node=1)
    command = (sys.executable, "-c", script)
    job = submit(command, folder=tmp_path / "jobs", executor="slurm", parameters=parameters, snapshot=snapshot)
    wait_until(lambda: not job.is_running())
    assert job.exit_code() == 0
    printed = (job.folder / f"{job.job_id}_0_log.out").read_text().splitlines()
    assert f"{snapshot / 'franca' / '__init__.py'} a b 3" in printed


def test_job_at_its_time_limit_is_requeued_and_goes_on(tmp_path: Path) -> None:
    """The cluster's notice (SIGUSR2) saves a checkpoint; the same job comes back and finishes, in one launch."""
    folder = tmp_path / "run"
    notice = when_training(folder, lambda job: subprocess.run(["scancel", "--signal=USR2", job], check=True))
    state = train(on_cluster(folder, recipe=LONG), command=COMMAND, screen=Silent())
    notice.join()
    assert state.state == "finished"
    assert len(read_provenance(folder)["launches"]) == 1
    log = (folder / "log.txt").read_text()
    assert log.count("Starting training from iteration") == 2
    assert log.count("Starting training from iteration 0\n") == 1


def test_job_in_a_container_is_requeued_from_outside_of_it(tmp_path: Path) -> None:
    """The notice of a time limit reaches the trainer in its container, and what is outside puts the job back."""
    folder, runtime = tmp_path / "run", make_runtime(tmp_path / "bin")
    resolved = on_cluster(folder, recipe=LONG)
    container = Container(IMAGE, runtime=str(runtime), python=sys.executable)
    resolved = dataclasses.replace(resolved, site=dataclasses.replace(resolved.site, container=container))
    notice = when_training(folder, lambda job: subprocess.run(["scancel", "--signal=USR2", job], check=True))
    assert train(resolved, command=COMMAND, screen=Silent()).state == "finished"
    notice.join()
    assert Path(f"{runtime}.called").read_text().count("franca.train\n") == 2
    assert len(read_provenance(folder)["launches"]) == 1


def test_preempted_job_goes_on(tmp_path: Path) -> None:
    """A job that the cluster itself takes off its node and puts back into the queue is followed to its end."""
    folder = tmp_path / "run"
    requeue = when_training(folder, lambda job: subprocess.run(["scontrol", "requeue", job], check=True))
    state = train(on_cluster(folder, recipe=LONG), command=COMMAND, screen=Silent())
    requeue.join()
    assert state.state == "finished"
    assert (folder / "log.txt").read_text().count("Starting training from iteration") == 2


def test_stopped_job_saves_and_says_so(tmp_path: Path) -> None:
    """The command that a person is told to stop a job with ends it at a checkpoint, as interrupted."""
    folder = tmp_path / "run"

    def stop(_: str) -> None:
        job = newest_job(folder)
        assert job is not None
        subprocess.run(job.stop_command.split(), check=True)

    thread = when_training(folder, stop)
    with pytest.raises(InterruptedRunError, match="saved a checkpoint"):
        train(on_cluster(folder, recipe=LONG), command=COMMAND, screen=Silent())
    thread.join()
    state = read_state(folder)
    assert state is not None
    assert (folder / "checkpoints" / f"{state.iteration:06d}").is_dir()


def test_refusal_of_the_cluster_is_reported(tmp_path: Path) -> None:
    """A partition that does not exist is the site's mistake, in the cluster's own words."""
    wrong = dataclasses.replace(SLURM, partition="nowhere")
    with pytest.raises(SiteError, match=r"the cluster refused the job: .*nowhere"):
        train(on_cluster(tmp_path / "run", slurm=wrong), command=COMMAND, screen=Silent())
