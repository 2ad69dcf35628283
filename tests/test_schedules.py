"""The schedules against a naive loop in plain floats, and against values that published logs hold."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipes import make_recipe

from franca.config import ConfigError
from franca.schedules import cosine_schedule, make_schedules, warmup_schedule

LOGS = Path(__file__).parents[2] / "shared" / "logs" / "dinov2"

# The values that the head of the public log below prints: 100 epochs of 1250 iterations, batch 12.
PUBLIC_RUN = make_recipe(
    iterations=125_000,
    global_batch=12,
    optim={"warmup_iterations": 12_500, "freeze_last_layer_iterations": 1250},
)


def naive_cosine(iterations: int, start: float, end: float, warmup: int) -> list[float]:
    """Every value by its own formula: i/(warmup - 1) of the way up, then half a cosine down."""
    values = []
    for i in range(iterations):
        if i < warmup:
            values.append(start * i / (warmup - 1) if warmup > 1 else 0.0)
        else:
            share = (i - warmup) / (iterations - warmup)
            values.append(end + 0.5 * (start - end) * (1 + math.cos(math.pi * share)))
    return values


@given(
    st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
)
def test_cosine_equals_naive_loop(lengths: tuple[int, int], start: float, end: float) -> None:
    """Every value is that of the formula, whatever the lengths."""
    iterations, warmup = lengths
    values = cosine_schedule(iterations, start=start, end=end, warmup_iterations=warmup)
    np.testing.assert_allclose(values, naive_cosine(iterations, start, end, warmup), rtol=0, atol=1e-15)
    assert len(values) == iterations


@given(st.integers(1, 60), st.integers(0, 90))
def test_temperature_warms_up_then_stays(iterations: int, warmup: int) -> None:
    """The teacher temperature rises linearly, reaches its end at the last warm-up iteration and stays there."""
    values = warmup_schedule(iterations, start=0.04, end=0.07, warmup_iterations=warmup)
    slope = 0.03 / max(warmup - 1, 1)
    naive = [0.04 + i * slope if i < warmup else 0.07 for i in range(iterations)]
    np.testing.assert_allclose(values, naive, rtol=0, atol=1e-15)


def test_schedules_of_a_recipe() -> None:
    """Peak from the square-root rule at the end of the warm-up; prototypes frozen; weight decay without warm-up."""
    recipe = make_recipe()
    schedules = make_schedules(recipe)
    assert schedules.lr[0] == 0.0
    assert schedules.lr[9] == schedules.lr[10] == pytest.approx(0.001)
    assert not schedules.last_layer_lr[:5].any()
    np.testing.assert_array_equal(schedules.last_layer_lr[5:], schedules.lr[5:])
    assert schedules.weight_decay[0] == pytest.approx(0.04)
    assert schedules.momentum[0] == pytest.approx(0.992)
    assert schedules.momentum[-1] < 1.0
    assert schedules.teacher_temperature[29] == schedules.teacher_temperature[-1] == 0.07
    for values in dataclasses.asdict(schedules).values():
        assert values.dtype == np.float64
        assert len(values) == recipe.iterations


def test_schedules_equal_those_of_published_logs() -> None:
    """Every line of a public DINOv2 run holds our lr, wd, momentum and last layer's lr, as medians of 20 iterations."""
    path = LOGS / "failed-launch-then-run.training_metrics.json"
    if not path.exists():
        pytest.skip(f"the public log {path} is not here")
    schedules = make_schedules(PUBLIC_RUN)
    named = {
        "lr": schedules.lr,
        "wd": schedules.weight_decay,
        "mom": schedules.momentum,
        "last_layer_lr": schedules.last_layer_lr,
    }
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) > 600
    for line in lines:
        i = line["iteration"]
        for name, values in named.items():
            window = np.sort(values[max(0, i - 19) : i + 1])
            assert line[name] == pytest.approx(window[(len(window) - 1) // 2], rel=1e-12)


def test_bad_lengths_are_named() -> None:
    """A warm-up longer than the run, a negative freeze and an empty run are refused by their key."""
    for key, value in (("warmup_iterations", 101), ("warmup_iterations", -1), ("freeze_last_layer_iterations", -1)):
        with pytest.raises(ConfigError, match=rf"recipe\.optim\.{key}: {value}"):
            make_schedules(make_recipe(optim={key: value}))
    with pytest.raises(ConfigError, match=r"recipe\.iterations: 0"):
        make_schedules(make_recipe(iterations=0))
