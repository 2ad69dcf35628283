"""The schedules of a run: a recipe in, one float64 value per iteration and quantity out. Pure: no torch.

Iteration i of N trains with the i-th value. The shape is dinov2's `CosineScheduler`: a linear warm-up that includes
both its ends, then half a cosine over the iterations that remain, so the last iteration is one step short of the end.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from franca.config import ConfigError, Recipe, peak_lr

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Schedules:
    """One array of `iterations` values each. `last_layer_lr` is `lr`, zero while the prototypes are frozen."""

    lr: Values
    weight_decay: Values
    momentum: Values
    teacher_temperature: Values
    last_layer_lr: Values


def make_schedules(recipe: Recipe) -> Schedules:
    """The schedules of `recipe`. Raises `ConfigError` where a length is negative or the warm-up exceeds the run.

    Warm-up, cosine and freezing as in dinov2 `train.py:build_schedulers`; weight decay and momentum have no warm-up.
    """
    optim, teacher, total = recipe.optim, recipe.teacher, recipe.iterations
    _check_lengths(recipe)
    lr = cosine_schedule(total, start=peak_lr(recipe), end=optim.min_lr, warmup_iterations=optim.warmup_iterations)
    last_layer_lr = lr.copy()
    last_layer_lr[: optim.freeze_last_layer_iterations] = 0.0
    return Schedules(
        lr=lr,
        weight_decay=cosine_schedule(total, start=optim.weight_decay_start, end=optim.weight_decay_end),
        momentum=cosine_schedule(total, start=teacher.momentum_start, end=teacher.momentum_end),
        teacher_temperature=warmup_schedule(
            total,
            start=teacher.temperature_start,
            end=teacher.temperature_end,
            warmup_iterations=teacher.temperature_warmup_iterations,
        ),
        last_layer_lr=last_layer_lr,
    )


def cosine_schedule(iterations: int, *, start: float, end: float, warmup_iterations: int = 0) -> Values:
    """Linear from 0 to `start` over the warm-up, both ends included, then half a cosine from `start` towards `end`."""
    warmup = np.linspace(0.0, start, warmup_iterations)
    rest = iterations - warmup_iterations
    cosine = end + 0.5 * (start - end) * (1.0 + np.cos(np.pi * np.arange(rest) / max(rest, 1)))
    return np.concatenate((warmup, cosine))


def warmup_schedule(iterations: int, *, start: float, end: float, warmup_iterations: int) -> Values:
    """Linear from `start` to `end` over the warm-up, both ends included, then `end`; cut where the run is shorter."""
    values = np.full(iterations, end)
    warmup = np.linspace(start, end, warmup_iterations)[:iterations]
    values[: len(warmup)] = warmup
    return values


def _check_lengths(recipe: Recipe) -> None:
    """A temperature warm-up longer than the run is upstream's own (Franca-L's 20,000 of 37,500): it is only cut."""
    if recipe.iterations < 1:
        raise ConfigError(f"recipe.iterations: {recipe.iterations} is not a number of iterations")
    if not 0 <= recipe.optim.warmup_iterations <= recipe.iterations:
        given = recipe.optim.warmup_iterations
        raise ConfigError(f"recipe.optim.warmup_iterations: {given} is not between 0 and {recipe.iterations}")
    lengths = {
        "optim.freeze_last_layer_iterations": recipe.optim.freeze_last_layer_iterations,
        "teacher.temperature_warmup_iterations": recipe.teacher.temperature_warmup_iterations,
    }
    for key, length in lengths.items():
        if length < 0:
            raise ConfigError(f"recipe.{key}: {length} is negative")
