"""Training steps of a row, timed on this machine: `python benchmarks/train_step.py ROW [KEY=VALUE ...] [options]`.

The step is the trainer's own: targets, both forwards, backward, clipping, AdamW, average. Variants run in turn, round
after round, each built anew so that one at a time is in memory. Printed are images per second of all processes, model
TFLOP/s of each and its share of the device's peak, the share of time spent waiting for data, and the peak of memory;
`--to FILE` keeps every round as JSON. Under torchrun all processes take part. How to run it: benchmarks/README.md.
"""

import argparse
import dataclasses
import gc
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from franca.config import Execution, Recipe, TrainConfig, recipe_fingerprint
from franca.data.datasets import load_dataset
from franca.data.loader import Batch, make_loader
from franca.distributed import parse_place, rank, setup, teardown, world_size
from franca.flops import peak_tflops, step_flops
from franca.laws import DRAWS
from franca.masking import draw_masks, plan_masks
from franca.schedules import make_schedules
from franca.train.loop import accumulate_gradients, derive_seed, deterministic
from franca.train.metrics import max_memory_mb
from franca.train.optim import apply_schedules, clip_gradients, guarded_step, make_optimizer, make_scaler
from franca.train.parallel import make_model, wrap
from franca.train.self_distillation import make_views
from reproduce.spec import load_spec

SWITCHES = {"off": False, "on": True}


@dataclass(frozen=True)
class Round:
    """One variant in one round. `seconds` is the mean of a step, `data_seconds` the part of it that waits for data."""

    variant: str
    images_per_second: float
    seconds: float
    data_seconds: float
    tflops_per_process: float
    mfu: float | None
    memory_mb: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Time every variant and print a table; returns the exit code."""
    options = parse_options(arguments)
    place = parse_place(os.environ)
    configs = {
        name: make_variant(options, processes=place.world_size if place else 1, **changes)
        for name, changes in list_variants(options).items()
    }
    device = setup(next(iter(configs.values())).execution)
    rounds: list[Round] = []
    first = rank() == 0
    try:
        with deterministic(device, threads=options.threads):
            for number, (name, config) in itertools.product(range(options.rounds), configs.items()):
                rounds.append(time_steps(name, config, device=device, options=options))
                if first:
                    print(f"round {number + 1}/{options.rounds}  {render(rounds[-1])}", file=sys.stderr, flush=True)
    finally:
        teardown()
    if first:
        report(rounds, configs, device=device, to=options.to)
    return 0


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="time training steps of a row on this machine")
    parser.add_argument("row", help="a row of experiments/")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="changes of its recipe, as `reproduce run` has")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=None, help="images of a process at a time; the row's own")
    parser.add_argument("--accumulation", type=int, default=1, help="parts of a process's batch")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default=None, help="of the backbone; the row's own"
    )
    parser.add_argument("--compile", type=_choices(SWITCHES), default=["off"], help="off, on or off,on")
    parser.add_argument(
        "--recompute", type=_choices(SWITCHES), default=["off"], help="activation checkpointing, likewise"
    )
    parser.add_argument("--attention", type=lambda text: text.split(","), default=["auto"], help="backends, by commas")
    parser.add_argument("--parallel", choices=("fsdp", "ddp"), default="fsdp", help="of several processes")
    parser.add_argument(
        "--data", choices=("random", "real"), default="random", help="random crops, or the data set's own"
    )
    parser.add_argument("--root", default="", help="the data set's folder")
    parser.add_argument("--workers", type=int, default=0, help="loader workers of each process")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads on a CPU; 0 is its own choice")
    parser.add_argument("--warmup", type=int, default=3, help="steps of a round that are not timed")
    parser.add_argument("--steps", type=int, default=10, help="steps of a round that are")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--to", type=Path, default=None, help="a JSON file for every round")
    return parser.parse_intermixed_args(arguments)


def list_variants(options: argparse.Namespace) -> dict[str, dict[str, object]]:
    """Every combination of the options that list several values, by the name it has in the table."""
    found = {}
    for attention, compiled, recompute in itertools.product(options.attention, options.compile, options.recompute):
        name = f"attention {attention}, compile {compiled}, recompute {recompute}"
        found[name] = {
            "attention": attention,
            "compile": SWITCHES[compiled],
            "activation_checkpointing": SWITCHES[recompute],
        }
    return found


def make_variant(options: argparse.Namespace, *, processes: int, **changes: object) -> TrainConfig:
    """The row at the batch that is timed: one iteration's images are those of all processes and parts."""
    spec = load_spec(options.row, overrides=options.changes)
    batch = options.batch or spec.resources.batch_per_gpu
    precision = spec.recipe.precision
    if options.precision:
        precision = dataclasses.replace(precision, backbone=options.precision, grad_scaler=options.precision == "fp16")
    losses = dataclasses.replace(spec.recipe.losses, koleo_images=batch)  # those of one process, as published
    total = processes * batch * options.accumulation
    recipe = dataclasses.replace(spec.recipe, global_batch=total, precision=precision, losses=losses)
    execution = Execution(
        device=options.device,
        processes=processes,
        batch_per_process=batch,
        accumulation=options.accumulation,
        workers=options.workers,
        threads=options.threads,
        data_root=options.root,
        evaluation_root="",
        checkpoint_period_iterations=0,
        checkpoints_kept=1,
        log_period_iterations=10,
        until_iteration=0,
        parallel=options.parallel,
        **changes,  # type: ignore[arg-type]
    )
    return TrainConfig(spec.row, spec.version, recipe_fingerprint(recipe), 0, recipe, execution)


def time_steps(name: str, config: TrainConfig, *, device: torch.device, options: argparse.Namespace) -> Round:
    """Build the variant, warm it up, and time its steps together: the device is waited for at both ends alone."""
    recipe = config.recipe
    model = make_model(config, device=device, generator=torch.Generator().manual_seed(0))
    caller, optimizer = wrap(model, config=config), make_optimizer(model.student, optim=recipe.optim)
    scaler, schedules = make_scaler(recipe.precision, device=device), make_schedules(recipe)
    batches = make_batches(config, real=options.data == "real", device=device)
    dropped_paths, healthy = torch.Generator(device), torch.ones((), dtype=torch.bool, device=device)
    began, waited = 0.0, 0.0
    for step in range(options.warmup + options.steps):
        if step == options.warmup:
            began, waited = now(device), 0.0
        asked = time.perf_counter()
        parts = [next(batches) for _ in range(config.execution.accumulation)]
        waited += time.perf_counter() - asked
        lr = float(schedules.lr[min(step + 1, recipe.iterations - 1)])
        apply_schedules(optimizer, lr=lr, weight_decay=0.04, last_layer_lr=lr)
        accumulate_gradients(
            model,
            [make_views(part, device=device) for part in parts],
            caller=caller,
            temperature=recipe.teacher.temperature_start,
            scaler=scaler,
            dropped_paths=dropped_paths,
            seed=(0, 2, step),
        )
        scaler.unscale_(optimizer)
        clip_gradients(model.student.values(), clip_norm=recipe.optim.clip_norm)
        guarded_step(optimizer, scaler=scaler, healthy=healthy)
        model.update_teacher(momentum=recipe.teacher.momentum_start)
        optimizer.zero_grad(set_to_none=True)
    seconds = (now(device) - began) / options.steps
    result = make_round(name, config, seconds=seconds, data_seconds=waited / options.steps, device=device)
    batches.close()
    del model, caller, optimizer
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return result


def make_round(name: str, config: TrainConfig, *, seconds: float, data_seconds: float, device: torch.device) -> Round:
    """A measured step as images, FLOPs and shares."""
    recipe, execution = config.recipe, config.execution
    speed = recipe.global_batch / seconds
    flops = step_flops(recipe, images=execution.batch_per_process).total
    done = speed * flops / execution.processes / 1e12
    peak = peak_tflops(device_name(device), precision=recipe.precision.backbone)
    return Round(
        variant=name,
        images_per_second=speed,
        seconds=seconds,
        data_seconds=data_seconds,
        tflops_per_process=done,
        mfu=done / peak if peak else None,
        memory_mb=max_memory_mb(device),
    )


def make_batches(config: TrainConfig, *, real: bool, device: torch.device) -> Iterator[Batch]:
    """The loader's batches, or one of random pixels and real masks for ever: pinned, as the loader's are."""
    if real:
        dataset = load_dataset(config.recipe.data.dataset, root=config.execution.data_root, split="train")
        return make_loader(config, dataset, start_iteration=0, rank=rank(), world_size=world_size())
    batch = make_random_batch(config.recipe, images=config.execution.batch_per_process, seed=rank())
    batch = batch.pin_memory() if device.type == "cuda" else batch
    return (batch for _ in itertools.count())


def make_random_batch(recipe: Recipe, *, images: int, seed: int) -> Batch:
    """Random bytes in the shape of crops, and masks as the recipe draws them."""
    crops, generator = recipe.crops, torch.Generator().manual_seed(derive_seed(seed))
    grid = crops.global_px // recipe.model.patch_px
    plan = plan_masks(recipe.masking, images=2 * images, grid=grid, generator=np.random.default_rng(seed))

    def pixels(number: int, px: int) -> torch.Tensor:
        return torch.randint(256, (number, 3, px, px), generator=generator, dtype=torch.uint8)

    return Batch(
        iteration=0,
        global_crops=pixels(2 * images, crops.global_px),
        local_crops=pixels(crops.local_number * images, crops.local_px),
        masks=torch.from_numpy(draw_masks(plan, rows=range(2 * images))).flatten(1),
        mask_bound=int(plan.bounds.sum()),
        indices=torch.arange(images),
        unreadable=(),
        draws=np.zeros(len(DRAWS)),
        data=recipe.data,
    )


def report(rounds: list[Round], configs: dict[str, TrainConfig], *, device: torch.device, to: Path | None) -> None:
    """Print each variant's median round, fastest and slowest, and write all of them."""
    for name in configs:
        own = sorted((item for item in rounds if item.variant == name), key=lambda item: item.images_per_second)
        speeds = [item.images_per_second for item in own]
        middle = own[len(own) // 2]
        print(f"{render(middle)}  ({len(own)} rounds, {speeds[0]:.4g} to {speeds[-1]:.4g} images/s)")
    if len(configs) > 1:
        first, *others = (statistics.median(r.images_per_second for r in rounds if r.variant == n) for n in configs)
        print("against the first: " + ", ".join(f"{other / first:.3f}" for other in others))
    if to is not None:
        config = next(iter(configs.values()))
        content = {
            "device": device_name(device),
            "processes": config.execution.processes,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "row": config.row,
            "images_per_iteration": config.recipe.global_batch,
            "gflops_per_image": step_flops(config.recipe, images=config.execution.batch_per_process).total / 1e9,
            "rounds": [dataclasses.asdict(item) for item in rounds],
        }
        to.write_text(json.dumps(content, indent=1) + "\n")


def render(item: Round) -> str:
    """One line of the table."""
    share = "" if item.mfu is None else f", {item.mfu:.1%} MFU"
    waited = item.data_seconds / item.seconds
    return (
        f"{item.variant}: {item.images_per_second:.4g} images/s, {item.seconds * 1000:.4g} ms a step, "
        f"{item.tflops_per_process:.3g} TFLOP/s{share}, {waited:.1%} waiting for data, {item.memory_mb:,.0f} MB"
    )


def device_name(device: torch.device) -> str:
    """torch's name of a GPU, the processor's of a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"


def now(device: torch.device) -> float:
    """The time, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _choices(known: dict[str, bool]):  # type: ignore[no-untyped-def]
    """A parser of words from `known`, by commas."""

    def parse(text: str) -> list[str]:
        words = text.split(",")
        if not words or set(words) - set(known):
            raise argparse.ArgumentTypeError(f"{text!r} is not {' or '.join(known)}, or both by a comma")
        return words

    return parse


if __name__ == "__main__":
    sys.exit(main())
