"""Runs with a known truth, for the tests of the comparison: loss by loss and iteration by iteration, then logged.

A loss is a mean curve that every run of the recipe shares, a wander that is an Ornstein-Uhlenbeck process in log time
and belongs to the run, and noise of each iteration. What is logged follows from it by naive loops over iterations.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from recipes import make_recipe, make_train_config

from franca.config import Recipe, dump_config, to_mapping
from franca.schedules import make_schedules
from reproduce.curves import LOSSES, TOTAL
from reproduce.lineage import History, make_lineage
from reproduce.log_head import Head
from reproduce.logs import Record

ITERATIONS, PERIOD, EVALUATION_PERIOD = 600, 10, 100
START_AND_END = {  # the starts as random weights of this recipe's heads have them
    "dino_local_crops_loss": (5.3, 2.42),
    "dino_global_crops_loss": (1.325, 0.62),
    "ibot_loss": (1.6, 0.76),
    "koleo_loss": (0.4, -0.02),
}
CORRELATION = 1.4  # of the wander, in log time
WANDER, NOISE = 0.01, 0.01  # of the loss at the start

RECIPE = make_recipe(
    iterations=ITERATIONS,
    optim={"warmup_iterations": 60},
    evaluation={"period_iterations": EVALUATION_PERIOD},
)


@dataclass(frozen=True)
class Truth:
    """What happened in a run: a value per iteration and column, and the accuracies of its teacher."""

    columns: Mapping[str, NDArray[np.float64]]
    knn: Mapping[int, Mapping[int, float]]
    recipe: Recipe
    seed: int


def simulate(
    seed: int,
    *,
    recipe: Recipe = RECIPE,
    shift: Mapping[str, float] | None = None,
    knn_shift: float = 0.0,
    correlation: float = CORRELATION,
    noise: float = NOISE,
    wander: float = WANDER,
) -> Truth:
    """One run of `recipe`. `shift` adds to a loss a share of its start, most of it late in log time."""
    generator = np.random.default_rng(seed)
    count = recipe.iterations
    iterations = np.arange(count)
    log_time = np.log(iterations + 1)
    columns = {}
    for name, (start, end) in START_AND_END.items():
        curve = end + (start - end) * np.exp(-3 * log_time / math.log(count) * np.minimum(1, iterations / 20))
        path = _wander(generator, log_time, correlation) * np.minimum(1, iterations / 40)
        scatter = generator.standard_normal(count)
        drift = (shift or {}).get(name, 0.0) * (log_time / log_time[-1]) ** 4
        columns[name] = curve + abs(start) * (wander * path + noise * scatter + drift)
    columns[TOTAL] = np.sum([columns[name] for name in LOSSES], axis=0)
    schedules = make_schedules(recipe)
    columns |= {
        "lr": schedules.lr,
        "wd": schedules.weight_decay,
        "mom": schedules.momentum,
        "last_layer_lr": schedules.last_layer_lr,
        "current_batch_size": np.full(count, float(recipe.global_batch)),
    }
    points = range(0, count + 1, recipe.evaluation.period_iterations)
    own = generator.standard_normal() * 0.2
    knn = {
        done: {10: 97.0 - 60 * math.exp(-4 * done / count) + own + 0.1 * generator.standard_normal() + knn_shift}
        for done in points
    }
    return Truth(columns, knn, recipe, seed)


def with_columns(truth: Truth, **columns: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Truth:
    """The run with some columns replaced by a function of themselves."""
    changed = {name: change(truth.columns[name]) for name, change in columns.items()}
    return dataclasses.replace(truth, columns={**truth.columns, **changed})


def make_records(truth: Truth, *, start: int = 0, stop: int | None = None, first_line: int = 1) -> list[Record]:
    """The JSON lines of a process that trains the iterations from `start` on; block means go on across launches."""
    stop = truth.recipe.iterations if stop is None else stop
    logged = [i for i in range(stop) if i % PERIOD == 0 or i == truth.recipe.iterations - 1]
    records = []
    for before, at in zip([-1, *logged], logged, strict=False):
        if at < start:
            continue
        values: dict[str, float] = {}
        for name, column in truth.columns.items():
            window = sorted(column[max(at - 19, start) : at + 1])
            values[name] = float(window[(len(window) - 1) // 2])
        for name in (TOTAL, *LOSSES):
            values[f"raw_{name}"] = float(truth.columns[name][at])
            values[f"mean_{name}"] = float(np.mean(truth.columns[name][before + 1 : at + 1]))
        records.append(Record(first_line + len(records), at, None, values, None, None, 0))
    return records


def make_history(truth: Truth, *, name: str | None = None, hidden: bool = False, done: int | None = None) -> History:
    """A run in memory; `hidden` leaves nothing but its lines, as where two logs are compared."""
    records = make_records(truth, stop=done)
    config = to_mapping(make_train_config(truth.recipe, seed=truth.seed))
    return History(
        name=name or f"seed-{truth.seed}",
        path=Path("runs") / (name or f"seed-{truth.seed}"),
        log_path=None,
        dialect="dinov2-json",
        lineage=make_lineage(records),
        text=None,
        knn={} if hidden else {at: point for at, point in truth.knn.items() if done is None or at <= done},
        config=None if hidden else config,
        head=Head(),
        state=None,
        seed=None if hidden else truth.seed,
        total=None if hidden else truth.recipe.iterations,
        problems=(),
        data=None if hidden else counted_data(truth.recipe),
    )


def counted_data(recipe: Recipe) -> dict[str, Any]:
    """What a run notes of its images, where it found all of them."""
    data = recipe.data
    return {"dataset": data.dataset, "images": data.images, "classes": data.classes, "fingerprint": "c42d"}


def write_run(truth: Truth, folder: Path, *, launches: Sequence[tuple[int, int]] = ((0, ITERATIONS),)) -> Path:
    """A run folder as the trainer leaves it, after launches that each trained (start, stop]; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_config(make_train_config(truth.recipe, seed=truth.seed)))
    (folder / "environment.json").write_text(json.dumps({"data": counted_data(truth.recipe)}))
    (folder / "state.json").write_text(json.dumps({"state": "finished", "iteration": launches[-1][1]}))
    lines = [
        json.dumps({"iteration": record.iteration, **record.values})
        for start, stop in launches
        for record in make_records(truth, start=start, stop=stop)
    ]
    (folder / "training_metrics.json").write_text("".join(f"{line}\n" for line in lines))
    (folder / "log.txt").write_text("".join(render_text(truth, start=start, stop=stop) for start, stop in launches))
    for done, point in truth.knn.items():
        place = folder / "eval" / (f"training_{done - 1}" if done else "untrained")
        place.mkdir(parents=True, exist_ok=True)
        results = [json.dumps({f"('full', {k}) Top 1": accuracy}) for k, accuracy in point.items()]
        (place / "results_eval_knn.json").write_text("".join(f"{line}\n" for line in results))
    return folder


def render_text(truth: Truth, *, start: int = 0, stop: int = ITERATIONS) -> str:
    """What one process writes to log.txt, in DINOv2's words."""
    stamp = "I20260308 08:02:33 116690 franca"
    config = dump_config(make_train_config(truth.recipe, seed=truth.seed))
    lines = [
        f"{stamp} run_folder.py:145] git:\n  sha: {'0123456789' * 4}, status: clean, branch: main\n",
        f"{stamp} run_folder.py:149] {config}",
        f"{stamp} loop.py:79] Starting training from iteration {start}",
    ]
    for record in make_records(truth, start=start, stop=stop):
        at, total = record.iteration, truth.recipe.iterations
        meters = "  ".join(
            f"{name}: {record.values[name]:.4f} ({np.mean(column[start : at + 1]):.4f})"
            for name, column in truth.columns.items()
        )
        tail = "time: 0.261000  data: 0.000150  max mem: 512"
        lines.append(f"{stamp} metrics.py:127] Training  [{at:3d}/{total}]  eta: 0:02:30  {meters}  {tail}")
    return "".join(f"{line}\n" for line in lines)


def _wander(generator: np.random.Generator, log_time: NDArray[np.float64], correlation: float) -> NDArray[np.float64]:
    """A stationary Ornstein-Uhlenbeck process of unit variance at the given times."""
    path = np.empty(len(log_time))
    path[0] = generator.standard_normal()
    for at in range(1, len(log_time)):
        kept = math.exp(-(log_time[at] - log_time[at - 1]) / correlation)
        path[at] = kept * path[at - 1] + math.sqrt(1 - kept**2) * generator.standard_normal()
    return path


def changed_recipe(**changes: Any) -> Recipe:
    """`RECIPE` with some keys of its groups replaced."""
    merged = {"optim": {"warmup_iterations": 60}, "evaluation": {"period_iterations": EVALUATION_PERIOD}}
    for group, keys in changes.items():
        merged[group] = {**merged.get(group, {}), **keys} if isinstance(keys, dict) else keys
    return make_recipe(iterations=ITERATIONS, **merged)
