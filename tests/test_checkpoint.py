"""Checkpoints: what is saved comes back bit for bit, whole or not at all, and never for another run."""

import contextlib
import dataclasses
import functools
import json
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import make_recipe, make_train_config
from safetensors import safe_open
from safetensors.torch import load_file
from test_distributed import run_processes
from torch import Tensor

from franca.config import ConfigError, TrainConfig
from franca.distributed import rank
from franca.train.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_newest_checkpoint,
    make_checkpoints,
    read_manifest,
)
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


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: what a full disk is to the one who writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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


def test_next_step_does_not_reach_a_checkpoint_under_way(tmp_path: Path) -> None:
    """What is saved is the state at the call: weights and progress may change at once, in place, and do."""
    run, loaded = Run(1), Run(2)
    progress = {"block": [1.0], "scaler": {}}
    with make_checkpoints(tmp_path, config=CONFIG) as checkpoints:
        for done in (10, 20, 30):
            checkpoints.save(done, model=run.model, optimizer=run.optimizer, progress=progress)
            progress["block"][0] += 1.0  # type: ignore[index]
            for tensor in run.tensors():
                tensor.add_(1.0)
    for tensor, before in zip(run.tensors(), Run(1).tensors(), strict=True):
        tensor.copy_(before + 1.0 + 1.0)  # the third save's
    checkpoint = loaded.load(tmp_path)
    assert checkpoint is not None
    assert (checkpoint["iteration"], checkpoint["block"]) == (30, [3.0])
    assert_equal(run, loaded)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["000030", "000020"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
def test_next_step_on_a_device_does_not_reach_a_checkpoint_under_way(tmp_path: Path) -> None:
    """The copy is queued on the device between two steps: what the second one writes is not in it."""
    weights = torch.full((64, 1024, 1024), 1.0, device="cuda")
    model = torch.nn.ParameterDict({"weights": weights})
    with make_checkpoints(tmp_path, config=CONFIG) as checkpoints:
        for done in (1, 2, 3):
            checkpoints.save(done, model=model, optimizer=torch.optim.SGD(model.values()), progress=PROGRESS)
            with torch.no_grad():
                model["weights"].add_(1.0)
    for done in (2, 3):
        (path,) = (tmp_path / "checkpoints" / f"{done:06d}").glob("*.safetensors")
        assert bool((load_file(path)["model.weights"] == float(done)).all())


def test_frozen_teacher_is_not_in_it(tmp_path: Path) -> None:
    """What no step changes comes from its own file: a checkpoint of a distillation holds neither it nor asks for it."""
    run = Run(1)
    run.model.frozen_teacher = torch.nn.ModuleDict({"backbone": torch.nn.Linear(2, 2)})
    run.save(tmp_path, done=10)
    (path,) = (tmp_path / "checkpoints" / "000010").glob("*.safetensors")
    assert not [name for name in load_file(path) if "frozen_teacher" in name]
    assert run.load(tmp_path) is not None


def test_equal_states_make_equal_files(tmp_path: Path) -> None:
    """Two checkpoints of one state have the same digests."""
    for name in ("one", "two"):
        Run(1).save(tmp_path / name, done=10)
    one, two = (read_manifest(tmp_path / name / "checkpoints" / "000010") for name in ("one", "two"))
    assert one == two


def test_waiting_returns_when_it_is_on_disk(tmp_path: Path) -> None:
    """After `wait` the checkpoint has its name; waiting for nothing is nothing."""
    run = Run(1)
    with make_checkpoints(tmp_path, config=CONFIG) as checkpoints:
        checkpoints.wait()
        checkpoints.save(10, model=run.model, optimizer=run.optimizer, progress=PROGRESS)
        checkpoints.wait()
        assert read_manifest(tmp_path / "checkpoints" / "000010")["iteration"] == 10
        checkpoints.wait()


def save_on_full_disk(run: Run, folder: Path, *, times: int) -> None:
    """Begin `times` checkpoints where a file can have no more than 10 kB, and wait for them."""
    with file_size_limit(10_000), make_checkpoints(folder, config=CONFIG) as checkpoints:
        for time in range(times):
            assert time < 2, "the second save must say that the first one failed"
            checkpoints.save(20 + time, model=run.model, optimizer=run.optimizer, progress=PROGRESS)


@pytest.mark.parametrize("times", [1, 3], ids=["at the end", "at the next save"])
def test_full_disk_is_said_and_harms_no_earlier_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, times: int
) -> None:
    """A write that fails beside the training ends it, with the path and the mend, and leaves no torn folder."""
    run, loaded = Run(1), Run(2)
    run.save(tmp_path, done=10)
    said = r"checkpoints/000020 could not be written: process 0: OSError: .*; make room or mend"
    with pytest.raises(CheckpointError, match=said):
        save_on_full_disk(run, tmp_path, times=times)
    assert "000020 could not be written" in caplog.text
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000010"]
    assert loaded.load(tmp_path) is not None
    assert_equal(run, loaded)


def save_and_fail(run: Run, folder: Path) -> None:
    with make_checkpoints(folder, config=CONFIG) as checkpoints:
        checkpoints.save(10, model=run.model, optimizer=run.optimizer, progress=PROGRESS)
        raise ZeroDivisionError


def test_run_that_failed_is_reported_as_it_failed(tmp_path: Path) -> None:
    """An exception of the training is not replaced by that of a checkpoint under way."""
    (tmp_path / "checkpoints").write_text("a file where a folder belongs")
    with pytest.raises(ZeroDivisionError):
        save_and_fail(Run(1), tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
@pytest.mark.parametrize(
    ("options", "said"), [("size=64k", "No space left on device"), ("ro", "Read-only file system")]
)
def test_disk_that_will_not_take_it_is_named(tmp_path: Path, options: str, said: str) -> None:
    """A full disk and one that is mounted read-only are said in their own words."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        with pytest.raises(CheckpointError, match=f"000010 could not be written: .*{said}"):
            Run(1).save(folder, done=10)
        assert list_checkpoints(folder) == []
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def save_where_one_cannot(folder: Path) -> str:
    """Two processes save; the second one's disk is full."""
    run = Run(1)
    with file_size_limit(10_000) if rank() else contextlib.nullcontext():
        try:
            run.save(folder, done=20)
        except CheckpointError as error:
            return str(error)
    return "saved"


def test_failure_of_one_process_is_that_of_all(tmp_path: Path) -> None:
    """No process goes on as if a checkpoint existed that another one could not write its part of."""
    Run(1).save(tmp_path, done=10)
    said = run_processes(functools.partial(save_where_one_cannot, tmp_path), processes=2, folder=tmp_path)
    assert said[0] == said[1]
    assert "checkpoints/000020 could not be written: process 1: OSError" in said[0]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000010"]


def test_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    """A model with tensors that a checkpoint does not hold says so, and is not left half filled in silence."""
    run, other = Run(1), Run(2)
    run.save(tmp_path, done=10)
    other.model.register_buffer("new", torch.zeros(3))
    with pytest.raises(CheckpointError, match=r"000010 does not fit this model: .*model\.new"):
        other.load(tmp_path)


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
