"""A run over several processes, in every way to spread it, against the same run in one."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import make_recipe, make_train_config
from test_distributed import run_processes

from franca import distributed
from franca.config import TrainConfig
from franca.data.datasets import load_dataset
from franca.data.loader import make_loader
from franca.schedules import make_schedules
from franca.train.loop import accumulate_gradients
from franca.train.optim import apply_schedules, clip_gradients, guarded_step, make_optimizer, make_scaler
from franca.train.parallel import make_model, wrap
from franca.train.self_distillation import make_views

CPU = torch.device("cpu")
STEPS = 20
# Matryoshka heads and every collective: Sinkhorn, KoLeo in groups of four images, gradient norm
RECIPE = make_recipe(
    global_batch=16,
    model={"embed_dim": 16, "depth": 2, "layerscale": 0.1},
    heads={"nesting": [8, 16]},
    losses={"koleo_images": 4},
    masking={"kind": "cyclic", "ratio": [0.1, 0.65]},
    optim={"freeze_last_layer_iterations": 2},
    precision={"backbone": "fp16", "reduce": "fp16"},  # as published; a CPU computes and reduces in fp32
)


def train_steps(config: TrainConfig, steps: int = STEPS) -> dict[str, Any]:
    """Losses, gradient norms and weights of some steps of a run, by the loop's own parts."""
    recipe, schedules = config.recipe, make_schedules(config.recipe)
    model = make_model(config, device=CPU, generator=torch.Generator().manual_seed(0))
    caller = wrap(model, config=config)
    optimizer = make_optimizer(model.student, optim=recipe.optim)
    scaler = make_scaler(recipe.precision, device=CPU)
    dataset = load_dataset("digits", root="", split="train")
    place = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    batches = make_loader(config, dataset, start_iteration=0, **place)
    rows = []
    for i in range(steps):
        apply_schedules(
            optimizer,
            lr=schedules.lr[i],
            weight_decay=schedules.weight_decay[i],
            last_layer_lr=schedules.last_layer_lr[i],
        )
        logged = accumulate_gradients(
            model,
            [make_views(next(batches), device=CPU) for _ in range(config.execution.accumulation)],
            caller=caller,
            temperature=float(schedules.teacher_temperature[i]),
            scaler=scaler,
            dropped_paths=torch.Generator(),
            seed=(config.seed, 2, i),
        )
        norm = clip_gradients(model.student.values(), clip_norm=recipe.optim.clip_norm)
        guarded_step(optimizer, scaler=scaler, healthy=torch.tensor(True))
        model.update_teacher(momentum=float(schedules.momentum[i]))
        optimizer.zero_grad(set_to_none=True)
        rows.append(torch.stack([*distributed.all_reduce_mean(torch.stack(list(logged.values()))), norm]))
    return {"rows": torch.stack(rows), "state": distributed.whole_state(model)}


@functools.cache
def alone(recipe: Any = RECIPE) -> dict[str, Any]:
    return train_steps(make_train_config(recipe))


def assert_equal_runs(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal to what twenty steps make of float32's rounding.

    But for the keys' biases: a softmax does not see them, their gradient is rounding alone, and Adam scales that up.
    """
    torch.testing.assert_close(found["rows"], expected["rows"], rtol=1e-5, atol=2e-6)
    assert found["state"].keys() == expected["state"].keys()
    for name, tensor in found["state"].items():
        wanted = expected["state"][name]
        if name.endswith("qkv.bias"):
            (q, _, v), (wanted_q, _, wanted_v) = tensor.chunk(3), wanted.chunk(3)
            tensor, wanted = torch.cat((q, v)), torch.cat((wanted_q, wanted_v))
        torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=5e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize(
    ("processes", "parallel", "shard_processes"),
    [(2, "fsdp", 0), (4, "fsdp", 0), (4, "fsdp", 2), (2, "ddp", 0), (4, "ddp", 0)],
    ids=["fsdp-2", "fsdp-4", "hybrid-2x2", "ddp-2", "ddp-4"],
)
def test_processes_equal_one(
    processes: int, parallel: str, shard_processes: int, accumulation: int, tmp_path: Path
) -> None:
    """Losses and weights after 20 steps: of 2 and 4 processes, sharded, in groups and whole, in one and four parts."""
    config = make_train_config(
        RECIPE,
        processes=processes,
        batch_per_process=16 // processes // accumulation,
        accumulation=accumulation,
        parallel=parallel,
        shard_processes=shard_processes,
    )
    for result in run_processes(functools.partial(train_steps, config), processes=processes, folder=tmp_path):
        assert_equal_runs(result, alone())
