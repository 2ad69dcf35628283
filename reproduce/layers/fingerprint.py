"""L1: the losses of the first lines. Before the weights have moved they depend on little but what the program is.

Heads, prototypes, temperatures, centering, number of crops and initialization all show here, long before a curve does.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reproduce.bands import spread_band
from reproduce.checks import Check, CheckState, finite_number, plural, quote, the_references
from reproduce.curves import LOSSES, TOTAL, full_windows
from reproduce.lineage import History

Array = NDArray[np.float64]

LAST = 50  # iterations
FLOOR_RELATIVE, FLOOR = 1e-4, 1e-4  # of a standard deviation: other kernels' rounding, a text log's 4 decimals

# Five standard deviations over 11 public runs of one seed and recipe on 9 variants of their data, as a share of the
# value: dino 5e-4 of 10, ibot 0.013 of 2.8, koleo 0.023 of 0.65. For one or two references, which have no spread.
LIMITS = {
    "dino_local_crops_loss": 5e-5,
    "dino_global_crops_loss": 5e-5,
    "ibot_loss": 0.0046,
    "koleo_loss": 0.035,
}


FIRST_LINES = Check(
    id="first-lines",
    layer="L1",
    title=f"First lines, to iteration {LAST}",
    state="unknown",
    finding="The run and the reference runs have no first lines in common.",
    value=None,
    limit=None,
    unit="",
    iteration=None,
    evidence=(),
    says="Heads, temperatures, centering, crops and initialization are those of the reference runs.",
    cannot_say="Anything that acts only through training: the learning rate, the teacher's momentum, weight decay.",
)


def check_first_lines(mine: History, *, references: Sequence[History], alpha: float) -> tuple[Check, ...]:
    """The losses up to iteration 50 against the reference runs' spread, or against fixed limits of one or two."""
    if not references:
        return ()
    metrics, iterations, own, theirs = _first_lines(mine, references)
    if not len(iterations):
        return (FIRST_LINES,)
    if len(references) >= 3:
        ground, calibrated = the_references(len(references)), True
        floor = FLOOR_RELATIVE * np.abs(theirs).mean(axis=0) + FLOOR
        limits = spread_band(theirs, floor=floor, pool=0, alpha=alpha)
        center, z, limit, unit = limits.center, np.abs(limits.standardize(own)), limits.critical, "standard deviations"
    else:
        closest = max(range(len(references)), key=lambda place: _same_start(mine, references[place]))
        ground, calibrated = references[closest].name, _same_start(mine, references[closest])
        shares = np.array([LIMITS[metric] for metric in metrics])[:, None]
        center, limit, unit = theirs[closest], 1.0, "of the limit"
        z = np.abs(own - center) / (shares * np.abs(center) + FLOOR)
    check = dataclasses.replace(FIRST_LINES, value=finite_number(z.max()), limit=limit, unit=unit, state="pass")
    outside = ~(z <= limit)
    if not outside.any():
        finding = f"All losses of {plural(len(iterations), 'line')} up to iteration {LAST} are those of {ground}."
        twin = identical_run(mine, references)
        if twin is not None:
            finding += f" Every loss of every common line is that of {twin.name}, digit for digit."
        return (dataclasses.replace(check, finding=finding),)
    line = int(np.argmax(outside.any(axis=0)))
    metric = int(np.argmax(outside[:, line]))
    at = int(iterations[line])
    nearest = references[int(np.argmin(np.abs(theirs[:, metric, line] - own[metric, line])))]
    finding = (
        f"{metrics[metric]} is {own[metric, line]:.6g} at iteration {at} against {center[metric, line]:.6g} "
        f"in {ground}: {z[metric, line]:.1f} {unit}."
    )
    if not calibrated:
        finding += " Its seed or its split over processes is another, for which one run gives no limit."
    evidence = (*quote(mine, at, metric=metrics[metric]), *quote(nearest, at, metric=metrics[metric]))
    state: CheckState = "fail" if calibrated else "unknown"
    return (dataclasses.replace(check, state=state, finding=finding, iteration=at, evidence=evidence),)


def _first_lines(mine: History, references: Sequence[History]) -> tuple[list[str], NDArray[np.int64], Array, Array]:
    """Metrics, iterations, and the printed losses [metric, line] of mine and [run, metric, line] of the references."""
    runs = [
        {record.iteration: record.values for record in run.lineage.records if record.iteration <= LAST}
        for run in (mine, *references)
    ]
    iterations = sorted(set.intersection(*(set(run) for run in runs)))
    logged = [run[at] for run in runs for at in iterations]
    metrics = [metric for metric in LOSSES if all(metric in values for values in logged)]
    metrics = [
        metric for metric in metrics if all(math.isfinite(run[at][metric]) for run in runs[1:] for at in iterations)
    ]
    table = np.array([[[run[at][metric] for at in iterations] for metric in metrics] for run in runs], dtype=np.float64)
    if not metrics:
        iterations = []
    table = table.reshape(len(runs), len(metrics), len(iterations))
    return metrics, np.array(iterations, dtype=np.int64), table[0], table[1:]


def identical_run(
    mine: History, references: Sequence[History], *, metrics: Sequence[str] = (*LOSSES, TOTAL)
) -> History | None:
    """A reference run that did as many iterations and whose every common line holds the same values of `metrics`.

    Lines right after a resume are left out: their medians are of fewer iterations.
    """
    return next((run for run in references if mine.done == run.done > 0 and _repeats(mine, run, metrics)), None)


def _repeats(mine: History, reference: History, metrics: Sequence[str]) -> bool:
    theirs = {
        record.iteration: record
        for record, full in zip(reference.lineage.records, full_windows(reference.lineage), strict=True)
        if full
    }
    pairs = [
        (record, theirs[record.iteration])
        for record, whole in zip(mine.lineage.records, full_windows(mine.lineage), strict=True)
        if whole and record.iteration in theirs
    ]
    logged = any(key in one.values for one, _ in pairs for key in metrics)
    return logged and all(one.values.get(key) == other.values.get(key) for one, other in pairs for key in metrics)


def _same_start(mine: History, reference: History) -> bool:
    """Whether two runs say that they have one seed and one batch per process, so that they start alike."""
    batches = [run.lineage.records[0].values.get("current_batch_size") for run in (mine, reference)]
    return mine.seed is not None and mine.seed == reference.seed and batches[0] == batches[1]
