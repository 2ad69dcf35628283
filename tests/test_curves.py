"""Curves and block means against naive means over the iterations of runs with a known truth."""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_runs import ITERATIONS, PERIOD, make_history, make_records, simulate, write_run

from reproduce.curves import (
    LOSSES,
    block_edges,
    full_windows,
    has_exact_means,
    make_blocks,
    make_curve,
    make_median_curve,
)
from reproduce.lineage import load_history, make_lineage

LOGS = Path(__file__).parents[2] / "shared" / "logs" / "dinov2"
EDGES = block_edges(ITERATIONS - 1)


@given(st.integers(0, 10**6), st.sampled_from([1, 10, 50]), st.integers(20, 700))
def test_edges_are_log_spaced_on_logged_iterations(last: int, period: int, first: int) -> None:
    """Edges rise from `first` on to the last iteration, lie on logged iterations, and octaves hold four blocks."""
    edges = block_edges(last, period=period, first=first)
    if last <= first:
        assert not len(edges)
        return
    assert edges[-1] == last
    assert edges[0] >= first
    assert (np.diff(edges) > 0).all()
    assert (edges[:-1] % period == 0).all()
    wide = edges[:-1] > 40 * period
    ratios = edges[1:][wide] / edges[:-1][wide]
    assert np.allclose(np.log2(ratios), 0.25, atol=0.04)


def test_edges_do_not_depend_on_how_far_a_run_came() -> None:
    """Blocks are counted down from the end of the recipe, so a run that is half done shares those it has finished."""
    assert (block_edges(624_999) == block_edges(624_999)).all()
    assert len(block_edges(624_999)) == pytest.approx(4 * math.log2(624_999 / 20), abs=6)


def test_curve_says_what_it_holds() -> None:
    """Our own lines hold each iteration's value; those of other programs the median of twenty."""
    truth = simulate(0)
    history = make_history(truth)
    curve = make_curve(history, "ibot_loss")
    assert curve.statistic == "raw"
    np.testing.assert_array_equal(curve.values, truth.columns["ibot_loss"][curve.iterations])
    medians = make_median_curve(history, "ibot_loss")
    assert medians.statistic == make_curve(history, "lr").statistic == "median-20"
    assert medians.values[3] == sorted(truth.columns["ibot_loss"][11:31])[9]
    assert not len(make_curve(history, "absent").values)


@pytest.mark.parametrize("metric", LOSSES)
def test_block_means_of_our_lines_are_exact(metric: str) -> None:
    """The mean over a block's lines is that over all its iterations."""
    truth = simulate(1)
    blocks = make_blocks(make_history(truth), metric, edges=EDGES, exact=True)
    naive = [truth.columns[metric][start + 1 : end + 1].mean() for start, end in itertools.pairwise(EDGES)]
    np.testing.assert_allclose(blocks.means, naive, rtol=1e-12)
    np.testing.assert_array_equal(blocks.counts, np.diff(EDGES))
    assert blocks.statistic == "block mean"


@pytest.mark.parametrize("stop", [200, 205, 300, 599])
def test_resume_changes_no_block_mean(stop: int) -> None:
    """Lines that stand twice after a resume, and process starts in between, leave exact block means as they are."""
    truth = simulate(2)
    resumed = max(stop - 100, 0)
    records = make_records(truth, stop=stop)
    records += make_records(truth, start=resumed, first_line=len(records) + 1)
    history = dataclasses.replace(make_history(truth), lineage=make_lineage(records))
    assert history.lineage.ghosts
    for metric in LOSSES:
        whole = make_blocks(make_history(truth), metric, edges=EDGES, exact=True)
        again = make_blocks(history, metric, edges=EDGES, exact=True)
        np.testing.assert_allclose(again.means, whole.means, rtol=1e-12)


@pytest.mark.parametrize("launches", [((0, 600),), ((0, 300), (250, 600)), ((0, 200), (200, 600))])
def test_block_means_from_averages_since_process_start(tmp_path: Path, launches: tuple[tuple[int, int], ...]) -> None:
    """Differences of n times the printed mean give the block's mean to the rounding of its four decimals."""
    truth = simulate(3)
    folder = write_run(truth, tmp_path / "run", launches=launches)
    (folder / "training_metrics.json").unlink()
    history = load_history(folder)
    for metric in LOSSES:
        assert has_exact_means(history, metric)
        blocks = make_blocks(history, metric, edges=EDGES, exact=True)
        assert blocks.statistic == "global average"
        for start, end, mean in zip(EDGES[:-1], EDGES[1:], blocks.means, strict=True):
            # With a process start inside, the iterations between the last line and the start are not in any mean.
            kept = [i for i in range(start + 1, end + 1) if len(launches) == 1 or not 190 < i < 200]
            rounding = 0.5e-4 * (start + end + 2) / (end - start) * len(launches) + 1e-9
            assert abs(mean - truth.columns[metric][kept].mean()) <= rounding + 0.02 * (len(launches) > 1)


def test_block_means_from_medians_are_near(tmp_path: Path) -> None:
    """Where nothing else is printed, the mean of the medians stands for the block; their scatter gives its error."""
    truth = simulate(4)
    history = make_history(truth)
    blocks = make_blocks(history, "ibot_loss", edges=EDGES, exact=False)
    exact = make_blocks(history, "ibot_loss", edges=EDGES, exact=True)
    assert blocks.statistic == "median-20"
    late = EDGES[1:] > 150
    assert np.abs(blocks.means - exact.means)[late].max() < 0.03
    known = np.isfinite(blocks.errors) & late
    assert known.sum() >= 5
    assert (blocks.errors[known] < 0.05).all()


def test_medians_after_a_resume_are_left_out() -> None:
    """The first twenty iterations of a process that resumed have windows that are not full."""
    truth = simulate(5)
    records = make_records(truth, stop=300)
    records += make_records(truth, start=250, first_line=len(records) + 1)
    lineage = make_lineage(records)
    short = [record.iteration for record, full in zip(lineage.records, full_windows(lineage), strict=True) if not full]
    assert short == [250, 260]


def test_unfinished_block_has_no_mean() -> None:
    """A run that stopped inside a block has no mean of it, nor of those after it."""
    history = make_history(simulate(6), done=300)
    blocks = make_blocks(history, "ibot_loss", edges=EDGES, exact=True)
    assert np.isfinite(blocks.means[EDGES[1:] <= 290]).all()
    assert np.isnan(blocks.means[EDGES[1:] > 290]).all()
    assert not blocks.counts[EDGES[1:] > 290].any()


def test_one_infinite_average_forbids_exact_means(tmp_path: Path) -> None:
    """A mean since process start that is infinite stays so: that metric falls back to medians, the others do not."""
    folder = write_run(simulate(7), tmp_path / "run")
    (folder / "training_metrics.json").unlink()
    text = (folder / "log.txt").read_text()
    history = load_history(folder)
    shown = history.lineage.records[30]
    assert shown.averages is not None
    (folder / "log.txt").write_text(text.replace(f"({shown.averages['koleo_loss']:.4f})", "(inf)"))
    history = load_history(folder)
    assert not has_exact_means(history, "koleo_loss")
    assert has_exact_means(history, "ibot_loss")


def test_both_statistics_agree_on_a_real_log() -> None:
    """On a public log the two ways to a block mean agree to a tenth of a percent late in the run."""
    path = LOGS / "sibling-1.log.txt"
    if not path.exists():
        pytest.skip(f"the public log {path} is not here")
    history = load_history(path)
    edges = block_edges(124_999, period=PERIOD)
    late = (edges[1:] > 8000) & (edges[1:] < 35_000)
    for metric in ("dino_local_crops_loss", "dino_global_crops_loss", "ibot_loss"):
        exact = make_blocks(history, metric, edges=edges, exact=True)
        medians = make_blocks(history, metric, edges=edges, exact=False)
        assert np.abs(exact.means / medians.means - 1)[late].max() < 4e-3
        assert np.isnan(exact.means[edges[1:] > 35_090]).all()


def test_empty_run_has_curves_without_points() -> None:
    """A log without lines gives empty curves and no exact means."""
    history = make_history(simulate(0), done=0)
    assert not len(make_curve(history, "ibot_loss").values)
    assert not has_exact_means(history, "ibot_loss")
