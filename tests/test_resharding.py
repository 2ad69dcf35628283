"""A checkpoint is of the model, not of how it was spread: any layout's comes back in every other, bit for bit."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import make_recipe, make_train_config
from safetensors import safe_open
from test_distributed import run_processes
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from franca.distributed import rank, world_size
from franca.train.checkpoint import load_newest_checkpoint, make_checkpoints
from franca.train.optim import make_optimizer
from franca.train.self_distillation import SelfDistillation

# Numbers that neither two nor four processes share evenly.
HEAD = {"prototypes": 5, "hidden": 10, "bottleneck": 3, "layers": 2}
CONFIG = make_train_config(
    make_recipe(
        model={"embed_dim": 16, "depth": 1},
        heads={"dino": HEAD, "ibot": HEAD},
        losses={"centering": "softmax"},
    )
)
PROGRESS: dict[str, Any] = {"block": [], "scaler": {}}
LAYOUTS = {"bare": 1, "ddp": 2, "fsdp": 2, "fsdp of four": 4, "hsdp": 4}


def spread(model: nn.Module, layout: str) -> None:
    """What the layouts do to a model. One head stays whole: sharded and plain tensors come mixed."""
    if not layout.startswith(("fsdp", "hsdp")):
        return
    shape, names = ((2, 2), ("replicate", "shard")) if layout == "hsdp" else ((world_size(),), None)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for networks in (model.student, model.teacher):
        for block in networks["backbone"].blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(networks["backbone"], mesh=mesh)
        fully_shard(networks["ibot_head"], mesh=mesh)


def make_values(shape: torch.Size, name: str) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(name.encode())))


def list_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    moments = {
        f"{name} {key}": tensor
        for name, parameter in model.named_parameters()
        for key, tensor in optimizer.state.get(parameter, {}).items()
    }
    return {**model.state_dict(), **moments}


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def pass_on(layout: str, folder: Path, done: int) -> dict[str, Any]:
    """Load what the layout before this one saved, hold every tensor against its value, and save it again.

    The first layout has nothing to load, and makes the values.
    """
    model = SelfDistillation(CONFIG.recipe)
    spread(model, layout)
    optimizer = make_optimizer(model.student, optim=CONFIG.recipe.optim)
    state = list_state(model, optimizer)
    checkpoint = load_newest_checkpoint(folder, config=CONFIG, model=model, optimizer=optimizer)
    if checkpoint is None:
        for name, tensor in state.items():
            values = make_values(tensor.shape, name)
            sharded = isinstance(tensor, DTensor)
            tensor.copy_(distribute_tensor(values, tensor.device_mesh, tensor.placements) if sharded else values)
    wrong = [name for name, tensor in state.items() if not whole(tensor).equal(make_values(tensor.shape, name))]
    with make_checkpoints(folder, config=CONFIG) as checkpoints:
        checkpoints.save(done, model=model, optimizer=optimizer, progress=PROGRESS)
        for tensor in state.values():
            tensor.fill_(torch.nan)  # the next step, while the checkpoint is written
    return {
        "from": checkpoint and checkpoint["iteration"],
        "wrong": wrong,
        "sharded": sum(isinstance(tensor, DTensor) for tensor in state.values()),
        "empty": sum(isinstance(tensor, DTensor) and not tensor.to_local().numel() for tensor in state.values()),
        "rank": rank(),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "order",
    [
        ("bare", "fsdp", "bare", "fsdp of four", "ddp", "hsdp", "bare"),
        ("hsdp", "fsdp", "fsdp of four", "hsdp", "ddp", "bare"),
    ],
    ids=" ".join,
)
def test_every_layout_takes_up_what_another_saved(tmp_path: Path, order: tuple[str, ...]) -> None:
    """Weights, centers, moments and step counts pass through FSDP, HSDP, DDP and one process without a change."""
    for number, layout in enumerate(order):
        function = functools.partial(pass_on, layout, tmp_path, 10 * number)
        processes = LAYOUTS[layout]
        results = run_processes(function, processes=processes, folder=tmp_path) if processes > 1 else [function()]
        for result in results:
            assert result["wrong"] == []
            assert result["from"] == (10 * (number - 1) if number else None)
            assert (result["sharded"] > 0) == (layout not in ("bare", "ddp"))
        # A class token is one row: all processes but one hold none of it
        assert any(result["empty"] for result in results) == (layout not in ("bare", "ddp"))


@pytest.mark.slow
def test_each_process_writes_its_part_under_the_bare_names(tmp_path: Path) -> None:
    """No process writes what another has written, and the names know nothing of how the model is spread."""
    function = functools.partial(pass_on, "fsdp", tmp_path, 10)
    run_processes(function, processes=2, folder=tmp_path)
    bare = SelfDistillation(CONFIG.recipe)
    sizes: dict[str, int] = {}
    for path in (tmp_path / "checkpoints" / "000010").glob("shard-*-of-00002.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                sizes[name] = sizes.get(name, 0) + file.get_tensor(name).numel()
    assert {name: size for name, size in sizes.items() if name.startswith("model.")} == {
        f"model.{name}": tensor.numel() for name, tensor in bare.state_dict().items()
    }
