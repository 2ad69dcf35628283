"""Checkpoints that are damaged, renamed or cannot be read: passed over, kept aside, or said; never taken for good."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_checkpoint import CONFIG, Run, assert_equal

from franca.train.checkpoint import CheckpointError, read_manifest


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)


def add_foreign_shard(path: Path) -> None:
    (path.parent / "shard-00002-of-00002.safetensors").write_bytes(path.read_bytes())


def empty(path: Path) -> None:
    path.write_text("[]")


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (truncate, "*.safetensors"),
        (flip_bit, "*.safetensors"),
        (Path.unlink, "*.safetensors"),
        (truncate, "checkpoint.json"),
        (Path.unlink, "checkpoint.json"),
        (empty, "checkpoint.json"),
        (add_foreign_shard, "*.safetensors"),
    ],
)
def test_damaged_checkpoint_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], Any], pattern: str
) -> None:
    """A file that is short, altered or gone is named in a warning, and the checkpoint before it is loaded."""
    older, newer, loaded = Run(1), Run(2), Run(3)
    older.save(tmp_path, done=10)
    newer.save(tmp_path, done=20)
    (file,) = (tmp_path / "checkpoints" / "000020").glob(pattern)
    damage(file)
    with caplog.at_level(logging.WARNING, logger="franca"):
        checkpoint = loaded.load(tmp_path)
    assert checkpoint is not None
    assert checkpoint["iteration"] == 10
    assert_equal(loaded, older)
    assert "passing over a damaged checkpoint" in caplog.text
    assert "000020" in caplog.text


def test_renamed_checkpoint_is_not_taken_for_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder whose number is not that of its state is passed over, and so is one that was never finished."""
    run, loaded = Run(1), Run(2)
    run.save(tmp_path, done=10)
    run.save(tmp_path, done=20)
    folder = tmp_path / "checkpoints"
    (folder / "000020").rename(folder / "000090")
    (folder / ".000095.incomplete").mkdir()
    checkpoint = loaded.load(tmp_path)
    assert checkpoint is not None
    assert checkpoint["iteration"] == 10
    assert "000090 was renamed: it holds the state after 20 iterations" in caplog.text


def test_damaged_checkpoints_make_room_for_the_new_ones(tmp_path: Path) -> None:
    """What a run has passed over does not count among the newest: it loses its name, and the new checkpoint stays."""
    config = dataclasses.replace(CONFIG, execution=dataclasses.replace(CONFIG.execution, checkpoints_kept=1))
    run = Run(1)
    for done in (10, 20):
        run.save(tmp_path, done=done)
    truncate(tmp_path / "checkpoints" / "000020" / "checkpoint.json")
    assert run.load(tmp_path) is not None
    run.save(tmp_path, done=15, config=config)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [".000020.damaged", "000015"]
    truncate(tmp_path / "checkpoints" / "000015" / "checkpoint.json")
    run.save(tmp_path, done=15, config=config)
    assert read_manifest(tmp_path / "checkpoints" / "000015")["iteration"] == 15


def test_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(tmp_path: Path) -> None:
    """Days of training are not thrown away in silence: the message says how to begin anew."""
    run = Run(1)
    run.save(tmp_path, done=10)
    truncate(tmp_path / "checkpoints" / "000010" / "checkpoint.json")
    with pytest.raises(CheckpointError, match="holds no good checkpoint; move it away to begin anew"):
        run.load(tmp_path)


def test_checkpoint_that_cannot_be_read_is_not_taken_for_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the file system fails, an older checkpoint is no substitute: the run waits to be started again."""
    run = Run(1)
    for done in (10, 20):
        run.save(tmp_path, done=done)
    (shard,) = (tmp_path / "checkpoints" / "000020").glob("*.safetensors")
    shard.unlink()
    shard.mkdir()  # reading it is an error of the system, as of a stale handle
    with pytest.raises(CheckpointError, match="cannot be read now; start again when its file system answers"):
        run.load(tmp_path)
    assert "a checkpoint cannot be read" in caplog.text
