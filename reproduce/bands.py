"""Curves of reference runs in, the simultaneous band for one more run out: center, scale, critical value.

z = (mine - center) / scale leaves the band where |z| > critical, anywhere in the run with probability alpha at most.
Letters: n reference runs, c metrics, b blocks (or evaluation points), s simulated sets of runs.

Three references or more, `spread_band`: exchangeable runs that deviate from a common mean curve.

    scale² = v (1 + 1/n),  v(c, b) = max(variance over the runs, its mean over the blocks within `pool` of b)

critical is the 1 - alpha quantile of max |z| over blocks and metrics, by simulating n + 1 such runs with the same v.
How neighboring blocks hang together is not known, and matters: independent blocks make for many tests, tied ones leave
the pooled variance with no more than n - 1 degrees of freedom. So the quantile is the largest over correlations of
neighboring blocks from 0 to 0.999 (30 seeds of a small run had 0.7 to 0.96). Metrics are simulated as independent,
the worst case (Šidák 1967). A run's deviation is Student's t. Of losses with 20 degrees of freedom: their kurtosis is
2.9 to 3.4 over those seeds, and with twenty references the limit goes from 4.4 to 4.9. Of k-NN with 6: two of the seeds
ended 12 and 14 points low, which makes a kurtosis of 6.

One or two, `wander_band`: a run is a trend plus a wander that is stationary in log time with correlation
exp(-|ln(s/t)| / 1.4), plus noise. The wander's variance comes from the references alone: squared second differences
over a quarter octave, averaged over two octaves each way. The noise in them is not taken off again, and the standard
deviation is multiplied by 2.6. Simulated without a trend 1.6 would do: false alarms are then 0.6 % where the
correlation length is 1.4 and the noise small. But real runs part early and stay apart, which their own wander shows too
little: of the 90 ordered pairs of ten seeds of a small run, 12 left the band at 1.6 and none at 2.6. Averages over one
octave each way with the noise taken off, as first designed, gave 11 % and 93 % in the simulation.

critical bounds the supremum of such a process over the whole run: 2 [T c φ(c) + 1 - Φ(c)] = alpha / metrics with
T = ln(end / start) / 1.4.
"""

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LOG_TIME_CORRELATION = 1.4  # measured on 971 language-model runs in 68 same-script groups
WANDER_LAG = 1  # blocks: a quarter octave
WANDER_POOL = 8  # blocks each way: two octaves
WANDER_INFLATION = 2.6
TAILS = 20  # degrees of freedom of Student's t, of a loss
CORRELATIONS = (0.0, 0.6, 0.85, 0.95, 0.999)
SIMULATIONS = 8000
SIMULATED_AT_ONCE = 500


@dataclass(frozen=True, eq=False)
class Limits:
    """A band over c metrics and b blocks; NaN where it is not defined."""

    center: Array
    scale: Array
    critical: float

    def standardize(self, mine: Array) -> Array:
        """z of a run's block means [c, b]."""
        return (mine - self.center) / self.scale


def spread_band(references: Array, *, floor: Array, pool: int, alpha: float, tails: int = TAILS) -> Limits:
    """The band that the spread of three or more reference runs [n, c, b] gives; `floor` [c, b] bounds sqrt(v) below.

    Blocks where a reference is not finite are not defined.
    """
    n = len(references)
    center = references.mean(axis=0)
    variance = _pooled_variance(references[:, None], pool)[0]
    scale = np.sqrt(np.maximum(variance, floor**2) * (1 + 1 / n))
    defined = np.isfinite(center)
    blocks = int(defined.any(axis=0).sum())
    metrics = int(defined.any(axis=1).sum())
    if not blocks:
        return Limits(center, scale, math.inf)
    critical = spread_critical(n, metrics=metrics, blocks=blocks, pool=pool, alpha=alpha, tails=tails)
    return Limits(center, scale, critical)


@functools.lru_cache(maxsize=64)
def spread_critical(n: int, *, metrics: int, blocks: int, pool: int, alpha: float, tails: int = TAILS) -> float:
    """The 1 - alpha quantile of max |z| over metrics and blocks for a run like the n others; always the same number."""
    generator = np.random.default_rng((n, metrics, blocks, pool))
    shape = (n + 1, SIMULATED_AT_ONCE, metrics, blocks)
    quantiles = []
    for correlation in CORRELATIONS:
        maxima = [
            _simulated_maxima(generator, shape=shape, pool=pool, correlation=correlation, tails=tails)
            for _ in range(SIMULATIONS // SIMULATED_AT_ONCE)
        ]
        quantiles.append(float(np.quantile(np.concatenate(maxima), 1 - alpha)))
    return max(quantiles)


def wander_band(
    references: Array, *, errors: Array, my_errors: Array, floor: Array, octaves: float, alpha: float
) -> Limits:
    """The band around the mean of one or two references [n, c, b] whose block means have standard errors `errors`.

    `my_errors` [c, b] are those of the run that is judged, `floor` [c, b] bounds the wander's standard deviation below,
    `octaves` is the length of the whole run from the first block on.
    """
    n = len(references)
    center = references.mean(axis=0)
    variance = np.maximum(WANDER_INFLATION**2 * wander_variance(references).mean(axis=0), floor**2)
    noise = np.nan_to_num(errors**2).sum(axis=0) / n**2 + np.nan_to_num(my_errors**2)
    scale = np.sqrt(variance * (1 + 1 / n) + noise)
    metrics = int(np.isfinite(center).any(axis=1).sum())
    return Limits(center, scale, wander_critical(octaves, metrics=max(metrics, 1), alpha=alpha))


def wander_variance(runs: Array) -> Array:
    """The variance of a run's wander around its trend, from the run's own block means [..., b]."""
    lag = WANDER_LAG
    if runs.shape[-1] < 2 * lag + 1:
        return np.full(runs.shape, np.nan)
    correlation = math.exp(-lag * math.log(2) / 4 / LOG_TIME_CORRELATION)
    second = runs[..., 2 * lag :] - 2 * runs[..., lag:-lag] + runs[..., : -2 * lag]
    padded = np.full(runs.shape, np.nan)
    padded[..., lag:-lag] = second**2
    return _window_means(padded, WANDER_POOL) / (6 - 8 * correlation + 2 * correlation**2)


def wander_critical(octaves: float, *, metrics: int, alpha: float) -> float:
    """c with 2 [T c φ(c) + 1 - Φ(c)] = alpha / metrics: bounds a stationary process over T correlation lengths."""
    normal = NormalDist()
    length = octaves * math.log(2) / LOG_TIME_CORRELATION
    low, high = 1.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        if 2 * (length * middle * normal.pdf(middle) + 1 - normal.cdf(middle)) > alpha / metrics:
            low = middle
        else:
            high = middle
    return high


def t_quantile(probability: float, *, degrees: int) -> float:
    """The quantile of Student's t, by bisection of its integrated density; `probability` above one half."""
    log_norm = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    # With x = sqrt(degrees) tan(u) the density becomes cos(u)^(degrees - 1): smooth, on a finite interval.
    angles = np.linspace(0.0, math.pi / 2, 200_001)
    density = math.exp(log_norm) * math.sqrt(degrees) * np.cos(angles) ** (degrees - 1)
    cumulative = 0.5 + np.concatenate(([0.0], np.cumsum((density[1:] + density[:-1]) / 2))) * (angles[1] - angles[0])
    return math.sqrt(degrees) * math.tan(float(np.interp(probability, cumulative, angles)))


def _simulated_maxima(
    generator: np.random.Generator, *, shape: tuple[int, int, int, int], pool: int, correlation: float, tails: int
) -> Array:
    """max |z| of one run against the others, in runs [n + 1, s, c, b]: AR(1) blocks times the run's scale."""
    runs = generator.standard_normal(shape, dtype=np.float32)
    fresh = np.float32(math.sqrt(1 - correlation**2))
    for block in range(1, shape[-1]):
        runs[..., block] = np.float32(correlation) * runs[..., block - 1] + fresh * runs[..., block]
    runs /= np.sqrt(generator.chisquare(tails, (*shape[:3], 1)) / tails).astype(np.float32)
    mine, others = runs[0], runs[1:]
    scale = np.sqrt(_pooled_variance(others, pool) * (1 + 1 / len(others)))
    return np.asarray((np.abs(mine - others.mean(axis=0)) / scale).max(axis=(1, 2)), dtype=np.float64)


def _pooled_variance(runs: NDArray[np.floating], pool: int) -> Array:
    """Variance over the n runs [n, ..., b], or its mean over the blocks within `pool` of each, whichever is larger."""
    own = np.asarray(runs.var(axis=0, ddof=1), dtype=np.float64)
    return np.fmax(own, _window_means(own, pool))


def _window_means(values: Array, reach: int) -> Array:
    """Means over the last axis within `reach` places each way, NaN left out."""
    blocks = values.shape[-1]
    known = np.isfinite(values)
    sums = np.cumsum(np.where(known, values, 0.0), axis=-1)
    counts = np.cumsum(known, axis=-1)
    high = np.minimum(np.arange(blocks) + reach, blocks - 1)
    low = np.arange(blocks) - reach - 1
    inside = low >= 0

    def between(totals: Array) -> Array:
        return totals[..., high] - np.where(inside, totals[..., np.maximum(low, 0)], 0)

    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(between(sums) / between(counts), dtype=np.float64)
