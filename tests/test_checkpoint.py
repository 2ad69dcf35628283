"""Checkpoints: what is saved comes back bit for bit, whole or not at all, and never for another run."""

import dataclasses
import functools
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import make_recipe, make_train_config
from safetensors import safe_open
from test_distributed import run_processes
from torch import Tensor

from franca.config import ConfigError, TrainConfig
from franca.train.checkpoint import list_checkpoints, load_newest_checkpoint, make_checkpoints
from franca.train.optim import make_optimizer
from franca.train.self_distillation import SelfDistillation

CONFIG = make_train_config(
    make_recipe(
        model={"embed_dim": 16, "depth": 1},
        heads={name: {"prototypes": 8, "hidden": 16, "bottleneck": 8, "layers": 2} for name in ("dino", "ibot")},
        losses={"centering": "softmax"},
    )
)
PROGRESS: dict[str, Any] = {"block": [0.1, 1 / 3, 2.0, 0.0, 5e-324, 7.0], "scaler": {}}


class Run:
    """A model and its optimizer, filled with random values of a seed."""

    def __init__(self, seed: int) -> None:
        self.model = SelfDistillation(CONFIG.recipe)
        self.optimizer = make_optimizer(self.model.student, optim=CONFIG.recipe.optim)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in self.tensors():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))

    def tensors(self) -> list[Tensor]:
        moments = [moment for state in self.optimizer.state.values() for moment in state.values()]
        return [*self.model.state_dict().values(), *moments]

    def save(self, folder: Path, *, done: int, config: TrainConfig = CONFIG) -> None:
        with make_checkpoints(folder, config=config) as checkpoints:
            checkpoints.save(done, model=self.model, optimizer=self.optimizer, progress=PROGRESS)

    def load(self, folder: Path, *, config: TrainConfig = CONFIG) -> dict[str, Any] | None:
        return load_newest_checkpoint(folder, config=config, model=self.model, optimizer=self.optimizer)


def assert_equal(one: Run, two: Run) -> None:
    for a, b in zip(one.tensors(), two.tensors(), strict=True):
        assert torch.equal(a, b)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    """Weights of both networks, centers, moments and step counts return bit for bit, and so does the progress."""
    saved, loaded = Run(1), Run(2)
    saved.save(tmp_path, done=600)
    checkpoint = loaded.load(tmp_path)
    assert checkpoint is not None
    assert checkpoint["iteration"] == 600
    assert {key: checkpoint[key] for key in PROGRESS} == PROGRESS
    assert_equal(saved, loaded)
    assert (tmp_path / "checkpoints" / "000600").is_dir()


def test_no_checkpoint_leaves_a_run_as_it_is(tmp_path: Path) -> None:
    """A fresh folder, or one in which a save was killed, has nothing to load."""
    run = Run(1)
    assert run.load(tmp_path) is None
    (tmp_path / "checkpoints" / ".000600.incomplete").mkdir(parents=True)
    assert run.load(tmp_path) is None
    assert_equal(run, Run(1))


def test_newest_are_kept(tmp_path: Path) -> None:
    """The two newest stay, by number and not by name; what killed saves left is cleared away."""
    run = Run(1)
    (tmp_path / "checkpoints" / ".000005.incomplete").mkdir(parents=True)
    for done in (999_990, 1_000_000, 1_000_010):
        run.save(tmp_path, done=done)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["1000010", "1000000"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (truncate, "*.safetensors"),
        (flip_bit, "*.safetensors"),
        (Path.unlink, "*.safetensors"),
        (truncate, "checkpoint.json"),
        (Path.unlink, "checkpoint.json"),
    ],
)
def test_damaged_checkpoint_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any, pattern: str
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


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    """Weights of another recipe or seed are never loaded in silence."""
    run = Run(1)
    run.save(tmp_path, done=10)
    for config in (dataclasses.replace(CONFIG, seed=7), dataclasses.replace(CONFIG, fingerprint="0123456789abcdef")):
        with pytest.raises(ConfigError, match=r"000010 is of recipe .* use another run folder"):
            run.load(tmp_path, config=config)


def test_checkpoint_holds_tensors_and_json_alone(tmp_path: Path) -> None:
    """Nothing is pickled, so loading runs no code; every value is a tensor under its name."""
    Run(1).save(tmp_path, done=10)
    files = sorted(path.name for path in (tmp_path / "checkpoints" / "000010").iterdir())
    assert [name.rpartition(".")[2] for name in files] == ["json", "safetensors"]
    with safe_open(tmp_path / "checkpoints" / "000010" / files[1], framework="pt") as file:
        names = set(file.keys())
    assert "model.teacher.backbone.blocks.0.attn.qkv.weight" in names
    assert "optimizer.student.dino_head.last_layer.weight_v.exp_avg_sq" in names
    assert "model.dino_center_0" in names
    assert set(json.loads((tmp_path / "checkpoints" / "000010" / "checkpoint.json").read_text())) >= {
        "iteration",
        "fingerprint",
        "seed",
        "files",
    }


def load_and_save(folder: Path) -> int:
    """What each of two processes does with the checkpoint of one."""
    run = Run(9)
    checkpoint = run.load(folder)
    run.save(folder, done=40)
    return checkpoint["iteration"] if checkpoint else -1


def test_checkpoint_moves_between_numbers_of_processes(tmp_path: Path) -> None:
    """What one process saved, two load; what two saved, one loads, bit for bit."""
    saved, loaded = Run(1), Run(2)
    saved.save(tmp_path, done=30)
    assert run_processes(functools.partial(load_and_save, tmp_path), processes=2, folder=tmp_path) == [30, 30]
    checkpoint = loaded.load(tmp_path)
    assert checkpoint is not None
    assert checkpoint["iteration"] == 40
    assert_equal(saved, loaded)
