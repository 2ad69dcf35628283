"""Histories in, a figure for a paper out: a run's losses and its k-NN over those of reference runs, one column wide.

The file is a PDF, a PNG or an SVG. The same logs give the same bytes: no dates, no settings of the user's, and a font
that comes with Matplotlib.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from reproduce.curves import LOSSES, TOTAL
from reproduce.errors import LogError, ReproduceError
from reproduce.figures import svg
from reproduce.figures.captions import describe_knn, has_metric, knn_points, series
from reproduce.figures.plots import loss_scale
from reproduce.figures.svg import Floats, Scale
from reproduce.files import write_whole
from reproduce.layers.knn import primary_k
from reproduce.lineage import History
from reproduce.quantities import metric_title, plural, render_count, render_fixed, render_number, typeset

METADATA: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "png": {"Software": None}, "svg": {"Date": None}}
WIDTH_IN, ROW_IN, LEGEND_IN = 3.33, 1.16, 0.3  # a column of a two-column page is 3.25 to 3.5 inches wide
COLUMNS = 160  # about as many as can be told apart in print; a curve is its mean in each
KNN = "k-NN"
MINE, REFERENCE, RANGE, SOFT = "#0072b2", "#d55e00", "#d4d4d4", "#666666"  # Okabe and Ito 2008, and greys
GREATEST = 3e38  # a float32; a number beyond it is no loss
STYLE: Any = {
    "font.size": 7, "axes.titlesize": 7, "axes.labelsize": 7, "xtick.labelsize": 6, "ytick.labelsize": 6,
    "legend.fontsize": 6.5, "axes.titlelocation": "left", "axes.titlepad": 3, "axes.linewidth": 0.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y",
    "axes.axisbelow": True, "grid.color": "#ebebeb", "grid.linewidth": 0.5, "xtick.major.width": 0.5,
    "xtick.minor.width": 0.4, "xtick.major.size": 2.5, "xtick.minor.size": 1.5, "xtick.major.pad": 2,
    "ytick.major.size": 0, "ytick.major.pad": 2, "axes.labelpad": 1.5, "lines.linewidth": 0.9,
    "svg.hashsalt": "franca-reproduce", "pdf.fonttype": 42, "savefig.dpi": 300,
}  # fmt: skip


def write_paper_figure(path: Path, *, mine: History, references: Sequence[History]) -> None:
    """Draw into `path`. Raises `ReproduceError` where its suffix is unknown, it cannot be written, or a log is bare."""
    data = render_paper_figure(mine, references=references, form=figure_form(path))
    try:
        write_whole(path, data)
    except OSError as error:
        raise ReproduceError(f"cannot be written: {error.strerror}", path=path) from error


def figure_form(path: Path) -> str:
    """The form that a file's suffix asks for: a key of `METADATA`. Raises `ReproduceError` on any other."""
    form = path.suffix.removeprefix(".").lower()
    if form not in METADATA:
        suffix = f"the suffix {path.suffix}" if path.suffix else "no suffix"
        raise ReproduceError(f"no figure has {suffix}", path=path, mend="name a file .pdf, .png or .svg")
    return form


def render_paper_figure(mine: History, *, references: Sequence[History], form: str) -> bytes:
    """A panel for each loss that `mine` logs and one for k-NN; `form` is a key of `METADATA`.

    Of two or more reference runs, the range and the median are shown wherever all that log the metric have a value.
    Raises `LogError` where a log holds neither a loss nor an evaluation.
    """
    for run in (mine, *references):
        if not run.knn and not any(has_metric(run, metric) for metric in (TOTAL, *LOSSES)):
            raise LogError("nothing to draw: neither a loss nor a k-NN evaluation", path=run.path)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        file = io.BytesIO()
        _make_figure(mine, references).savefig(file, format=form, metadata=METADATA[form])
        return file.getvalue()


def _make_figure(mine: History, references: Sequence[History]) -> Figure:
    """Losses in pairs, an odd one and k-NN across the whole width; the legend above."""
    losses = [metric for metric in (TOTAL, *LOSSES) if has_metric(mine, metric)]
    k = primary_k(mine, references) or primary_k(mine, ())
    odd = len(losses) % 2
    rows: list[Any] = [[metric, metric] for metric in losses[:odd]]
    rows += [list(pair) for pair in zip(losses[odd::2], losses[odd + 1 :: 2], strict=True)]
    if k is not None and knn_points(mine.knn, k):
        rows.append([KNN, KNN])
    if not rows:
        raise LogError("nothing to draw: no evaluation of it is finite", path=mine.path)
    figure = Figure(figsize=(WIDTH_IN, ROW_IN * len(rows) + LEGEND_IN), layout="constrained")
    panels = figure.subplot_mosaic(rows)
    span = svg.iteration_scale(max(run.done for run in (mine, *references)))
    for metric in losses:
        _draw_loss(panels[metric], metric, mine=mine, references=references, span=span)
    for metric in losses[-2:]:
        panels[metric].set_xlabel("iterations, logarithmic")
    if k is not None and KNN in panels:
        _draw_knn(panels[KNN], k, mine=mine, references=references)
    figure.legend(handles=_legend(len(references)), loc="outside upper center", ncols=3, frameon=False,
                  borderpad=0, handlelength=1.8, columnspacing=1.2)  # fmt: skip
    return figure


def _draw_loss(axes: Axes, metric: str, *, mine: History, references: Sequence[History], span: Scale) -> None:
    """A loss over the reference runs that log it; what is not finite is a gap, and is said."""
    own = _on_columns(mine, metric, span)
    others = [_on_columns(run, metric, span) for run in references if has_metric(run, metric)]
    done = span.low * (span.high / span.low) ** _column_middles()
    _draw_references(axes, done, others)
    _draw_line(axes, done, own, color=MINE, zorder=3)
    scale = loss_scale([own, *others], band=None)
    ticks, bare = svg.decade_ticks(span)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [render_count(tick) for tick in ticks])
    axes.set_xticks(bare, minor=True)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(span.low, span.high)
    _set_values(axes, scale, count=5)
    short = f" ({len(others)} of {plural(len(references), 'reference')})" if len(others) < len(references) else ""
    axes.set_title(metric_title(metric) + short)
    iterations, values = series(mine.lineage.records, metric)
    broken = iterations[~np.isfinite(values)]
    if len(broken):
        axes.text(0.98, 0.95, f"not finite from {int(broken[0]):,} on", transform=axes.transAxes, color=REFERENCE,
                  fontsize=6, ha="right", va="top")  # fmt: skip


def _draw_knn(axes: Axes, k: int, *, mine: History, references: Sequence[History]) -> None:
    """Top-1 accuracy over the run. Evaluations are evenly spaced, and the first is at 0: this axis is linear."""
    runs = [dict(knn_points(run.knn, k)) for run in (mine, *references)]
    own, others = runs[0], [points for points in runs[1:] if points]
    shared = sorted(set.intersection(*(set(points) for points in others))) if others else []
    curves = [np.array([points[done] for done in shared], dtype=np.float64) for points in others]
    _draw_references(axes, np.array(shared, dtype=np.float64), curves, marker="s")
    _draw_line(axes, np.array(list(own), dtype=np.float64), np.array(list(own.values())), color=MINE, marker="o",
               zorder=3)  # fmt: skip
    last = max(*own, *shared, 1)
    ticks = svg.linear_ticks(Scale(0.0, last), count=6)
    axes.set_xticks(ticks, [render_count(tick) for tick in ticks])
    axes.set_xlim(-0.02 * last, 1.02 * last)
    axes.set_xlabel("iterations")
    values = [*own.values(), *(value for curve in curves for value in curve.tolist())]
    _set_values(axes, svg.value_scale(values, pad=0.1), count=5, unit=" %")
    axes.set_title(typeset(describe_knn(k, mine=mine, references=references, band=None)[0]))


def _draw_references(axes: Axes, done: Floats, curves: Sequence[Floats], *, marker: str = "") -> None:
    """One reference run as a curve; of more, the range and the median where every one of them has a value."""
    if len(curves) == 1:
        _draw_line(axes, done, curves[0], color=REFERENCE, marker=marker, linestyle=(0, (4, 1.2)), zorder=2.5)
    elif curves:
        stack = np.stack(curves)
        axes.fill_between(done, stack.min(axis=0), stack.max(axis=0), color=RANGE, linewidth=0.4)
        median = np.mean(np.sort(stack, axis=0)[[(len(curves) - 1) // 2, len(curves) // 2]], axis=0)
        median[~np.isfinite(stack).all(axis=0)] = np.nan
        _draw_line(axes, done, median, color=SOFT, linestyle=(0, (3, 1.2)), zorder=2.5)


def _draw_line(axes: Axes, x: Floats, y: Floats, *, color: str, marker: str = "", **style: Any) -> None:
    """A curve; a point whose neighbors are missing becomes a dot."""
    finite = np.r_[False, np.isfinite(y), False]
    lone = finite[1:-1] & ~finite[:-2] & ~finite[2:]
    axes.plot(x, y, color=color, marker=marker, markersize=2.6, **style)
    axes.plot(x[lone], y[lone], color=color, marker=marker or "o", markersize=2.2, linestyle="none")


def _set_values(axes: Axes, scale: Scale, *, count: int, unit: str = "") -> None:
    """The vertical axis, in the notation of the reports."""
    ticks = svg.linear_ticks(scale, count=count)
    axes.set_ylim(scale.low, scale.high)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    labels = [render_fixed(tick, decimals=decimals) if 0 < decimals < 5 else render_number(tick) for tick in ticks]
    axes.set_yticks(ticks, [typeset(label + unit) for label in labels])


def _on_columns(run: History, metric: str, span: Scale) -> Floats:
    """A run's loss in the middle of each column: the mean there, between two lines a straight one, NaN beyond."""
    done, values = series(run.lineage.records, metric)
    curve = svg.thin(done, np.where(np.abs(values) < GREATEST, values, np.nan), scale=span, columns=COLUMNS)
    if not len(curve.share):
        return np.full(COLUMNS, np.nan)
    middles = _column_middles()
    nearest = np.clip(middles, curve.share[0], curve.share[-1])
    inside = np.abs(middles - nearest) <= 0.5 / COLUMNS
    return np.where(inside, np.interp(nearest, curve.share, curve.mean), np.nan)


def _column_middles() -> Floats:
    """Where the columns stand along the axis, as shares of it."""
    return (np.arange(COLUMNS) + 0.5) / COLUMNS


def _legend(references: int) -> list[Artist]:
    """What the colors mean."""
    mine = Line2D([], [], color=MINE, label="this run")
    if not references:
        return [mine]
    if references == 1:
        return [mine, Line2D([], [], color=REFERENCE, linestyle=(0, (4, 1.2)), label="reference run")]
    median = Line2D([], [], color=SOFT, linestyle=(0, (3, 1.2)), label=f"median of {references} references")
    return [mine, median, Patch(color=RANGE, label="their range")]
