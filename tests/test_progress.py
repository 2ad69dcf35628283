"""Where a run stands, read from the ends of its files."""

import json
from pathlib import Path

import pytest

from reproduce.progress import Progress, read_progress, render_progress
from reproduce.quantities import render_duration


def write_metrics(folder: Path, iterations: range) -> None:
    with (folder / "training_metrics.json").open("a") as file:
        for iteration in iterations:
            line = {"iteration": iteration, "iter_time": 0.5, "total_loss": 14.0, "images_per_second": 128.0}
            file.write(json.dumps(line) + "\n")


def test_run_that_has_not_begun(tmp_path: Path) -> None:
    """A folder without a log is at 0, and nothing else is claimed of it."""
    assert read_progress(tmp_path, target=100) == Progress(0, 100, {}, None, None, None)


def test_progress_comes_from_the_newest_whole_line(tmp_path: Path) -> None:
    """Of a long log with a torn last line, the last whole line counts; an iteration's index is one less than done."""
    write_metrics(tmp_path, range(0, 5000, 10))
    with (tmp_path / "training_metrics.json").open("a") as file:
        file.write('{"iteration": 5000, "total_l')
    progress = read_progress(tmp_path, target=6000)
    assert progress.done == 4991
    assert progress.losses == {"loss": 14.0}
    assert progress.images_per_second == 128.0
    assert progress.seconds_left == (6000 - 4991) * 0.5


def test_progress_counts_iterations_between_two_lines(tmp_path: Path) -> None:
    """The trainer's state is newer than its last log line."""
    write_metrics(tmp_path, range(0, 50, 10))
    state = {"state": "running", "iteration": 47, "of": 100, "images_per_second": None, "error": None}
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert read_progress(tmp_path, target=100).done == 47


def test_newest_evaluation_is_shown(tmp_path: Path) -> None:
    """Of several evaluations the one after most iterations is shown, not the one that sorts last as text."""
    for folder, accuracy in (("untrained", 60.0), ("training_99", 88.5), ("training_199", 91.759)):
        (tmp_path / "eval" / folder).mkdir(parents=True)
        line = {"('full', 10) Top 1": accuracy, "('full', 20) Top 1": accuracy - 1}
        (tmp_path / "eval" / folder / "results_eval_knn.json").write_text(json.dumps(line) + "\n")
    (tmp_path / "eval" / "training_299").mkdir()
    progress = read_progress(tmp_path, target=300)
    assert progress.knn == (200, 10, 91.759)
    assert "10-NN 91.8 % at 200" in render_progress(progress)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (60, "1 min"),
        (185, "3 min 5 s"),
        (7200, "2 h"),
        (7800, "2 h 10 min"),
        (1_483_200, "17 d 4 h"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    """Two units at most, the smaller one only where it says something."""
    assert render_duration(seconds) == text
