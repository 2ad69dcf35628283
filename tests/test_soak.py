"""The soak test itself: its plan is a seed's, it sees what it looks for, and a short one finds nothing wrong."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from soak import METRICS, PERIOD, Death, Kill, check_deaths, compare_runs, launch, make_run, plan_kills, soak
from test_checkpoint import file_size_limit

from franca.train.checkpoint import list_checkpoints


def make_death(
    *, number: signal.Signals = signal.SIGKILL, exit_code: int = -9, resumed: int = 0, logged: int = 7, kept: int = 5
) -> Death:
    return Death(Kill(number, "steps", 5, 0.1), exit_code, resumed, logged, kept, torn=False)


def test_plan_is_the_seeds() -> None:
    """A seed has one plan, with kills of every kind at rising iterations."""
    plan = plan_kills(50, seed=0)
    assert plan == plan_kills(50, seed=0)
    assert plan != plan_kills(50, seed=1)
    assert [kill.iteration for kill in plan] == sorted(kill.iteration for kill in plan)
    assert {kill.moment for kill in plan} == {"start", "steps", "writing"}
    assert {kill.number for kill in plan} == {signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2}


@pytest.mark.parametrize(
    ("deaths", "said"),
    [
        ([make_death(), make_death(resumed=5), make_death(resumed=-1)], []),
        ([make_death(number=signal.SIGTERM, exit_code=75, kept=7)], []),
        ([make_death(number=signal.SIGTERM, exit_code=75)], ["kill 1: asked to stop, it kept 5 of 7 iterations"]),
        ([make_death(exit_code=1)], ["kill 1: exit code 1"]),
        ([make_death(logged=16)], ["kill 1: 11 iterations lost"]),
        ([make_death(), make_death(resumed=0)], ["launch 2 went on from 0, but 5 was there"]),
    ],
)
def test_deaths_are_held_to_account(deaths: list[Death], said: list[str]) -> None:
    """Lost work, a wrong exit code and a launch that begins elsewhere are seen, and nothing else is."""
    assert list(check_deaths(deaths)) == said


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left alone."""
    folder = tmp_path_factory.mktemp("soak") / "whole"
    make_run(folder, kills=0, processes=1)
    (trainer,) = launch(folder, processes=1)
    assert trainer.wait(200) == 0, (folder / "stderr.0.txt").read_text()
    return folder


def test_differences_between_runs_are_seen(whole: Path, tmp_path: Path) -> None:
    """Another loss, another weight, another evaluation and a word of a torn checkpoint are each named."""
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    assert list(compare_runs(whole, other)) == []
    records = [json.loads(line) for line in (other / METRICS).read_text().splitlines()]
    records[3]["raw_total_loss"] += 1e-12
    (other / METRICS).write_text("".join(f"{json.dumps(record)}\n" for record in records[:-1]))
    manifest = list_checkpoints(other)[0] / "checkpoint.json"
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))
    next(iter(other.glob("eval/*/*.json"))).write_text("{}")
    with (other / "log.txt").open("a") as log:
        log.write("passing over a damaged checkpoint")
    said = list(compare_runs(whole, other))
    assert len(said) == 5
    assert said[0] == f"checkpoint {manifest.parent.name} differs"
    assert said[1] == f"iterations [{records[-1]['iteration']}] are logged in one run only"
    assert said[2].startswith("iteration 3: ")
    assert said[3].endswith("results_eval_knn.json differs")
    assert said[4] == "a torn checkpoint was taken for a whole one"


def test_trainer_on_a_full_disk_says_so(tmp_path: Path) -> None:
    """The run ends with code 2, the checkpoint that was not written and the mend; the state says it failed."""
    folder = tmp_path / "run"
    make_run(folder, kills=0, processes=1)
    command = [sys.executable, "-m", "franca.train", str(folder / "config.yaml")]
    with file_size_limit(100_000):  # the log and the evaluations are smaller, a checkpoint is not
        result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    said = f"{folder}/checkpoints/{PERIOD:06d} could not be written: process 0: OSError: [Errno 27] File too large"
    assert result.stderr.startswith(f"error: {said}; make room")
    assert said in (folder / "log.txt").read_text()
    state = json.loads((folder / "state.json").read_text())
    assert (state["state"], state["error"]["type"]) == ("failed", "CheckpointError")
    assert list((folder / "checkpoints").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_run_is_the_one_that_was_left_alone(tmp_path: Path, processes: int) -> None:
    """Killed at random moments, amid checkpoints too, a run ends as if it had not been."""
    lines: list[str] = []
    deaths, wrong = soak(tmp_path, kills=3, seed=3, processes=processes, report=lines.append)
    assert wrong == [], "\n".join(lines)
    assert len(deaths) == 3
