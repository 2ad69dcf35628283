"""L2: what the trainer fed its networks - crops, photometric changes, masks - against the laws of the recipe.

The log's `mean_` columns of `franca.laws.DRAWS` are means over many crops: they wander by chance alone, and by less
with every line. So what is tested is their mean over the run so far. Of two runs on the same images it is tested too
that they agree, where both logs have the columns: how large a crop can be depends on the images' shapes.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from franca.config import Recipe
from franca.laws import AREAS, DRAWS, MASKED, PIXELS, Law, make_laws
from reproduce.checks import Check, Evidence, plural, quote
from reproduce.layers.configuration import load_recipe
from reproduce.lineage import History, log_period
from reproduce.records import MEANS

Array = NDArray[np.float64]

LIMIT = 6.0  # standard deviations: two-sided 2e-9 a look, so that thousands of looks at 15 columns stay below 1e-4
FLOOR = 2e-3  # of a mean, absolute: rounding of boxes and counts of patches that the laws leave out
EXACT = 1e-6  # of a share that leaves nothing to chance: float32

GROUPS = {
    "crops": ("Sizes of the crops", AREAS),
    "pixels": ("Flips, colors and blur", PIXELS),
    "masks": ("Masked patches", MASKED),
}
NAMES = {
    "global_area": "the share of its image that a global crop covers",
    "local_area": "the share of its image that a local crop covers",
    "flipped": "the share of flipped crops",
    "gray": "the share of gray crops",
    "solarized": "the share of solarized second global crops",
    "blurred_global_1": "the share of blurred first global crops",
    "blurred_global_2": "the share of blurred second global crops",
    "blurred_local": "the share of blurred local crops",
    "blur_sigma": "the blur's width in pixels",
    "brightness": "the change of brightness",
    "contrast": "the change of contrast",
    "saturation": "the change of saturation",
    "hue": "the turn of the hue",
    "masked_crops": "the share of masked global crops",
    "masked_patches": "the share of masked patches",
}

BLANK = Check(
    id="draws",
    layer="L2",
    title="",
    state="unknown",
    finding="The log has no such column.",
    value=None,
    limit=LIMIT,
    unit="standard deviations",
    iteration=None,
    evidence=(),
    says="On average the program fed its networks what the recipe says.",
    cannot_say="How it computed the pixels, and from which images.",
)


@dataclass(frozen=True, eq=False)
class Running:
    """The mean of one draw up to each line: [lines] iterations, means, and images they are taken over."""

    iterations: NDArray[np.int64]
    means: Array
    images: Array


@dataclass(frozen=True)
class Departure:
    """Where a draw is off first, by `z` standard deviations of what is expected, and that as a part of a sentence."""

    iteration: int
    said: str
    z: float
    evidence: tuple[Evidence, ...]


def check_draws(mine: History, *, references: Sequence[History]) -> tuple[Check, ...]:
    """A check for crops, pixels and masks each; none where the log has no such columns or says no recipe."""
    recipe = load_recipe(mine)
    if recipe is None or not any(MEANS + name in record.values for record in mine.lineage.records for name in DRAWS):
        return ()
    laws = make_laws(recipe)
    return tuple(_check_group(group, mine, recipe=recipe, laws=laws, references=references) for group in GROUPS)


def _check_group(
    group: str, mine: History, *, recipe: Recipe, laws: Mapping[str, Law], references: Sequence[History]
) -> Check:
    title, draws = GROUPS[group]
    blank = dataclasses.replace(BLANK, id=f"draws-{group}", title=title)
    batch = recipe.global_batch
    runs = {draw: _running(mine, draw, batch=batch) for draw in draws}
    lines = max(len(run.means) for run in runs.values())
    if not lines:
        return blank
    blank = dataclasses.replace(blank, evidence=tuple(_list_means(mine, runs, laws=laws)))
    others = [run for run in references if _same_input(recipe, load_recipe(run))]
    found = list[Departure]()
    for draw, run in runs.items():
        found += _against_law(mine, draw, run, law=laws[draw])
        found += _against_runs(mine, draw, run, others=others, law=laws[draw], batch=batch)
    if not found:
        worst = max(_from_law(run, laws[draw]).max(initial=0.0) for draw, run in runs.items())
        same = f"{plural(len(draws), 'mean')} are what the recipe gives, on {plural(lines, 'line')}."
        return dataclasses.replace(blank, state="pass", finding=same, value=float(worst))
    first = min(found, key=lambda departure: departure.iteration)
    finding = f"Up to iteration {first.iteration:,} {first.said}."
    return dataclasses.replace(
        blank,
        state="fail",
        finding=finding,
        value=first.z,
        iteration=first.iteration,
        evidence=(*first.evidence, *blank.evidence),
    )


def _list_means(mine: History, runs: Mapping[str, Running], *, laws: Mapping[str, Law]) -> Iterator[Evidence]:
    """Every mean over the run so far beside what it should be."""
    for draw, run in runs.items():
        if len(run.means):
            found = f"{draw}: {run.means[-1]:.4g} on average to iteration {run.iterations[-1]:,}"
            yield Evidence(str(mine.log_path or mine.path), None, f"{found}; the recipe gives {_say(laws[draw])}")


def _say(law: Law) -> str:
    return f"{law.low:.4g}" if law.low == law.high else f"{law.low:.4g} to {law.high:.4g}"


def _running(history: History, draw: str, *, batch: int) -> Running:
    """A line's mean is over the iterations since the line before; where lines are missing, over a period at least."""
    records = [record for record in history.lineage.records if MEANS + draw in record.values]
    if not records:
        return Running(np.array([], dtype=np.int64), np.array([]), np.array([]))
    at = np.array([record.iteration for record in records], dtype=np.int64)
    values = np.array([record.values[MEANS + draw] for record in records])
    period = log_period(history.lineage.records)
    covered = np.minimum(np.diff(at, prepend=-1), period)
    total = np.cumsum(covered)
    return Running(at, np.cumsum(values * covered) / total, total * float(batch))


def _from_law(run: Running, law: Law) -> Array:
    """How far each mean lies outside its law, in standard deviations."""
    beyond = np.maximum(np.maximum(law.low - run.means, run.means - law.high), 0.0)
    return beyond / _errors(law, run.images)


def _errors(law: Law, images: Array) -> Array:
    """Standard errors of means over so many images, and what the laws leave out, which `LIMIT` of them allow."""
    if not law.spread:
        return np.full(len(images), EXACT / LIMIT)
    return np.hypot(law.spread / np.sqrt(images), FLOOR / LIMIT)


def _against_law(mine: History, draw: str, run: Running, *, law: Law) -> Iterator[Departure]:
    z = _from_law(run, law)
    outside = np.flatnonzero(~(z <= LIMIT))
    if len(outside):
        place = int(outside[0])
        at = int(run.iterations[place])
        said = f"{NAMES[draw]} is {run.means[place]:.4g} on average; the recipe gives {_say(law)}"
        yield Departure(at, said, float(z[place]), quote(mine, at, metric=MEANS + draw))


def _against_runs(
    mine: History, draw: str, run: Running, *, others: Sequence[History], law: Law, batch: int
) -> Iterator[Departure]:
    """The first line on which the run's mean is not that of the reference runs up to there, all together."""
    images, total = np.zeros(len(run.means)), np.zeros(len(run.means))
    for other in others:
        theirs = _running(other, draw, batch=batch)
        place = np.searchsorted(theirs.iterations, run.iterations, side="right") - 1
        known = place >= 0
        images[known] += theirs.images[place[known]]
        total[known] += (theirs.images * theirs.means)[place[known]]
    common = np.flatnonzero(images)
    means = total[common] / images[common]
    errors = np.hypot(_errors(law, run.images[common]), _errors(law, images[common]))
    z = np.abs(run.means[common] - means) / errors
    outside = np.flatnonzero(~(z <= LIMIT))
    if len(outside):
        first = int(outside[0])
        line = int(common[first])
        at = int(run.iterations[line])
        said = f"{NAMES[draw]} is {run.means[line]:.4g} on average; the reference runs have {means[first]:.4g}"
        yield Departure(at, said, float(z[first]), quote(mine, at, metric=MEANS + draw))


def _same_input(mine: Recipe, other: Recipe | None) -> bool:
    """Whether two recipes ask for the same draws from the same data set; else L0 tells that they are variants."""
    return other is not None and all(
        getattr(mine, key) == getattr(other, key) for key in ("data", "crops", "augment", "masking", "quirks")
    )
