"""The bands: their numbers against naive formulas and textbook quantiles, their false alarms by simulation."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from reproduce.bands import (
    LOG_TIME_CORRELATION,
    TAILS,
    spread_band,
    spread_critical,
    t_quantile,
    wander_band,
    wander_critical,
    wander_variance,
)

Array = NDArray[np.float64]
ALPHA = 0.01


def simulate(
    generator: np.random.Generator,
    *,
    runs: int,
    metrics: int,
    blocks: int,
    correlation: float,
    noise: float = 0.0,
    tails: float = math.inf,
) -> Array:
    """Runs [run, metric, block] whose deviations are an AR(1) of unit variance, plus independent noise; with `tails`,
    Student's t of so many degrees of freedom."""
    values = generator.standard_normal((runs, metrics, blocks))
    for block in range(1, blocks):
        values[..., block] = correlation * values[..., block - 1] + math.sqrt(1 - correlation**2) * values[..., block]
    if math.isfinite(tails):
        values /= np.sqrt(generator.chisquare(tails, (runs, metrics, 1)) / tails)
    return values + noise * generator.standard_normal(values.shape)


@pytest.mark.parametrize(
    ("probability", "degrees", "expected"),
    [(0.95, 9, 1.8331), (0.975, 1, 12.7062), (0.995, 2, 9.9248), (0.95, 200, 1.6525), (0.9, 4, 1.5332)],
)
def test_t_quantiles_of_the_tables(probability: float, degrees: int, expected: float) -> None:
    """Student's t as every table prints it."""
    assert t_quantile(probability, degrees=degrees) == pytest.approx(expected, abs=1e-4)


def test_spread_band_equals_naive_loops() -> None:
    """Center, pooled variance and scale by their formulas, block by block."""
    references = simulate(np.random.default_rng(0), runs=5, metrics=2, blocks=9, correlation=0.5)
    floor = np.full((2, 9), 0.8)
    limits = spread_band(references, floor=floor, pool=2, alpha=ALPHA)
    for metric in range(2):
        own = [float(np.var(references[:, metric, block], ddof=1)) for block in range(9)]
        for block in range(9):
            near = own[max(0, block - 2) : block + 3]
            variance = max(own[block], sum(near) / len(near), 0.8**2)
            assert limits.center[metric, block] == pytest.approx(references[:, metric, block].mean())
            assert limits.scale[metric, block] == pytest.approx(math.sqrt(variance * (1 + 1 / 5)))
    mine = references[0]
    np.testing.assert_allclose(limits.standardize(mine), (mine - limits.center) / limits.scale)


def test_block_without_a_reference_is_not_judged() -> None:
    """Where one reference run has no value there is no band, and its neighbors are pooled without it."""
    references = simulate(np.random.default_rng(1), runs=4, metrics=1, blocks=6, correlation=0.0)
    references[2, 0, 3] = np.nan
    limits = spread_band(references, floor=np.zeros((1, 6)), pool=1, alpha=ALPHA)
    assert np.isnan(limits.standardize(references[0])[0, 3])
    assert np.isfinite(limits.standardize(references[0])[0, [0, 1, 2, 4, 5]]).all()


def test_critical_value_is_the_quantile_of_naive_simulations() -> None:
    """With one metric and one block: the quantile of |mine - mean| over the standard deviation of n t-distributed."""
    generator = np.random.default_rng(2)
    for n in (4, 10):
        runs = generator.standard_t(TAILS, (n + 1, 40_000))
        z = np.abs(runs[0] - runs[1:].mean(axis=0)) / (runs[1:].std(axis=0, ddof=1) * math.sqrt(1 + 1 / n))
        found = spread_critical(n, metrics=1, blocks=1, pool=0, alpha=0.05)
        # The largest of five simulated quantiles of the same distribution lies a little above it.
        assert 0.98 <= found / np.quantile(z, 0.95) <= 1.08


def test_more_references_make_narrower_limits_and_more_tests_wider() -> None:
    """The critical value falls with the reference runs and rises with blocks, metrics and certainty."""
    criticals = [spread_critical(n, metrics=4, blocks=20, pool=4, alpha=ALPHA) for n in (3, 5, 10, 20)]
    assert criticals == sorted(criticals, reverse=True)
    one = spread_critical(10, metrics=1, blocks=20, pool=4, alpha=ALPHA)
    few = spread_critical(10, metrics=4, blocks=5, pool=4, alpha=ALPHA)
    lax = spread_critical(10, metrics=4, blocks=20, pool=4, alpha=0.05)
    assert max(one, few, lax) < criticals[2]
    assert criticals[2] == spread_critical(10, metrics=4, blocks=20, pool=4, alpha=ALPHA)


@pytest.mark.parametrize(("correlation", "noise"), [(0.0, 0.0), (0.88, 0.0), (0.88, 0.5), (0.97, 0.0), (0.9999, 0.0)])
@pytest.mark.parametrize(
    ("n", "tails", "share"), [(3, math.inf, 1), (10, math.inf, 1), (3, TAILS, 1), (10, TAILS, 1), (10, 8, 2.5)]
)
def test_false_alarms_of_a_spread(n: int, tails: float, share: float, correlation: float, noise: float) -> None:
    """Of 2,000 sets of n references and one more run, at most 1 % leave the band anywhere: however blocks are tied,
    for normal deviations and for tails as heavy as assumed. Were they as heavy as of 8 degrees of freedom, 2.5 % would.
    """
    generator = np.random.default_rng(7)
    sets = 2000
    alarms = 0
    for _ in range(sets):
        runs = simulate(generator, runs=n + 1, metrics=4, blocks=17, correlation=correlation, noise=noise, tails=tails)
        limits = spread_band(runs[1:], floor=np.zeros((4, 17)), pool=4, alpha=ALPHA)
        alarms += bool((np.abs(limits.standardize(runs[0])) > limits.critical).any())
    # The quantile itself is simulated; three standard deviations of a share of 1 % in 2,000 are two thirds of one.
    assert alarms / sets <= share * ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / sets)


def test_spread_sees_a_shift_of_twice_its_limit() -> None:
    """A run that is shifted by more than the limit plus its own spread is found every time."""
    generator = np.random.default_rng(3)
    for _ in range(50):
        runs = simulate(generator, runs=11, metrics=4, blocks=17, correlation=0.88)
        limits = spread_band(runs[1:], floor=np.zeros((4, 17)), pool=4, alpha=ALPHA)
        mine = runs[0] + np.eye(4)[0][:, None] * 4 * limits.critical
        assert (np.abs(limits.standardize(mine)) > limits.critical).any()


def test_wander_critical_of_the_published_rows() -> None:
    """625,000 iterations from the 200th on, one and four losses, one percent: the values of the derivation."""
    octaves = math.log2(625_000 / 200)
    assert wander_critical(octaves, metrics=1, alpha=0.01) == pytest.approx(3.87, abs=0.005)
    assert wander_critical(octaves, metrics=4, alpha=0.01) == pytest.approx(4.23, abs=0.005)


def test_wander_variance_is_unbiased() -> None:
    """Averaged over many runs of known wander, the estimate from each run alone is its variance."""
    kept = math.exp(-math.log(2) / 4 / LOG_TIME_CORRELATION)
    runs = 3.0 * simulate(np.random.default_rng(4), runs=2000, metrics=1, blocks=40, correlation=kept)
    assert wander_variance(runs).mean() == pytest.approx(9.0, rel=0.05)


def test_wander_variance_ignores_a_straight_trend() -> None:
    """A trend that is straight in log time is no wander; too few blocks tell nothing."""
    assert wander_variance(np.arange(20.0)).max() == pytest.approx(0.0, abs=1e-20)
    assert np.isnan(wander_variance(np.arange(2.0))).all()


def test_wander_band_equals_naive_formula() -> None:
    """Scale from the wander of both references, the floor, and the errors of all block means."""
    references = simulate(np.random.default_rng(5), runs=2, metrics=1, blocks=12, correlation=0.88)
    errors = np.full((2, 1, 12), 0.3)
    limits = wander_band(
        references, errors=errors, my_errors=np.full((1, 12), 0.4), floor=np.zeros((1, 12)), octaves=3.0, alpha=ALPHA
    )
    for block in range(12):
        variance = sum(float(wander_variance(references)[run, 0, block]) for run in range(2)) / 2
        expected = math.sqrt(2.6**2 * variance * 1.5 + 2 * 0.3**2 / 4 + 0.4**2)
        assert limits.scale[0, block] == pytest.approx(expected)
        assert limits.center[0, block] == pytest.approx(references[:, 0, block].mean())


@pytest.mark.parametrize(
    ("correlation_length", "noise", "allowed"),
    [(0.7, 0.05, 0.01), (1.4, 0.05, 0.012), (1.4, 0.3, 0.01), (1.4, 1.0, 0.01), (2.0, 0.05, 0.025), (2.0, 0.3, 0.01)],
)
def test_false_alarms_against_one_reference(correlation_length: float, noise: float, allowed: float) -> None:
    """Of 2,000 pairs of runs of one recipe, about 1 % or fewer leave the band, whatever share of them is noise."""
    generator = np.random.default_rng(8)
    kept = math.exp(-math.log(2) / 4 / correlation_length)
    blocks, pairs, alarms = 30, 2000, 0
    errors = np.full((1, 4, blocks), noise)
    for _ in range(pairs):
        runs = simulate(generator, runs=2, metrics=4, blocks=blocks, correlation=kept, noise=noise)
        limits = wander_band(
            runs[1:], errors=errors, my_errors=errors[0], floor=np.zeros((4, blocks)), octaves=blocks / 4, alpha=ALPHA
        )
        alarms += bool((np.abs(limits.standardize(runs[0])) > limits.critical).any())
    assert alarms / pairs <= allowed + 2 * math.sqrt(allowed / pairs)
