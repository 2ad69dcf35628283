"""Evaluation jobs beside trainings on a real SLURM cluster: hung on them, requeued, lost. Skipped without one."""

import dataclasses
import subprocess
from pathlib import Path

import pytest
from slurm_runs import COMMAND, NEEDS_CLUSTER, SLURM, Silent, on_cluster, wait_until

from reproduce.attempts import waiting_teachers
from reproduce.beside import render_evaluator
from reproduce.endings import FailedRunError
from reproduce.phases import POLL_S, evaluate, render_launch, start, train
from reproduce.runs import newest_evaluator, newest_job, read_evaluation, read_provenance
from reproduce.sites import Evaluation

pytestmark = NEEDS_CLUSTER
CHANGES = {"recipe": {"iterations": 600, "evaluation": {"period_iterations": 300}}, "evaluate": "apart"}


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's cluster has no other users to be considerate of."""
    monkeypatch.setitem(POLL_S, "slurm", 0.5)


def test_both_scripts_are_what_the_cluster_is_given(tmp_path: Path) -> None:
    """The evaluation job hangs on the training's, and both were shown before, but for the number that it hangs on."""
    resolved = on_cluster(tmp_path / "run", evaluate="apart")
    shown = [render_launch(resolved), render_evaluator(resolved)]
    assert not (tmp_path / "run").exists()
    assert train(resolved, command=COMMAND, screen=Silent()).state == "finished"
    jobs = newest_job(resolved.folder), newest_evaluator(resolved.folder)
    assert jobs[0] is not None
    assert jobs[1] is not None
    assert not jobs[1].is_running()
    scripts = [(job.folder / f"{job.job_id}_submission.sh").read_text() for job in jobs if job is not None]
    assert shown[1] is not None
    assert f"#SBATCH --dependency=after:{jobs[0].job_id}\n" in scripts[1]
    assert scripts == [shown[0], shown[1].replace("after:JOB", f"after:{jobs[0].job_id}")]
    assert waiting_teachers(resolved.folder) == ()
    assert evaluate(resolved, screen=Silent()) is not None
    assert read_evaluation(resolved.folder)["iteration"] == 40


def test_evaluation_survives_its_limit_and_its_death(tmp_path: Path) -> None:
    """Told that its time is up it is requeued; cancelled under the harness it is launched again; nothing is lost."""
    resolved = on_cluster(tmp_path / "run", **CHANGES)
    start(resolved, command=COMMAND, screen=Silent())
    first = newest_evaluator(resolved.folder)
    assert first is not None
    wait_until(lambda: 0 not in waiting_teachers(resolved.folder), seconds=250)
    subprocess.run(["scancel", "--signal=USR2", first.job_id], check=True)
    wait_until(lambda: len(first.starts()) == 2, seconds=250)
    subprocess.run(["scancel", first.job_id], check=True)
    wait_until(lambda: not first.is_running())
    assert train(resolved, command=COMMAND, screen=Silent()).state == "finished"
    second = newest_evaluator(resolved.folder)
    assert second not in (None, first)
    assert waiting_teachers(resolved.folder) == ()
    assert len(read_provenance(resolved.folder)["launches"]) == 1


def test_refused_evaluation_leaves_the_training_alone(tmp_path: Path) -> None:
    """A partition that does not exist for the evaluation is said, and the run is finished all the same."""
    wrong = dataclasses.replace(SLURM, evaluation=Evaluation(partition="nowhere"))
    resolved, said = on_cluster(tmp_path / "run", slurm=wrong, evaluate="apart"), []
    screen = Silent()
    screen.say = said.append  # type: ignore[method-assign]
    assert train(resolved, command=COMMAND, screen=screen).state == "finished"
    assert sum("could not be launched: the cluster refused the job" in line for line in said) == 2
    with pytest.raises(FailedRunError, match="nowhere"):
        evaluate(resolved, screen=screen)
