"""How runs stand, from folders as launches and trainers leave them, and from a queue that answers or does not."""

import fcntl
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from recipes import make_recipe, make_train_config

from franca.config import dump_config
from reproduce.attempts import exit_file, starts_file
from reproduce.standing import Standing, load_standings, render_standings

MakeQueue = Callable[[str], Path]
NODE_FAILURE = (
    "slurmstepd: error: *** JOB 5 ON vn1 CANCELLED AT 2026-11-21T15:00:00 DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR "
    "DETAILS ***\n"
)


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeQueue:
    """Makes a `squeue` that runs some shell lines and counts how often it is called."""

    def make(script: str) -> Path:
        folder, calls = tmp_path / "bin", tmp_path / "calls"
        folder.mkdir()
        calls.touch()
        (folder / "squeue").write_text(f"#!/bin/sh\necho called >> {calls}\n{script}\n")
        (folder / "squeue").chmod(stat.S_IRWXU)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return calls

    return make


def make_run(root: Path, name: str, *, state: str | None, job: str | None, row: str = "digits") -> Path:
    """A run folder of 40 iterations of 600, of which a cluster's job was launched."""
    folder = root / "runs" / f"{row}@1" / name
    files = folder / "submitit" / "0001"
    files.mkdir(parents=True)
    (folder / "config.yaml").touch()
    if state:
        content = {"state": state, "iteration": 40, "of": 600, "images_per_second": 9.0, "error": None}
        (folder / "state.json").write_text(json.dumps(content))
        lines = [json.dumps({"iteration": i, "iter_time": 0.5, "images_per_second": 8.0}) for i in (29, 39)]
        (folder / "training_metrics.json").write_text("\n".join([*lines, '{"iteration": 4']))
    if job:
        launch = {"executor": "slurm", "job_id": job, "submitit_folder": "submitit/0001"}
        (folder / "launch.json").write_text(json.dumps(launch))
    return folder


def stand(root: Path, pattern: str = "*") -> dict[str, Standing]:
    return {standing.run: standing for standing in load_standings(root, pattern=pattern)[0]}


def test_runs_stand_as_queue_and_folders_say(tmp_path: Path, queue: MakeQueue) -> None:
    """Waiting, running and requeued jobs are told from the queue, ended ones from what they left."""
    queue("printf '3|RUNNING|None\\n4_1|PENDING|Priority\\n6|PENDING|BeginTime\\n'")
    make_run(tmp_path, "running", state="running", job="3")
    make_run(tmp_path, "waiting", state=None, job="4_1")
    make_run(tmp_path, "paused", state="paused", job=None)
    lost = make_run(tmp_path, "lost", state="running", job="5")
    (lost / "submitit" / "0001" / "5_0_log.err").write_text(NODE_FAILURE)
    finished = make_run(tmp_path, "finished", state="finished", job="2")
    exit_file(finished / "submitit" / "0001", "2").write_text("0\n")
    found = stand(tmp_path)
    assert {name: standing.state for name, standing in found.items()} == {
        "running": "running",
        "waiting": "waiting",
        "paused": "paused",
        "lost": "lost",
        "finished": "finished",
    }
    assert found["waiting"].reason == "Priority"
    assert str(found["lost"].reason).startswith("node failure: ")
    assert (found["running"].iteration, found["running"].of) == (40, 600)
    assert (found["running"].images_per_second, found["running"].seconds_left) == (8.0, 280.0)
    assert found["finished"].seconds_left is None


def test_time_left_is_that_of_the_launch(tmp_path: Path, queue: MakeQueue) -> None:
    """A run that was launched to stop early is told the time to there, not to the recipe's end."""
    queue("echo '3|RUNNING|None'")
    folder = make_run(tmp_path, "main", state="running", job="3")
    (folder / "config.yaml").write_text(dump_config(make_train_config(make_recipe(), until_iteration=100)))
    assert stand(tmp_path)["main"].seconds_left == (100 - 40) * 0.5


def test_trainer_without_its_job_is_running(tmp_path: Path, queue: MakeQueue) -> None:
    """While a trainer holds the run's lock, the run is not lost, though its job is gone from the queue."""
    queue("true")
    folder = make_run(tmp_path, "main", state="running", job="3")
    assert stand(tmp_path)["main"].state == "lost"
    with (folder / "train.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert stand(tmp_path)["main"].state == "running"


def test_requeued_run_is_not_lost(tmp_path: Path, queue: MakeQueue) -> None:
    """A job whose node died, and which the cluster will start again, waits; its restarts are counted."""
    queue("echo '5|PENDING|BeginTime'")
    folder = make_run(tmp_path, "main", state="running", job="5")
    (folder / "submitit" / "0001" / "5_0_log.err").write_text(NODE_FAILURE)
    line = json.dumps({"time": "2026-11-21T15:00:00+00:00", "iteration": 20})
    starts_file(folder / "submitit" / "0001", "5").write_text(f"{line}\n{line}\n{line}\n")
    standing = stand(tmp_path)["main"]
    assert (standing.state, standing.reason, standing.restarts) == ("waiting", "BeginTime", 2)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1", "contact"),
        ("exit 1", "squeue failed"),
    ],
)
def test_absent_controller_is_said(script: str, why: str, tmp_path: Path, queue: MakeQueue) -> None:
    """Without an answer a run of the cluster stands as it last said, marked as uncertain, with the reason once."""
    queue(script)
    make_run(tmp_path, "main", state="running", job="3")
    ended = make_run(tmp_path, "ended", state="finished", job="4")
    exit_file(ended / "submitit" / "0001", "4").write_text("0\n")
    standings, problem = load_standings(tmp_path)
    assert [(standing.run, standing.state, standing.certain) for standing in standings] == [
        ("ended", "finished", True),
        ("main", "running", False),
    ]
    text = render_standings(standings, problem, width=200)
    assert "running?" in text
    assert why in text.splitlines()[-1]


def test_many_runs_cost_one_question(tmp_path: Path, queue: MakeQueue) -> None:
    """However many runs there are, the queue is asked once; without a run of the cluster, never."""
    calls = queue('for i in $(seq 500); do echo "$i|RUNNING|None"; done')
    make_run(tmp_path, "alone", state="finished", job=None)
    assert len(stand(tmp_path)) == 1
    assert calls.read_text() == ""
    for number in range(1, 501):
        make_run(tmp_path, f"seed={number}", state="running", job=str(number))
    found = stand(tmp_path)
    assert sum(standing.state == "running" for standing in found.values()) == 500
    assert calls.read_text() == "called\n"


def test_rows_are_chosen_by_pattern(tmp_path: Path) -> None:
    """A pattern names the rows whose runs are shown."""
    for row in ("franca-B", "franca-L", "digits"):
        make_run(tmp_path, row, state="paused", job=None, row=row)
    assert set(stand(tmp_path, "franca-*")) == {"franca-B", "franca-L"}
    assert set(stand(tmp_path, "digits")) == {"digits"}


def test_broken_folder_hides_no_other(tmp_path: Path) -> None:
    """A run whose files cannot be read is shown as broken, with the file, beside the others."""
    make_run(tmp_path, "good", state="paused", job=None)
    (make_run(tmp_path, "bad", state="paused", job=None) / "state.json").write_text("{")
    found = stand(tmp_path)
    assert found["good"].state == "paused"
    assert found["bad"].state == "broken"
    assert "state.json" in str(found["bad"].reason)


def test_verdict_is_shown(tmp_path: Path) -> None:
    """A run that was judged stands with its verdict, the row's own run and others alike."""
    make_run(tmp_path, "main", state="finished", job=None)
    make_run(tmp_path, "seed=3", state="finished", job=None)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "digits.json").write_text('{"outcome": "consistent"}')
    (tmp_path / "reports" / "digits.seed=3.json").write_text('{"outcome": "worse"}')
    assert {name: standing.checked for name, standing in stand(tmp_path).items()} == {
        "main": "consistent",
        "seed=3": "worse",
    }


def test_nothing_run_yet_is_said(tmp_path: Path) -> None:
    """Without a run there is a sentence in the table's place."""
    standings, problem = load_standings(tmp_path)
    assert render_standings(standings, problem, width=80) == "no run was made here yet"


def test_evaluation_beside_a_run_is_told(tmp_path: Path, queue: MakeQueue) -> None:
    """Of a run that is evaluated apart it is said what waits, and whether a job is there to measure it."""
    calls = queue("printf '3|RUNNING|None\\n9|RUNNING|None\\n'")
    for name, evaluator in (("attended", "9"), ("alone", "8"), ("inline", None)):
        folder = make_run(tmp_path, name, state="running", job="3")
        if evaluator:
            launch = {"executor": "slurm", "job_id": evaluator, "submitit_folder": "submitit/0001"}
            (folder / "evaluator.json").write_text(json.dumps(launch))
    runs = stand(tmp_path)
    found = {name: (runs[name].evaluator, runs[name].unevaluated) for name in runs}
    assert found == {"attended": ("9", 1), "alone": (None, 1), "inline": (None, 0)}
    table = render_standings(tuple(runs.values()), None, width=300)
    assert "1 not evaluated yet, by job 9" in table
    assert "1 not evaluated yet, by nobody: reproduce evaluate digits" in table
    assert len(calls.read_text().splitlines()) == 1
