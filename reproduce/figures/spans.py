"""Runs in, the axes that their curves can be drawn over out: iterations, share of the run, images seen, GPU-hours.

Where every run has as many images, say, in an iteration, the picture over images is the one over iterations under
other labels. Where they differ, each curve is stretched by a scale of its own.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reproduce.axes import Axis, axis_knots
from reproduce.errors import LogError
from reproduce.figures.svg import Panel, Scale, decade_ticks, draw_x_axis, iteration_scale, linear_ticks
from reproduce.lineage import POINT, History, count_cells
from reproduce.quantities import render_count

TITLES: dict[Axis, str] = {"progress": "share of the run", "images": "images seen", "gpu-hours": "GPU-hours"}


@dataclass(frozen=True)
class Span:
    """An axis to draw over beside iterations: a scale for mine, then one for each reference run.

    relabelled: the picture is the one over iterations, and only the labels differ.
    """

    key: Axis
    title: str
    scales: tuple[Scale, ...]
    relabelled: bool

    @property
    def unit(self) -> str:
        return " %" if self.key == "progress" else ""


def make_spans(mine: History, *, references: Sequence[History]) -> tuple[Span, ...]:
    """The axes that all runs tell of, for logarithmic figures. Runs in cells of an axis have no other one."""
    runs = (mine, *references)
    if mine.unit == "cell" or not all(run.lineage.records for run in runs):
        return ()
    base = iteration_scale(max(run.done for run in runs))
    return tuple(span for key in TITLES if (span := _make_span(key, runs, base=base)) is not None)


def run_scale(runs: Sequence[History], *, evaluations: bool = False) -> Scale:
    """A logarithmic scale to the end of the longest run; of runs in cells in percent of their axis.

    evaluations: what stands on the scale are k-NN evaluations, which are finer than cells.
    """
    if runs[0].unit != "cell":
        return iteration_scale(max(run.done for run in runs))
    cells = count_cells(runs)
    base = iteration_scale(cells)
    steps = 1 / POINT if evaluations else cells
    percent = (np.array([0.0, steps]), np.array([0.0, 100.0]))
    return Scale(100 * base.low / cells, 100 * base.high / cells, logarithmic=True, knots=percent)


def linear(spans: Sequence[Span]) -> tuple[Span, ...]:
    """The same axes for figures that begin at 0."""
    return tuple(
        dataclasses.replace(
            span, scales=tuple(dataclasses.replace(scale, low=0.0, logarithmic=False) for scale in span.scales)
        )
        for span in spans
    )


def draw_iterations(panel: Panel, others: Sequence[Span] = ()) -> None:
    """The iteration axis; beside it those of `others` under which the picture is the same, to choose from."""
    unit = "" if panel.x.knots is None else " %"  # cells
    axes = [
        ("iteration", panel.x, unit),
        *((span.key, span.scales[0], span.unit) for span in others if span.relabelled),
    ]
    for key, scale, unit in axes:
        axis = Panel(scale, panel.y, panel.height, "", "")
        draw_axis(axis, scale, unit=unit)
        drawn = "".join(axis.fixed)
        panel.fixed.append(f'<g class="by by-{key}">{drawn}</g>' if len(axes) > 1 else drawn)


def draw_axis(panel: Panel, scale: Scale, *, unit: str) -> None:
    """Decades on a logarithmic scale, round numbers on a linear one, of what the axis counts."""
    scale = dataclasses.replace(scale, knots=None)
    ticks, bare = decade_ticks(scale) if scale.logarithmic else (linear_ticks(scale, count=5), ())
    draw_x_axis(panel, scale, ticks=ticks, bare=bare, labels=[render_count(tick) + unit for tick in ticks])


def _make_span(key: Axis, runs: Sequence[History], *, base: Scale) -> Span | None:
    """None where a log does not tell, or where the axis would be that of iterations."""
    try:
        knots = [axis_knots(run, key) for run in runs]
    except LogError:
        return None
    factors = {places[-1] / done[-1] for done, places in knots if len(done) == 2}
    if len(factors) == 1 and all(len(done) == 2 for done, _ in knots):
        (factor,) = factors
        scale = Scale(base.low * factor, base.high * factor, logarithmic=True)
        return None if factor == 1 else Span(key, TITLES[key], (scale,) * len(runs), relabelled=True)
    ends = [
        (np.interp(base.low, done, places), np.interp(run.done, done, places))
        for run, (done, places) in zip(runs, knots, strict=True)
    ]
    low = float(min(start for start, _ in ends))
    high = float(max(2 * low, *(end for _, end in ends)))
    if not 0 < low < high < float("inf"):
        return None
    scales = tuple(Scale(low, high, logarithmic=True, knots=found) for found in knots)
    title = "process-hours" if key == "gpu-hours" and _on_cpu(runs[0]) else TITLES[key]
    return Span(key, title, scales, relabelled=False)


def _on_cpu(run: History) -> bool:
    return bool(((run.config or {}).get("execution") or {}).get("device") == "cpu")
