"""What a run comes out at: its last k-NN accuracy and its losses over the last octave, each against its margin.

Equivalence is two one-sided tests: the 90 % interval of the difference inside the margin, fixed before the launch.
A run that deviates significantly and is not surely within the margin is better or worse. Neither: consistent.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from reproduce.bands import t_quantile
from reproduce.checks import MetricResult, MetricState, plural
from reproduce.curves import BLOCKS_PER_OCTAVE, is_accuracy
from reproduce.layers.knn import CONFIDENCE, FLOOR_POINTS, KnnBand, assumed_spread, interval, primary_k
from reproduce.layers.losses import LossBands
from reproduce.lineage import History, say_when
from reproduce.spec import Metric, Spec

KNN = "knn_top1"
RANDOM = "k-NN is that of random weights: no evaluation of the trained network can be compared."
LOWER_IS_NOT_BETTER = "A lower loss is no better result: what counts is whether it is the same."


def make_knn_results(
    mine: History,
    *,
    references: Sequence[History],
    band: KnnBand | None,
    spec: Spec | None,
    margin: float,
    alpha: float,
) -> tuple[MetricResult, ...]:
    """The last k-NN accuracy: against three or more reference runs, else against the published value, else against
    the one or two there are; none where nothing can be compared."""
    metric = next((metric for metric in spec.metrics if metric.name == KNN), None) if spec else None
    published = metric if metric is not None and metric.target is not None else None
    if band is not None and (not band.assumed or published is None):
        return (_against_runs(band, mine, metric=metric, margin=margin),)
    k = primary_k(mine, references)
    if published is None or k is None or not mine.knn:
        return ()
    return (_against_target(mine, k=k, metric=published, margin=margin, alpha=alpha),)


def make_loss_results(bands: LossBands | None, *, margin_relative: float) -> tuple[MetricResult, ...]:
    """Every loss over the last octave that both sides have finished, against the reference runs' mean."""
    if bands is None:
        return ()
    return tuple(
        result
        for place in range(len(bands.metrics))
        if (result := _loss_result(bands, place, margin_relative=margin_relative)) is not None
    )


def _against_runs(band: KnnBand, mine: History, *, metric: Metric | None, margin: float) -> MetricResult:
    place = int(np.flatnonzero(np.isfinite(band.mine))[-1])
    low, high = interval(band, place)
    reach = float(band.limits.critical * band.limits.scale[0, place])
    notes = [] if not band.assumed else ["The spread between seeds is assumed: fewer than three runs cannot tell it."]
    if place < len(band.done) - 1:
        done, last = int(band.done[place]), int(band.done[-1])
        notes.append(f"k-NN is compared {say_when(done, mine)}, not {say_when(last, mine)}.")
    difference = float(band.mine[place] - band.limits.center[0, place])
    trained = bool(band.done[place])
    if not trained:
        notes.append(RANDOM)
    title = metric.label if metric else f"k-NN top-1, k = {band.k}"
    state = _state(difference, low, high, reach=reach, margin=margin, higher_is_better=True)
    return MetricResult(
        name=KNN,
        title=title if trained else f"{title}, of random weights",
        unit="%",
        state=state if trained else "unknown",
        iteration=int(band.done[place]),
        mine=float(band.mine[place]),
        target=metric.target if metric else None,
        target_source=_target_source(metric),
        basis=f"mean of {plural(len(band.references), 'reference run')}",
        center=float(band.limits.center[0, place]),
        references=tuple(band.references[:, place].tolist()),
        difference=difference,
        low=low,
        high=high,
        confidence=CONFIDENCE,
        margin=margin,
        detectable=reach,
        note=" ".join(notes),
    )


def _against_target(mine: History, *, k: int, metric: Metric, margin: float, alpha: float) -> MetricResult:
    """One published value: neither its seed's spread nor ours is known, and both are assumed."""
    assert metric.target is not None
    done = max(done for done, point in mine.knn.items() if k in point)
    accuracy = mine.knn[done][k]
    difference = accuracy - metric.target
    scale = math.hypot(math.sqrt(2) * assumed_spread(mine, metric.target), FLOOR_POINTS)
    interval_reach = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * scale
    low, high = difference - interval_reach, difference + interval_reach
    reach = NormalDist().inv_cdf(1 - alpha / 2) * scale
    finished = done > 0 and (mine.total is None or done >= mine.total)
    notes = ["The spread between seeds is assumed: one published number cannot tell it."]
    if not done:
        notes.append(RANDOM)
    elif not finished:
        notes.append(f"After {done:,} of {mine.total:,} iterations, so it is not held against the final value yet.")
    return MetricResult(
        name=KNN,
        title=metric.label,
        unit="%",
        state=_state(difference, low, high, reach=reach, margin=margin, higher_is_better=True)
        if finished
        else "unknown",
        iteration=done,
        mine=accuracy,
        target=metric.target,
        target_source=_target_source(metric),
        basis="published value",
        center=metric.target,
        references=(),
        difference=difference,
        low=low,
        high=high,
        confidence=CONFIDENCE,
        margin=margin,
        detectable=reach,
        note=" ".join(notes),
    )


def _loss_result(bands: LossBands, place: int, *, margin_relative: float) -> MetricResult | None:
    known = np.flatnonzero(np.isfinite(bands.z[place]))[-BLOCKS_PER_OCTAVE:]
    if not len(known):
        return None
    mine = float(bands.mine[place, known].mean())
    theirs = bands.references[:, place, known].mean(axis=1)
    difference = mine - float(theirs.mean())
    # Averaging inside a run does not take its wander away: the scale of single blocks is kept.
    scale = float(bands.limits.scale[place, known].mean())
    n, more_is_better = len(theirs), is_accuracy(bands.metrics[place])
    tail = (1 + CONFIDENCE) / 2
    reach = scale * (t_quantile(tail, degrees=n - 1) if n >= 3 else NormalDist().inv_cdf(tail))
    margin = float(margin_relative * bands.scales[place])
    detectable = float(bands.limits.critical * scale)
    low, high = difference - reach, difference + reach
    return MetricResult(
        name=bands.metrics[place],
        title=f"{bands.metrics[place]}, last octave",
        unit="",
        state=_state(difference, low, high, reach=detectable, margin=margin, higher_is_better=more_is_better),
        iteration=int(bands.edges[1:][known[-1]]) + 1,
        mine=mine,
        target=None,
        target_source="",
        basis=f"mean of {plural(n, 'reference run')}",
        center=float(theirs.mean()),
        references=tuple(theirs.tolist()),
        difference=difference,
        low=low,
        high=high,
        confidence=CONFIDENCE,
        margin=margin,
        detectable=detectable,
        note="" if more_is_better else LOWER_IS_NOT_BETTER,
    )


def _state(
    difference: float, low: float, high: float, *, reach: float, margin: float, higher_is_better: bool
) -> MetricState:
    if -margin < low and high < margin:
        return "reproduced"
    if abs(difference) <= reach:
        return "consistent"
    return "better" if (difference > 0) == higher_is_better else "worse"


def _target_source(metric: Metric | None) -> str:
    if metric is None or metric.target is None:
        return ""
    return next(
        (str(source) for value in metric.values if value.value == metric.target for source in value.sources), ""
    )
