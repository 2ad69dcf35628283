"""Histories and bands in, captions out: a title that states the conclusion of a figure, a sentence with its numbers."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from reproduce.checks import Band, Check
from reproduce.figures.svg import Floats
from reproduce.lineage import History, say_when
from reproduce.logs import Record
from reproduce.quantities import make_legible, metric_title, plural


def series(records: Iterable[Record], metric: str) -> tuple[Floats, Floats]:
    """The logged values of a metric over iterations done (a line's iteration counts from 0)."""
    return as_columns([(record.iteration + 1, record.values[metric]) for record in records if metric in record.values])


def as_columns(points: Sequence[tuple[float, float]]) -> tuple[Floats, Floats]:
    """Points as two arrays: where they are, and their values."""
    table = np.array(points, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def has_metric(history: History, metric: str) -> bool:
    """Whether any line of the run logs the metric."""
    return any(metric in record.values for record in history.lineage.records)


def describe_band(metric: str, *, band: Band | None, references: int, counted: str = "iteration") -> tuple[str, str]:
    """What a band says of its metric: a title that states the conclusion, and a sentence with the numbers."""
    name = metric_title(metric)
    tested = [] if band is None else [(end, z) for end, z in zip(band.ends, band.z, strict=True) if z is not None]
    if band is None or not tested:
        if not references:
            return f"{name}: nothing to compare with", "No reference run is at hand; the curve is shown as logged."
        return f"{name}: shown, not tested", f"Shown beside {plural(references, 'reference run')}; no band judges it."
    greatest = max(abs(z) for _, z in tested)
    outside = [end for end, z in tested if abs(z) > band.critical]
    unit = "blocks" if band.kind == "loss" else "evaluations"
    numbers = f"|z| reaches {greatest:.2f}; the limit is {band.critical:.2f}"
    ground = f"against {plural(band.references, 'reference run')}"
    if outside:
        title = f"{name} leaves the band by {counted} {outside[0]:,}"
        return title, f"{len(outside)} of {len(tested)} {unit} lie outside: {numbers}, {ground}."
    return f"{name} stays inside the band", f"All {len(tested)} {unit} lie inside: {numbers}, {ground}."


def describe_schedule(metric: str, *, checks: Sequence[Check]) -> tuple[str, str]:
    """What the checks of a schedule column say; nothing where none could be made."""
    name = metric_title(metric)
    own = [check for check in checks if check.id in (f"schedule-{metric}", f"column-{metric}")]
    states = {check.state for check in own}
    caption = " ".join(make_legible(check.finding) for check in own if check.state != "unknown")
    if "fail" in states or "warn" in states:
        return f"{name} is another one", caption
    return (f"{name} is the one it should be", caption) if "pass" in states else (name, "As logged; not compared.")


def describe_knn(k: int, *, mine: History, references: Sequence[History], band: Band | None) -> tuple[str, str]:
    """The last evaluation of mine beside the reference runs' at the same iteration."""
    points = knn_points(mine.knn, k)
    if not points:
        return f"k-NN, k = {k}: not evaluated yet", "The run holds no evaluation."
    done, value = points[-1]
    same = [run.knn[done][k] for run in references if done in run.knn and k in run.knn[done]]
    title = f"k-NN (k = {k}) reaches {value:.2f} % {say_when(done, mine)}"
    if not same:
        return title, "No reference run was evaluated at that iteration."
    verdict = "" if band is None else describe_band("k-NN", band=band, references=len(references))[1]
    beside = f"The reference run stands at {same[0]:.2f}"
    if len(same) > 1:
        beside = f"The reference runs stand at {min(same):.2f} to {max(same):.2f}"
    return title, f"{beside} % there. {verdict}".strip()


def knn_points(knn: Mapping[int, Mapping[int, float]], k: int) -> list[tuple[int, float]]:
    return [(done, knn[done][k]) for done in sorted(knn) if k in knn[done] and math.isfinite(knn[done][k])]
