"""L2: the columns that a recipe determines - lr, wd, mom, last_layer_lr, teacher_temp, batch size - line by line.

They hold no randomness: a run of the same recipe prints the same numbers, so a run that does not is another recipe,
whatever its configuration says. Text lines round to 4 decimals; there, what is compared is when the digits tick over.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from franca.config import Recipe
from franca.schedules import make_schedules
from reproduce.checks import Check, Evidence, plural, quote, the_references
from reproduce.curves import MEDIAN_WINDOW, SCHEDULES, full_windows
from reproduce.layers.configuration import known_recipe, koleo_images, load_recipe
from reproduce.lineage import History
from reproduce.logs import TEXT

Array = NDArray[np.float64]

# One odd line is no other schedule: rounding may tip a digit one line later, and a process that resumed exactly where
# the last one ended shows in no other way than by up to two lines whose median is of fewer iterations.
STREAK = 3
RELATIVE = 1e-6  # float32 medians of float64 schedules differ by 6e-8 at most
ROUNDING = 0.5e-4 * (1 + 1e-6)  # of a text log's 4 decimals

TITLES = {
    "lr": "Learning rate",
    "wd": "Weight decay",
    "mom": "Teacher momentum",
    "last_layer_lr": "Learning rate of the last layer",
    "current_batch_size": "Batch size",
    "teacher_temp": "Teacher temperature",
}
BATCH, TEMPERATURE = "current_batch_size", "teacher_temp"  # the latter is in this trainer's JSON lines alone


def check_schedules(mine: History, *, references: Sequence[History]) -> tuple[Check, ...]:
    """Every schedule column against the run's own recipe, and against the reference runs."""
    checks = []
    recipe = load_recipe(mine)
    if recipe is not None:
        logged = any(TEMPERATURE in record.values for record in mine.lineage.records)
        columns = [column for column in SCHEDULES if column != BATCH] + [TEMPERATURE] * logged
        checks += [_check_against_recipe(mine, column, recipe=recipe) for column in columns]
    if references:
        checks += [_check_against_references(mine, column, references=references) for column in SCHEDULES]
    return tuple(checks)


def expected_medians(values: Array, iterations: NDArray[np.int64]) -> Array:
    """What is printed at each of `iterations`: the lower median of the last 20 of `values`, fewer at the start."""
    expected = np.empty(len(iterations))
    early = iterations < MEDIAN_WINDOW - 1
    for place in np.flatnonzero(early):
        window = np.sort(values[: iterations[place] + 1])
        expected[place] = window[(len(window) - 1) // 2]
    windows = np.lib.stride_tricks.sliding_window_view(values, min(MEDIAN_WINDOW, len(values)))
    late = windows[iterations[~early] - MEDIAN_WINDOW + 1] if (~early).any() else np.empty((0, MEDIAN_WINDOW))
    expected[~early] = np.sort(late, axis=1)[:, (MEDIAN_WINDOW - 1) // 2]
    return expected


def first_streak(differs: NDArray[np.bool_]) -> int | None:
    """The place where `STREAK` consecutive lines differ first; all of them where there are fewer."""
    length = min(STREAK, len(differs))
    if not length:
        return None
    runs = np.lib.stride_tricks.sliding_window_view(differs, length).all(axis=1)
    return int(np.argmax(runs)) if runs.any() else None


def _check_against_recipe(mine: History, column: str, *, recipe: Recipe) -> Check:
    blank = _blank(f"schedule-{column}", f"{TITLES[column]}: its own recipe")
    schedules = make_schedules(recipe)
    values = {
        "lr": schedules.lr,
        "wd": schedules.weight_decay,
        "mom": schedules.momentum,
        "last_layer_lr": schedules.last_layer_lr,
        TEMPERATURE: schedules.teacher_temperature,
    }[column]
    iterations, logged = _column(mine, column)
    inside = iterations < len(values)
    iterations, logged = iterations[inside], logged[inside]
    if not len(iterations):
        return dataclasses.replace(blank, finding=f"The log has no column {column}.")
    expected = expected_medians(values, iterations)
    tolerance = ROUNDING if _is_text(mine) else np.maximum(RELATIVE * np.abs(expected), 1e-12)
    place = first_streak(~(np.abs(logged - expected) <= tolerance))
    if place is None:
        same = f"{column} is what the recipe gives on all {plural(len(iterations), 'line')} compared."
        return dataclasses.replace(blank, state="pass", finding=same, value=0.0)
    at = int(iterations[place])
    computed = Evidence("recipe", None, f"iteration {at}: {column}: {expected[place]:.8g} (computed)")
    return dataclasses.replace(
        blank,
        state="fail",
        finding=f"{column} is {logged[place]:.6g} at iteration {at:,}; the recipe gives {expected[place]:.6g}.",
        value=_worst(logged, expected),
        iteration=at,
        evidence=(*quote(mine, at, metric=column), computed),
    )


def _check_against_references(mine: History, column: str, *, references: Sequence[History]) -> Check:
    blank = _blank(f"column-{column}", f"{TITLES[column]}: the reference runs")
    compared, broken = 0, list[tuple[History, int, float, float, float]]()
    lines = 0
    for reference in references:
        at, own, theirs = _common(mine, reference, column)
        if not len(at):
            continue
        compared, lines = compared + 1, max(lines, len(at))
        tolerance = _tolerance(mine, reference, theirs)
        place = first_streak(~(np.abs(own - theirs) <= tolerance))
        if place is not None:
            broken.append((reference, int(at[place]), own[place], theirs[place], _worst(own, theirs)))
    if not compared:
        missing = f"The run or the reference runs have no column {column}, or no line in common."
        return dataclasses.replace(blank, finding=missing)
    if not broken:
        same = f"{column} is the same on all {plural(lines, 'common line')} with {the_references(compared)}."
        return dataclasses.replace(
            blank, state="pass", finding=same, value=0.0, cannot_say=_resolution(mine, references)
        )
    reference, iteration, own_value, their_value, worst = broken[0]
    finding = f"{column} is {own_value:.6g} at iteration {iteration:,} where {reference.name} has {their_value:.6g}."
    if len(broken) < compared:
        finding += f" It agrees with {compared - len(broken)} of {compared} reference runs."
    excused = column == BATCH and _same_global_batch(mine, reference) and _adds_up(mine, own_value)
    if excused:
        finding += " The global batch is the same: it is split otherwise"
        grouped = koleo_images(mine) is not None and koleo_images(mine) == koleo_images(reference)
        finding += ", and KoLeo's groups are the same." if grouped else ", so KoLeo's neighbors are others."
    return dataclasses.replace(
        blank,
        state="warn" if excused or len(broken) < compared else "fail",
        finding=finding,
        value=worst,
        iteration=iteration,
        evidence=(*quote(mine, iteration, metric=column), *quote(reference, iteration, metric=column)),
    )


def _blank(identifier: str, title: str) -> Check:
    return Check(
        id=identifier,
        layer="L2",
        title=title,
        state="unknown",
        finding="",
        value=None,
        limit=RELATIVE,
        unit="relative difference",
        iteration=None,
        evidence=(),
        says="The trainer was driven by this schedule, from the first line to the last.",
        cannot_say="Whether the optimizer applied the value to every parameter.",
    )


def _column(history: History, column: str) -> tuple[NDArray[np.int64], Array]:
    """Iterations and values of a column, on the lines whose medians rest on a full window."""
    full = full_windows(history.lineage)
    points = [
        (record.iteration, record.values[column])
        for record, whole in zip(history.lineage.records, full, strict=True)
        if whole and column in record.values
    ]
    return np.array([at for at, _ in points], dtype=np.int64), np.array([value for _, value in points])


def _common(mine: History, reference: History, column: str) -> tuple[NDArray[np.int64], Array, Array]:
    own_at, own = _column(mine, column)
    their_at, theirs = _column(reference, column)
    at, own_place, their_place = np.intersect1d(own_at, their_at, assume_unique=True, return_indices=True)
    return at, own[own_place], theirs[their_place]


def _tolerance(mine: History, reference: History, theirs: Array) -> Array | float:
    """Two text logs print equal digits; a text log and a JSON log agree to rounding, two JSON logs to float32."""
    if _is_text(mine) != _is_text(reference):
        return ROUNDING
    return 1e-9 if _is_text(mine) else np.maximum(RELATIVE * np.abs(theirs), 1e-12)


def _is_text(history: History) -> bool:
    return history.dialect in TEXT


def _resolution(mine: History, references: Sequence[History]) -> str:
    text = any(map(_is_text, (mine, *references)))
    rounded = " The text log rounds to 4 decimals, so a difference that never tips a digit is not seen." if text else ""
    return f"Whether the optimizer applied the value to every parameter.{rounded}"


def _same_global_batch(mine: History, reference: History) -> bool:
    own, theirs = (known_recipe(run).get("global_batch") for run in (mine, reference))
    return own is not None and own == theirs


def _adds_up(mine: History, logged: float) -> bool:
    """Whether the logged batch of a process makes the recipe's global batch, where the run says over how many."""
    execution = (mine.config or {}).get("execution")
    if not execution:
        return True
    parts = execution["processes"] * execution["accumulation"]
    return bool(round(logged) * parts == known_recipe(mine).get("global_batch"))


def _worst(one: Array, other: Array) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.abs(one - other) / np.maximum(np.abs(one), np.abs(other))
    finite = relative[np.isfinite(relative)]
    return float(finite.max()) if len(finite) else 1.0
