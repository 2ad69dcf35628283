"""L4: the loss curves, in block means, against the simultaneous band of the reference runs."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reproduce.bands import WANDER_LAG, Limits, spread_band, wander_band
from reproduce.checks import Band, Check, finite_numbers, plural, quote, the_references
from reproduce.curves import BLOCKS_PER_OCTAVE, FIRST_BLOCK, LOSSES, Blocks, block_edges, has_exact_means, make_blocks
from reproduce.layers.configuration import koleo_images
from reproduce.layers.schedules import BATCH
from reproduce.lineage import History, log_period

Array = NDArray[np.float64]

POOL = 4  # blocks: the spread is pooled over an octave each way
FLOOR = 5e-4  # of the loss: below it, standard deviations are other kernels' rounding
NOTHING = 1e-6  # the scale of a loss that stands at zero in every reference run
AMBER = 0.75  # of the critical value, sustained over half an octave
AMBER_BLOCKS = 2
LOOK_BACK = 100  # lines: a metric that is logged more rarely is not compared


@dataclass(frozen=True, eq=False)
class LossBands:
    """Block means of all losses that can be compared, and their limits. mine [c, b], references [n, c, b].

    `scales` [c] are what a share of a loss refers to: its size, or its range where it crosses zero.
    """

    metrics: tuple[str, ...]
    statistic: str
    edges: NDArray[np.int64]
    mine: Array
    references: Array
    scales: Array
    limits: Limits
    runs: tuple[History, ...]
    left_out: str

    @property
    def z(self) -> Array:
        return self.limits.standardize(self.mine)


def make_loss_bands(
    mine: History,
    *,
    references: Sequence[History],
    total: int | None,
    alpha: float,
    metrics: Sequence[str] = LOSSES,
) -> LossBands | None:
    """The losses of all runs in the same blocks and the same statistic; None where nothing can be compared."""
    runs = _usable(mine, references, metrics)
    metrics, left_out = _comparable_losses(mine, runs, metrics)
    if not runs or not metrics or not mine.lineage.records:
        return None
    exact = all(has_exact_means(run, metric) for run in (mine, *runs) for metric in metrics)
    longest = max(run.lineage.records[-1].iteration for run in runs)
    last = longest if total is None or longest >= total - 1 else total - 1
    edges = block_edges(last, period=log_period(runs[0].lineage.records), first=max(FIRST_BLOCK, last // 1000))
    if len(edges) < 2:
        return None
    blocks = [[make_blocks(run, metric, edges=edges, exact=exact) for metric in metrics] for run in (mine, *runs)]
    means = np.array([[block.means for block in row] for row in blocks])
    means[~np.isfinite(means)] = np.nan
    theirs = means[1:]
    if not np.isfinite(means).all(axis=(0, 1)).any():
        return None
    scales = _scales(theirs)
    limits = _limits(blocks, theirs, floor=FLOOR * np.broadcast_to(scales[:, None], theirs.shape[1:]), alpha=alpha)
    statistic = blocks[0][0].statistic
    return LossBands(metrics, statistic, edges, means[0], theirs, scales, limits, tuple(runs), left_out)


def check_losses(mine: History, *, bands: LossBands | None) -> tuple[Check, ...]:
    """One check a loss: inside the band in every block so far, or where it left it first."""
    if bands is None:
        return ()
    return tuple(_check_loss(mine, bands, place) for place in range(len(bands.metrics)))


def render_bands(bands: LossBands) -> tuple[Band, ...]:
    """The bands as a report draws them."""
    limits, z = bands.limits, bands.z
    reach = limits.critical * limits.scale
    return tuple(
        Band(
            metric=metric,
            kind="loss",
            statistic=bands.statistic,
            starts=tuple((bands.edges[:-1] + 1).tolist()),
            ends=tuple((bands.edges[1:] + 1).tolist()),
            mine=finite_numbers(bands.mine[place]),
            center=finite_numbers(limits.center[place]),
            lower=finite_numbers((limits.center - reach)[place]),
            upper=finite_numbers((limits.center + reach)[place]),
            z=finite_numbers(z[place]),
            critical=float(limits.critical),
            references=len(bands.runs),
        )
        for place, metric in enumerate(bands.metrics)
    )


def detectable_shares(bands: LossBands) -> dict[str, float]:
    """Per loss, the deviation that would have left the band at the last compared block, as a share of its scale."""
    known = np.isfinite(bands.z)
    shares = {}
    for place, metric in enumerate(bands.metrics):
        if known[place].any():
            block = int(np.flatnonzero(known[place])[-1])
            shares[metric] = float(bands.limits.critical * bands.limits.scale[place, block] / bands.scales[place])
    return shares


def shortest_log(references: Sequence[History], *, bands: LossBands | None) -> int:
    """How many iterations a run must have for a band to say anything of it: the first block, where the logs have them.

    The wander of one or two references takes three blocks to be seen.
    """
    blocks = 1 if len(references) >= 3 else 2 * WANDER_LAG + 1
    if bands is not None and len(bands.edges) > blocks:
        return int(bands.edges[1]) + 1
    period = log_period(references[0].lineage.records)
    return next(last + 1 for last in itertools.count(FIRST_BLOCK) if len(block_edges(last, period=period)) > blocks)


def _usable(mine: History, references: Sequence[History], metrics: Sequence[str]) -> list[History]:
    """The references that came far enough and ended finite; all that logged, where that leaves fewer than three."""
    reach = min(mine.done, max((run.done for run in references), default=0))
    logged = [run for run in references if run.lineage.records]
    sound = [run for run in logged if run.done >= 0.95 * reach and not math.isnan(_last_losses(run, metrics).sum())]
    return sound if len(sound) >= min(3, len(logged)) else logged


def _last_losses(history: History, metrics: Sequence[str]) -> Array:
    """The newest value of each loss, NaN where there is none or it is not finite."""
    newest = history.lineage.records[-1 : -LOOK_BACK - 1 : -1]
    losses = np.array(
        [next((record.values[metric] for record in newest if metric in record.values), np.nan) for metric in metrics]
    )
    return np.where(np.isfinite(losses), losses, np.nan)


def _comparable_losses(
    mine: History, references: Sequence[History], metrics: Sequence[str]
) -> tuple[tuple[str, ...], str]:
    """The losses that all runs log, finite at the end of every reference, and what is left out beyond that.

    KoLeo's nearest neighbors are those of one process's batch: with another batch there it is another loss, but for
    runs of this trainer, whose recipes say among how many images it looks, however these are split.
    """
    own = {name for record in mine.lineage.records[-LOOK_BACK:] for name in record.values}
    theirs = np.array([_last_losses(run, metrics) for run in references]).reshape(len(references), len(metrics))
    sound = ~np.isnan(theirs).any(axis=0)
    found = tuple(metric for place, metric in enumerate(metrics) if sound[place] and metric in own)
    runs = [run for run in (mine, *references) if run.lineage.records]
    batches = {run.lineage.records[-1].values.get(BATCH) for run in runs}
    groups = set(map(koleo_images, runs)) if len(batches - {None}) > 1 else set()
    if (len(groups) > 1 or None in groups) and "koleo_loss" in found:
        kept = tuple(metric for metric in found if metric != "koleo_loss")
        return kept, "koleo_loss is not compared: the batch per process differs, so its neighbors are others."
    return found, ""


def _scales(references: Array) -> Array:
    """Per loss, its median size over the run, or its range where that is larger, by the references' mean."""
    center = references.mean(axis=0)
    spans = np.nanmax(center, axis=1) - np.nanmin(center, axis=1)
    return np.asarray(np.fmax(np.fmax(np.nanmedian(np.abs(center), axis=1), spans), NOTHING))


def _limits(blocks: list[list[Blocks]], references: Array, *, floor: Array, alpha: float) -> Limits:
    if len(references) >= 3:
        return spread_band(references, floor=floor, pool=POOL, alpha=alpha)
    errors = np.array([[block.errors for block in row] for row in blocks])
    octaves = references.shape[-1] / BLOCKS_PER_OCTAVE
    return wander_band(references, errors=errors[1:], my_errors=errors[0], floor=floor, octaves=octaves, alpha=alpha)


def _check_loss(mine: History, bands: LossBands, place: int) -> Check:
    metric, z, critical = bands.metrics[place], bands.z[place], bands.limits.critical
    known = np.flatnonzero(np.isfinite(z))
    ground = the_references(len(bands.runs))
    check = Check(
        id=f"band-{metric}",
        layer="L4",
        title=f"{metric} in its band",
        state="unknown",
        finding=f"{metric} has no finished block in common with the reference runs.",
        value=None,
        limit=float(critical),
        unit="|z|",
        iteration=None,
        evidence=(),
        says=f"In no block does {metric} differ from {ground} by more than one more run of that kind would.",
        cannot_say="Whether a smaller difference is there, or one that leaves the losses alone.",
    )
    if not len(known):
        return check
    worst = int(known[np.argmax(np.abs(z[known]))])
    check = dataclasses.replace(check, value=float(abs(z[worst])))
    outside = known[np.abs(z[known]) > critical]
    if not len(outside):
        near = np.abs(np.nan_to_num(z)) > AMBER * critical
        sustained = near[1:] & near[:-1]
        span = f"{plural(len(known), 'block')} to {mine.unit} {int(bands.edges[1:][known[-1]]):,}"
        finding = f"|z| is {abs(z[worst]):.1f} at most over {span}; the limit is {critical:.1f}."
        return dataclasses.replace(check, state="warn" if sustained.any() else "pass", finding=finding)
    first = int(outside[0])
    start, end = int(bands.edges[first]), int(bands.edges[first + 1])
    nearest = bands.runs[int(np.argmin(np.abs(bands.references[:, place, first] - bands.mine[place, first])))]
    finding = (
        f"{metric} leaves the band at {mine.unit}s {start:,} to {end:,}: {bands.mine[place, first]:.5g} against "
        f"{bands.limits.center[place, first]:.5g} in {ground} (z = {z[first]:+.1f}, limit {critical:.1f}), "
        f"and is outside in {len(outside)} of {len(known)} blocks."
    )
    evidence = (*quote(mine, end, metric=metric), *quote(nearest, end, metric=metric))
    return dataclasses.replace(check, state="fail", finding=finding, iteration=end, evidence=evidence)
