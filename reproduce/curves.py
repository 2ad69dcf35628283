"""A history in, curves out: one metric over iterations with the statistic that it holds, and log-spaced block means.

A logged value is the lower median of the last 20 iterations, so neighboring lines overlap by half. Block means are
exact where the log allows it: from our `mean_` keys, which tile the run, or from the means since process start that
text lines print in brackets, of which n·g differences telescope.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reproduce.lineage import History, Lineage, log_period
from reproduce.logs import Record

Statistic = Literal["raw", "median-20", "block mean", "global average"]

LOSSES = ("dino_local_crops_loss", "dino_global_crops_loss", "ibot_loss", "koleo_loss")
TOTAL = "total_loss"
SCHEDULES = ("lr", "wd", "mom", "last_layer_lr", "current_batch_size")
MEDIAN_WINDOW = 20  # dinov2 logging/helpers.py: SmoothedValue(window_size=20)
BLOCKS_PER_OCTAVE = 4
FIRST_BLOCK = 20  # iterations: before them a median's window is not full
OVERLAP_INFLATION = (
    1.8  # of the variance of a mean of printed medians: lag-1 correlation 0.4, measured on 11 public logs
)


@dataclass(frozen=True, eq=False)
class Curve:
    """One metric as logged. `iterations` are int64 and rise; `values` are float64 and may be non-finite."""

    metric: str
    statistic: Statistic
    iterations: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Blocks:
    """Means of a metric over blocks of iterations (start, end], log-spaced; NaN where a block could not be formed.

    `errors` are standard errors of the means from the scatter inside the block, `counts` the iterations they rest on.
    """

    metric: str
    statistic: Statistic
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    means: NDArray[np.float64]
    errors: NDArray[np.float64]
    counts: NDArray[np.int64]


def is_accuracy(metric: str) -> bool:
    """Whether more of a logged metric is better: timm's and DINO's accuracies are columns beside the losses."""
    return re.search(r"top-?[15]|acc", metric, re.IGNORECASE) is not None


def make_curve(history: History, metric: str) -> Curve:
    """A metric as its log holds it: each line's own value where there is one, else the median of 20."""
    records = history.lineage.records
    raw = f"raw_{metric}"
    if any(raw in record.values for record in records):
        return _curve(records, metric, key=raw, statistic="raw")
    return _curve(records, metric, key=metric, statistic="median-20")


def make_median_curve(history: History, metric: str) -> Curve:
    """A metric as every dialect prints it: the lower median of the last 20 iterations."""
    return _curve(history.lineage.records, metric, key=metric, statistic="median-20")


def block_edges(last: int, *, period: int = 10, first: int = FIRST_BLOCK) -> NDArray[np.int64]:
    """The ends of log-spaced blocks: quarter octaves down from iteration `last`, on logged iterations, above `first`.

    Blocks are counted from the end, so that runs of one recipe share theirs however far each has come.
    """
    if last <= first:
        return np.array([], dtype=np.int64)
    octaves = np.log2(last / first)
    ends = last * 2.0 ** (-np.arange(int(octaves * BLOCKS_PER_OCTAVE) + 1) / BLOCKS_PER_OCTAVE)
    logged = np.unique(np.round(ends[1:] / period).astype(np.int64) * period)
    return np.append(logged[(logged >= first) & (logged < last)], last)


def make_blocks(history: History, metric: str, *, edges: NDArray[np.int64], exact: bool) -> Blocks:
    """Block means of `metric` between consecutive `edges`; `exact` as `has_exact_means` allows, else from medians.

    Records after a resume are left out of medians until their window is full again.
    """
    lineage = _exact_source(history, metric) if exact else history.lineage
    assert lineage is not None
    iterations, sums, counts, statistic = _windows(lineage, metric, exact=exact)
    place = np.searchsorted(edges, iterations, side="left") - 1  # (edges[b], edges[b + 1]]
    inside = (place >= 0) & (place < len(edges) - 1) & (counts > 0)
    blocks = max(len(edges) - 1, 0)
    place, sums, counts, iterations = place[inside], sums[inside], counts[inside], iterations[inside]
    count = np.bincount(place, weights=counts, minlength=blocks)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.bincount(place, weights=sums, minlength=blocks) / count
    reached = iterations[-1] if len(iterations) else -1
    means[edges[1:] > reached] = np.nan  # a block that the run has not finished
    return Blocks(
        metric=metric,
        statistic=statistic,
        starts=edges[:-1],
        ends=edges[1:],
        means=means,
        errors=_block_errors(history, metric, edges),
        counts=np.where(np.isfinite(means), count, 0).astype(np.int64),
    )


def has_exact_means(history: History, metric: str) -> bool:
    """Whether block means of `metric` can be computed exactly: `mean_` keys, or finite means since process start."""
    return _exact_source(history, metric) is not None


def full_windows(lineage: Lineage) -> NDArray[np.bool_]:
    """For each record, whether its medians rest on 20 iterations, or on all there were since iteration 0.

    After a resume the window starts anew.
    """
    starts = sorted(launch.start for launch in lineage.launches if launch.start > 0)
    iterations = np.array([record.iteration for record in lineage.records], dtype=np.int64)
    full = np.ones(len(iterations), dtype=np.bool_)
    for start in starts:
        full &= ~((iterations >= start) & (iterations < start + MEDIAN_WINDOW))
    return full


def _curve(records: Sequence[Record], metric: str, *, key: str, statistic: Statistic) -> Curve:
    points = [(record.iteration, record.values[key]) for record in records if key in record.values]
    iterations = np.array([iteration for iteration, _ in points], dtype=np.int64)
    return Curve(metric, statistic, iterations, np.array([value for _, value in points], dtype=np.float64))


def _exact_source(history: History, metric: str) -> Lineage | None:
    """The lineage whose records hold exact means of `metric`: all of them do, and all are finite."""
    for lineage in (history.lineage, history.text):
        if lineage is None or not lineage.records:
            continue
        own = f"mean_{metric}"
        values = [
            record.values.get(own, record.averages.get(metric, np.nan) if record.averages else np.nan)
            for record in lineage.records
        ]
        if np.isfinite(values).all():
            return lineage
    return None


def _windows(
    lineage: Lineage, metric: str, *, exact: bool
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], Statistic]:
    """Per record: iteration, sum over the iterations that it stands for, their count; and the statistic of that."""
    records = lineage.records
    iterations = np.array([record.iteration for record in records], dtype=np.int64)
    before = np.concatenate(([-1], iterations[:-1])) if len(iterations) else iterations
    counts = np.asarray(iterations - before, dtype=np.float64)
    own = f"mean_{metric}"
    if not exact:
        values = np.array([record.values.get(metric, 0.0) for record in records], dtype=np.float64)
        there = np.array([metric in record.values for record in records], dtype=np.bool_)  # not every line has all
        counts = np.asarray(log_period(records) * (full_windows(lineage) & there), dtype=np.float64)
        return iterations, values * counts, counts, "median-20"
    if own in records[0].values:
        return iterations, np.array([record.values[own] for record in records]) * counts, counts, "block mean"
    starts = _process_starts(lineage)
    since_start = iterations - starts + 1.0
    totals = since_start * np.array([record.averages[metric] for record in records if record.averages])
    continued = np.concatenate(([False], np.diff(starts) == 0))
    sums = totals - np.where(continued, np.roll(totals, 1), 0.0)
    counts = np.asarray(since_start - np.where(continued, np.roll(since_start, 1), 0.0), dtype=np.float64)
    return iterations, sums, counts, "global average"


def _process_starts(lineage: Lineage) -> NDArray[np.int64]:
    """For each record, the first iteration that its process logged: what its means since process start begin with."""
    lines = np.array([record.line for record in lineage.records])
    first_lines = np.array([launch.first_line for launch in lineage.launches])
    starts = np.array([launch.start for launch in lineage.launches], dtype=np.int64)
    return starts[np.searchsorted(first_lines, lines, side="right") - 1]


def _block_errors(history: History, metric: str, edges: NDArray[np.int64]) -> NDArray[np.float64]:
    """Standard errors of block means from the scatter of the printed medians, their overlap allowed for."""
    curve = make_median_curve(history, metric)
    errors = np.full(max(len(edges) - 1, 0), np.nan)
    bounds = np.searchsorted(curve.iterations, edges, side="right")
    for block, (low, high) in enumerate(itertools.pairwise(bounds)):
        if high - low >= 2:
            with np.errstate(invalid="ignore"):
                errors[block] = np.sqrt(OVERLAP_INFLATION * np.var(curve.values[low:high], ddof=1) / (high - low))
    return errors
