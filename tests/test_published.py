"""A finished run is published whole, an unfinished one not at all."""

from pathlib import Path

import pytest

from reproduce.errors import RunError
from reproduce.published import publish_log


def make_run(folder: Path, *, state: str = "finished") -> Path:
    """A run folder with every file that a trainer and the harness leave, and weights that must stay behind."""
    for name in ("config.yaml", "log.txt", "training_metrics.json", "environment.json", "provenance.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "state.json").write_text(f'{{"state": "{state}", "iteration": 600, "of": 600}}')
    evaluation = folder / "eval" / "training_599"
    evaluation.mkdir(parents=True)
    (evaluation / "results_eval_knn.json").write_text("{\"('full', 10) Top 1\": 91.5}\n")
    (evaluation / "teacher_checkpoint.safetensors").write_bytes(b"weights")
    return folder


def test_published_log_holds_the_log_and_no_weights(tmp_path: Path) -> None:
    """Everything that judging reads is copied byte for byte; weights are not."""
    run = make_run(tmp_path / "run")
    target = tmp_path / "logfiles" / "seed-1"
    written = publish_log(run, target)
    assert (target / "eval/training_599/results_eval_knn.json") in written
    assert all(path.read_bytes() == (run / path.relative_to(target)).read_bytes() for path in written)
    assert not list(target.rglob("*.safetensors"))
    assert [path.name for path in target.parent.iterdir()] == ["seed-1"]


def test_unfinished_run_is_refused(tmp_path: Path) -> None:
    """A run that was interrupted is no reference."""
    run = make_run(tmp_path / "run", state="interrupted")
    with pytest.raises(RunError, match="not finished"):
        publish_log(run, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_published_log_is_never_replaced(tmp_path: Path) -> None:
    """Publishing twice to one folder is an error, and the first log stays."""
    run = make_run(tmp_path / "run")
    publish_log(run, tmp_path / "target")
    (run / "log.txt").write_text("another")
    with pytest.raises(RunError, match="already"):
        publish_log(run, tmp_path / "target")
    assert (tmp_path / "target" / "log.txt").read_text() == "log.txt"


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    """The missing files are named."""
    with pytest.raises(RunError, match=r"training_metrics\.json"):
        publish_log(tmp_path, tmp_path / "target")
