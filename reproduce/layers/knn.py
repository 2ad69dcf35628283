"""L5: the k-NN accuracy of the teacher, over the run and at its end: what decides the row."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from reproduce.bands import Limits, spread_band, t_quantile
from reproduce.checks import Band, Check, CheckState, Evidence, finite_numbers, plural, the_references
from reproduce.layers.configuration import known_recipe
from reproduce.lineage import History, say_when

Array = NDArray[np.float64]

POOL = 1  # evaluations each way
FLOOR_POINTS = 0.05 / math.sqrt(3)  # a published accuracy is rounded to 0.1
IMAGENET_SPREAD_POINTS = 0.15  # standard deviation between seeds on 50,000 images; an assumption, of no measurement
TAILS = 6  # degrees of freedom of Student's t; see reproduce/bands.py
# Thirty seeds of digits have 1.4 to 2.1 times the deviation of independent errors on each of the 360 test images, at
# every evaluation but that of random weights: training makes seeds differ too, not the test set alone. With 2.1 times
# it, as many of their 870 ordered pairs leave the limit as are meant to.
SEED_INFLATION = 2.1
CONFIDENCE = 0.9  # of the interval that must lie inside the margin: two one-sided tests at 5 %
NORMAL = NormalDist()


ASSUMED = " The spread between seeds is assumed, not measured."
CURVE = Check(
    id="knn-curve",
    layer="L5",
    title="k-NN over the run",
    state="pass",
    finding="",
    value=None,
    limit=None,
    unit="|z|",
    iteration=None,
    evidence=(),
    says="At no evaluation is the teacher better or worse than one more run like the references would be.",
    cannot_say="How good the features are at anything but this k-NN.",
)


@dataclass(frozen=True, eq=False)
class KnnBand:
    """Accuracies in percent at common evaluations. done [p] iterations, mine [p], references [n, p]."""

    k: int
    done: NDArray[np.int64]
    mine: Array
    references: Array
    limits: Limits
    assumed: bool

    @property
    def z(self) -> Array:
        return np.asarray(self.limits.standardize(self.mine[None])[0])


def primary_k(mine: History, references: Sequence[History]) -> int | None:
    """The number of neighbors that is compared: 10 where all have it, else the smallest that all have."""
    runs = [run for run in (mine, *references) if run.knn]
    common = set.intersection(*({k for point in run.knn.values() for k in point} for run in runs)) if runs else set()
    return 10 if 10 in common else min(common, default=None)


def make_knn_band(mine: History, *, references: Sequence[History], alpha: float) -> KnnBand | None:
    """The band over the evaluations that mine and all references with any share; None where there is none."""
    runs = [run for run in references if run.knn]
    k = primary_k(mine, runs)
    if k is None or not runs or not mine.knn:
        return None
    planned = sorted(set.intersection(*({done for done, point in run.knn.items() if k in point} for run in runs)))
    if not planned:
        return None
    theirs = np.array([[run.knn[done][k] for done in planned] for run in runs])
    own = np.array([mine.knn.get(done, {}).get(k, np.nan) for done in planned])
    if not np.isfinite(own).any():
        return None
    if len(runs) >= 3:
        floor = np.full((1, len(planned)), FLOOR_POINTS)
        limits = spread_band(theirs[:, None], floor=floor, pool=POOL, alpha=alpha, tails=TAILS)
    else:
        center = theirs.mean(axis=0)
        spreads = [assumed_spread(mine, accuracy) for accuracy in center]
        scale = np.hypot(spreads, FLOOR_POINTS) * math.sqrt(1 + 1 / len(runs))
        limits = Limits(center[None], scale[None], NORMAL.inv_cdf(1 - alpha / (2 * len(planned))))
    return KnnBand(k, np.array(planned, dtype=np.int64), own, theirs, limits, assumed=len(runs) < 3)


def assumed_spread(history: History, accuracy: float) -> float:
    """The standard deviation between seeds to assume where fewer than three runs can tell, in points.

    0.15 on ImageNet-1k. Elsewhere 2.1 times that of independent errors on each test image, of 100 images where their
    number is not known.
    """
    if known_recipe(history).get("data.evaluation_dataset") == "imagenet1k":
        return IMAGENET_SPREAD_POINTS
    share = min(max(accuracy / 100, 0.01), 0.99)
    return SEED_INFLATION * 100 * math.sqrt(share * (1 - share) / (history.test_images or 100))


def check_knn(band: KnnBand | None, *, mine: History, margin: float) -> tuple[Check, ...]:
    """The curve against its band. A deviation that is surely within the margin, or of assumed spread, only warns.

    It is unknown where the untrained network is all that can be compared.
    """
    if band is None:
        return ()
    z, critical = band.z, band.limits.critical
    known = np.flatnonzero(np.isfinite(z))
    outside = known[np.abs(z[known]) > critical]
    ground = the_references(len(band.references))
    worst = float(np.abs(z[known]).max())
    check = dataclasses.replace(
        CURVE,
        title=f"{CURVE.title}, k = {band.k}",
        finding=f"|z| is {worst:.1f} at most over {plural(len(known), 'evaluation')} against {ground}.",
        value=worst,
        limit=float(critical),
        cannot_say=CURVE.cannot_say + (ASSUMED if band.assumed else ""),
    )
    if not band.done[known].any():  # random weights show nothing of the training
        finding = f"Only the untrained network can be compared with {ground}: {band.mine[known[0]]:.2f} %."
        return (dataclasses.replace(check, state="unknown", finding=finding),)
    if not len(outside):
        return (check,)
    first = int(outside[0])
    done = int(band.done[first])
    low, high = interval(band, first)
    within = -margin < low and high < margin
    finding = (
        f"{band.mine[first]:.2f} % {say_when(done, mine)} against {band.limits.center[0, first]:.2f} % in {ground} "
        f"(z = {z[first]:+.1f}, limit {critical:.1f})" + (", yet surely within the margin." if within else ".")
    )
    folder = mine.path / (f"eval/training_{done - 1}" if done else "eval/untrained")
    folder = mine.path if mine.unit == "cell" else folder
    source = Evidence(str(folder), None, f"k = {band.k}: {band.mine[first]:.4f} %")
    state: CheckState = "warn" if within or band.assumed else "fail"
    return (dataclasses.replace(check, state=state, finding=finding, iteration=done, evidence=(source,)),)


def interval(band: KnnBand, place: int) -> tuple[float, float]:
    """The 90 % interval of (the mean of runs like mine) - (the mean of runs like the references), at one evaluation."""
    tail = (1 + CONFIDENCE) / 2
    quantile = NORMAL.inv_cdf(tail) if band.assumed else t_quantile(tail, degrees=len(band.references) - 1)
    difference = band.mine[place] - band.limits.center[0, place]
    reach = quantile * band.limits.scale[0, place]
    return float(difference - reach), float(difference + reach)


def render_knn_band(band: KnnBand) -> Band:
    """The band as a report draws it."""
    center, reach = band.limits.center[0], band.limits.critical * band.limits.scale[0]
    done = tuple(band.done.tolist())
    return Band(
        metric="knn_top1",
        kind="knn",
        statistic=f"k = {band.k}",
        starts=done,
        ends=done,
        mine=finite_numbers(band.mine),
        center=finite_numbers(center),
        lower=finite_numbers(center - reach),
        upper=finite_numbers(center + reach),
        z=finite_numbers(band.z),
        critical=float(band.limits.critical),
        references=len(band.references),
    )
