"""Histories, bands and results in, figures out: an SVG each, under a title that states what it shows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup

from reproduce.checks import Band, Check, MetricResult
from reproduce.figures import svg
from reproduce.figures.captions import describe_band, describe_knn, describe_schedule, knn_points, series
from reproduce.figures.spans import Span, draw_axis, draw_iterations
from reproduce.figures.svg import Floats, Panel, Scale, Thinned, percent
from reproduce.lineage import History, Lineage, say_when
from reproduce.quantities import MINUS, metric_title, plural, render_number

LOSS_PX, Z_PX, SCHEDULE_PX, KNN_PX, SPEED_PX = 210, 64, 120, 300, 120
HUES = 8  # of curves that are drawn over one another
LAUNCHES_SHOWN = 100  # the newest; a crash loop has thousands
LABELLED_MARGIN = 0.35  # of the half width: the edges of a narrower margin are too near to zero for labels
CHECKPOINTS = 60  # ticks at most
LABEL_PX = 13  # the height of a label
LABELS_PX = 26  # room for tick labels under a panel
BAND_AIR = 0.4  # of the curves' range: a wide band leaves the frame, so that the curves stay legible
REFERENCE_COLUMNS = 200  # reference runs are background: half the points of the run that is judged, and of more
REFERENCE_POINTS = 4000  # than twenty fewer


@dataclass(frozen=True)
class Figure:
    """`title` states the conclusion, `caption` its numbers; `lower` is a second panel on the same axis, or empty.

    over: the upper panel drawn anew over other axes, by their keys.
    """

    title: str
    caption: str
    upper: Markup
    lower: Markup | None = None
    over: tuple[tuple[str, Markup], ...] = ()


@dataclass(frozen=True)
class Level:
    """A horizontal line of the k-NN figure: a published value or the raw-pixel baseline."""

    value: float
    label: str
    kind: str


def render_loss_figure(
    metric: str,
    *,
    mine: History,
    references: Sequence[History],
    band: Band | None,
    span: Scale,
    others: Sequence[Span] = (),
) -> Figure:
    """One loss: mine over its reference runs and band, and below it the standardized deviation z where there is one.

    The band is one of iterations: over an axis of `others` on which runs are stretched, it is left out.
    """
    title, caption = describe_band(metric, band=band, references=len(references), counted=mine.unit)
    done, values = series(mine.lineage.records, metric)
    if not np.isfinite(values).all():
        title = f"{metric_title(metric)} is not finite from {mine.unit} {int(done[~np.isfinite(values)][0]):,} on"
    curves = [series(run.lineage.records, metric) for run in (mine, *references)]
    plain = _thinned(curves, [span] * len(curves))
    panel = Panel(span, loss_scale([curve.mean for curve in plain], band=band), LOSS_PX, title, caption)

    def draw(panel: Panel, scales: Sequence[Scale]) -> None:
        own, *drawn = _thinned(curves, scales)
        ghosts = _ghosts(mine, metric, span) if panel.x is span else []  # elsewhere, what counts takes all the axis
        _draw_curves(panel, own, drawn, ghosts=ghosts)
        if mine.unit != "cell":  # events are of iterations
            _draw_events(panel, mine)

    if band is not None:
        _draw_band(panel, band)
    draw(panel, [span] * len(curves))
    draw_iterations(panel, others)
    lower = _render_z(band, span=span) if band is not None else None
    return Figure(title, caption, svg.render_panel(panel, below=LABELS_PX), lower, _render_over(panel, others, draw))


def render_schedule_figure(
    metric: str, *, mine: History, references: Sequence[History], checks: Sequence[Check], span: Scale
) -> Figure:
    """One schedule column: a thick pale line per reference run under a thin one of mine, so that equal looks equal."""
    own = series(mine.lineage.records, metric)
    others = [series(run.lineage.records, metric) for run in references]
    title, caption = describe_schedule(metric, checks=checks)
    panel = Panel(span, svg.value_scale(np.concatenate([own[1], *(values for _, values in others)])), SCHEDULE_PX,
                  title, caption)  # fmt: skip
    for done, values in others:
        curve = svg.thin(done, values, scale=span, columns=REFERENCE_COLUMNS)
        panel.stretched.append(svg.render_line(panel, curve.share, curve.mean, kind="reference wide"))
    curve = svg.thin(*own, scale=span, columns=REFERENCE_COLUMNS)
    panel.stretched.append(svg.render_line(panel, curve.share, curve.mean, kind="mine"))
    _draw_values(panel, count=3)
    draw_iterations(panel)
    return Figure(title, caption, svg.render_panel(panel, below=LABELS_PX))


def render_knn_figure(
    k: int,
    *,
    mine: History,
    references: Sequence[History],
    band: Band | None,
    levels: Sequence[Level],
    span: Scale,
    others: Sequence[Span] = (),
) -> Figure:
    """Top-1 accuracy of the teacher over the run, with the published values and the raw-pixel baseline."""
    title, caption = describe_knn(k, mine=mine, references=references, band=band)
    curves = [knn_points(run.knn, k) for run in (mine, *references)]
    shown = [value for points in curves for _, value in points]
    edges = [] if band is None else [min(max(at, 0.0), 100.0) for at in (*band.lower, *band.upper) if at is not None]
    panel = Panel(span, svg.value_scale([*shown, *edges, *(level.value for level in levels)], pad=0.1), KNN_PX,
                  title, caption)  # fmt: skip
    if band is not None:
        _draw_band(panel, band)

    def draw(panel: Panel, scales: Sequence[Scale]) -> None:
        _draw_points(panel, mine, curves, scales)
        _draw_levels(panel, levels)

    draw(panel, [span] * len(curves))
    draw_iterations(panel, others)
    return Figure(title, caption, svg.render_panel(panel, below=LABELS_PX), None, _render_over(panel, others, draw))


def render_interval(result: MetricResult) -> Markup | None:
    """A result's difference with its confidence interval over the equivalence margin; None where there is none."""
    if result.difference is None:
        return None
    low = result.difference if result.low is None else result.low
    high = result.difference if result.high is None else result.high
    published = None if result.target is None or result.center is None else result.target - result.center
    margin = result.margin or 0.0
    reach = 1.12 * max(abs(low), abs(high), abs(result.difference), 1.6 * margin, abs(published or 0.0)) or 1.0
    text = f"difference {render_number(result.difference)}, interval {render_number(low)} to {render_number(high)}"
    panel = Panel(Scale(-reach, reach), Scale(0, 1), 34, f"{result.title}: {text}", f"margin ±{render_number(margin)}")
    left, zero, right = (percent(panel.x.at(value)) for value in (-margin, 0.0, margin))
    if margin:
        width = percent(panel.x.at(margin) - panel.x.at(-margin))
        panel.fixed.append(f'<rect class="margin" x="{left}" width="{width}" y="0" height="34"/>')
        if margin > LABELLED_MARGIN * reach:
            panel.fixed += [svg.render_text(x, 48, f"{sign}{render_number(margin, digits=2)}", kind="tick",
                                            anchor="middle") for x, sign in ((left, MINUS), (right, "+"))]  # fmt: skip
    panel.fixed.append(f'<line class="axis" x1="{zero}" x2="{zero}" y1="0" y2="34"/>')
    panel.fixed.append(svg.render_text(zero, 48, "0", kind="tick", anchor="middle"))
    if published is not None:
        panel.fixed.append(_glyph(panel, published, 9, "M0-5L5 0L0 5L-5 0Z", kind="published", label="published value"))
    ends = [percent(panel.x.at(value)) for value in (low, high)]
    panel.fixed.append(f'<line class="interval" x1="{ends[0]}" x2="{ends[1]}" y1="21" y2="21"/>')
    panel.fixed += [f'<line class="interval" x1="{x}" x2="{x}" y1="16" y2="26"/>' for x in ends]
    panel.fixed.append(f'<circle class="mine dot" cx="{percent(panel.x.at(result.difference))}" cy="21" r="5"/>')
    return svg.render_panel(panel, below=18)


def render_lineage_figure(lineage: Lineage, *, total: int) -> Markup:
    """One bar per launch over iterations; the hatched part of a bar was overwritten by a later launch."""
    launches = lineage.launches[-LAUNCHES_SHOWN:]
    row = 24 if len(launches) <= 12 else 8
    text = f"{plural(len(launches), 'launch', 'launches')} over {total:,} iterations"
    panel = Panel(Scale(0, max(total, 1)), Scale(0, 1), row * len(launches), "Launches of the run", text)
    for index, launch in enumerate(launches):
        lost = [ghost.iteration for ghost in lineage.ghosts if launch.first_line <= ghost.line <= launch.last_line]
        kept = min(lost, default=launch.end + 1)
        label = f"{launch.kind}: iterations {launch.start:,} to {launch.end:,}"
        if kept > launch.start:
            panel.fixed.append(_bar(panel, launch.start, kept, index * row, row, "launch", label))
        if lost:
            panel.fixed.append(_bar(panel, kept, launch.end + 1, index * row, row, "lost", f"{label}, overwritten"))
    draw_iterations(panel)
    return svg.render_panel(panel, below=LABELS_PX)


def render_speed_figure(title: str, *, mine: History, metric: str, waiting: str | None, span: Scale) -> Figure:
    """Seconds or megabytes over the run; the filled part is `waiting`, the share of it that waits for data."""
    done, values = series(mine.lineage.records, metric)
    curve = svg.thin(done, values, scale=span, columns=REFERENCE_COLUMNS)
    finite = curve.mean[np.isfinite(curve.mean)]
    top = float(np.percentile(finite, 98)) * 1.25 if len(finite) else 1.0
    panel = Panel(span, Scale(0.0, top or 1.0), SPEED_PX, title, f"{len(values)} lines; from 0 to {render_number(top)}")
    if waiting is not None:
        part = svg.thin(*series(mine.lineage.records, waiting), scale=span, columns=REFERENCE_COLUMNS)
        panel.stretched.append(svg.render_area(panel, part.share, np.zeros_like(part.mean), part.mean, kind="waiting"))
    panel.stretched.append(svg.render_line(panel, curve.share, curve.mean, kind="mine"))
    _draw_values(panel, count=3)
    draw_iterations(panel)
    return Figure(title, "", svg.render_panel(panel, below=LABELS_PX))


def render_overlay(title: str, curves: Sequence[tuple[str, Floats, Floats]], *, span: Scale, unit: str = "") -> Figure:
    """Curves of equal standing, (label, iterations done, values) each: hue n of the eight that the page colors."""
    drawn = [(label, svg.thin(done, values, scale=span, columns=REFERENCE_COLUMNS)) for label, done, values in curves]
    panel = Panel(span, loss_scale([curve.mean for _, curve in drawn], band=None), LOSS_PX, title, "")
    for number, (label, curve) in enumerate(drawn):
        line = svg.render_line(panel, curve.share, curve.mean, kind=f"hue-{number % HUES}")
        panel.stretched.append(f"<g><title>{escape(label)}</title>{line}</g>")
        if len(curve.share) == 1:
            done, value = (float(column[-1]) for column in curves[number][1:])
            panel.fixed.append(_dot(span, panel, done, value, kind=f"hue-{number % HUES}", label=label))
    _draw_values(panel, count=5, unit=unit)
    draw_iterations(panel)
    return Figure(title, "", svg.render_panel(panel, below=LABELS_PX))


def loss_scale(curves: Sequence[Floats], *, band: Band | None) -> Scale:
    """Room for every curve and the band; a spike or a band so wide that it would flatten the rest leaves the frame."""
    values = np.concatenate([curve[np.isfinite(curve)] for curve in curves])
    edges = [] if band is None else [edge for edge in (*band.lower, *band.upper) if edge is not None]
    if not len(values):
        return svg.value_scale(edges)
    low, high = (float(edge) for edge in np.percentile(values, (2, 98)))
    reach = 2 * (high - low) or float("inf")
    low, high = max(float(values.min()), low - reach), min(float(values.max()), high + reach)
    air = BAND_AIR * (high - low)
    return svg.value_scale([low, high, *(min(max(edge, low - air), high + air) for edge in edges)])


def _render_over(
    panel: Panel, others: Sequence[Span], draw: Callable[[Panel, Sequence[Scale]], None]
) -> tuple[tuple[str, Markup], ...]:
    """The panel drawn anew over every axis on which the runs are stretched, with the same values' axis."""
    drawn = []
    for span in others:
        if not span.relabelled:
            again = Panel(span.scales[0], panel.y, panel.height, panel.title, panel.text)
            draw(again, span.scales)
            draw_axis(again, span.scales[0], unit=span.unit)
            drawn.append((span.key, svg.render_panel(again, below=LABELS_PX)))
    return tuple(drawn)


def _thinned(curves: Sequence[tuple[Floats, Floats]], scales: Sequence[Scale]) -> list[Thinned]:
    """Mine in all its columns, then the reference runs, each on its scale."""
    theirs = min(REFERENCE_COLUMNS, REFERENCE_POINTS // max(len(curves) - 1, 1) + 1)
    columns = [svg.COLUMNS, *[theirs] * (len(curves) - 1)]
    return [svg.thin(*curve, scale=scale, columns=n) for curve, scale, n in zip(curves, scales, columns, strict=True)]


def _draw_curves(
    panel: Panel, own: Thinned, drawn: Sequence[Thinned], *, ghosts: Sequence[tuple[Floats, Floats]]
) -> None:
    """A loss of mine with its envelope and ghosts over the reference runs, beside round values."""
    panel.stretched += [svg.render_line(panel, curve.share, curve.mean, kind=_reference_kind(drawn)) for curve in drawn]
    panel.stretched.append(svg.render_area(panel, own.share, own.low, own.high, kind="envelope"))
    panel.stretched += [svg.render_line(panel, *ghost, kind="ghost") for ghost in ghosts]
    panel.stretched.append(svg.render_line(panel, own.share, own.mean, kind="mine"))
    _draw_values(panel, count=5)


def _draw_points(
    panel: Panel, mine: History, curves: Sequence[list[tuple[int, float]]], scales: Sequence[Scale]
) -> None:
    """Accuracies of mine, which come first, over those of the reference runs, beside round values."""
    theirs = _reference_kind(curves[1:])
    for place in (*range(1, len(curves)), 0):
        points, scale, kind = curves[place], scales[place], theirs if place else "mine"
        table = np.array(points, dtype=np.float64).reshape(-1, 2)
        panel.stretched.append(svg.render_line(panel, scale.share(table[:, 0]), table[:, 1], kind=kind))
        panel.fixed += [_dot(scale, panel, done, value, kind=kind, label=f"{value:.2f} % {say_when(done, mine)}")
                        for done, value in points]  # fmt: skip
    _draw_values(panel, count=6, unit=" %")


def _draw_band(panel: Panel, band: Band) -> None:
    """The simultaneous band, through the geometric middle of each block; points of k-NN at their iteration."""
    middles = np.sqrt(np.maximum(np.array(band.starts, dtype=np.float64), 1) * np.array(band.ends, dtype=np.float64))
    share = panel.x.share(middles)
    low, high = (np.array([np.nan if v is None else v for v in edge]) for edge in (band.lower, band.upper))
    if band.kind == "knn":  # there are no accuracies beyond
        low, high = np.clip(low, 0, 100), np.clip(high, 0, 100)
    panel.stretched.append(svg.render_area(panel, share, low, high, kind="band"))


def _render_z(band: Band, *, span: Scale) -> Markup | None:
    """The standardized deviation over iterations, with the limits that the whole curve must keep."""
    z = np.array([np.nan if value is None else value for value in band.z], dtype=np.float64)
    if not np.isfinite(z).any():
        return None
    limit = band.critical
    reach = min(max(1.3 * limit, 1.1 * float(np.nanmax(np.abs(z)))), 3 * limit)
    text = f"limits ±{limit:.2f}; |z| reaches {float(np.nanmax(np.abs(z))):.2f}"
    panel = Panel(span, Scale(-reach, reach), Z_PX, f"Deviation z of {metric_title(band.metric)}", text)
    middles = np.sqrt(np.maximum(np.array(band.starts, dtype=np.float64), 1) * np.array(band.ends, dtype=np.float64))
    share = span.share(middles)
    panel.stretched.append(svg.render_area(panel, np.arange(2.0), np.full(2, -limit), np.full(2, limit), kind="band"))
    panel.stretched.append(svg.render_line(panel, share, z, kind="mine"))
    ticks = {-limit: f"{MINUS}{limit:.1f}", 0.0: "0", limit: f"+{limit:.1f}"}
    if limit / reach * Z_PX / 2 < LABEL_PX:
        del ticks[0.0]
    svg.draw_y_axis(panel, ticks=tuple(ticks), labels=tuple(ticks.values()))
    panel.fixed.append(svg.render_text("6", Z_PX / 2 - 5, "deviation z", kind="tick"))
    for x, value in zip(share, z, strict=True):
        if abs(value) > limit:
            y = svg.pixel_y(panel, float(value))
            panel.fixed.append(f'<circle class="outside" cx="{percent(float(x))}" cy="{y:.1f}" r="2.5"/>')
    return svg.render_panel(panel)


def _draw_values(panel: Panel, *, count: int, unit: str = "") -> None:
    """Round values as grid lines and labels."""
    ticks = svg.linear_ticks(panel.y, count=count)
    svg.draw_y_axis(panel, ticks=ticks, labels=[render_number(tick) + unit for tick in ticks])


def _draw_events(panel: Panel, mine: History) -> None:
    """Launches that went on later as dashed lines with their kind; evaluations as triangles on the axis."""
    free = 0.0
    kinds = {launch.start: launch.kind for launch in mine.lineage.launches[1:] if launch.start > 0}
    for start in reversed(_apart(kinds, panel.x, gap=0.005)):
        share = panel.x.at(start + 1)
        x = percent(share)
        panel.fixed.append(
            f'<line class="launch-line" x1="{x}" x2="{x}" y1="0" y2="{panel.height}">'
            f"<title>{kinds[start]} at iteration {start:,}</title></line>"
        )
        if share >= free:
            anchor = "end" if share > 0.8 else "start"
            panel.fixed.append(svg.render_text(x, -4, kinds[start], kind="tick", anchor=anchor))
            free = share + 0.2
    for done in _apart(_checkpoints(mine, panel.x), panel.x, gap=0.02):
        x = percent(panel.x.at(done))
        panel.fixed.append(
            f'<line class="checkpoint" x1="{x}" x2="{x}" y1="{panel.height - 9}" y2="{panel.height}">'
            f"<title>checkpoint after {done:,} iterations</title></line>"
        )
    for done in _apart([done for done in mine.knn if done > 0], panel.x, gap=0.02):
        panel.fixed.append(_glyph(panel, done, panel.height - 1, "M-4 0H4L0-7Z", kind="evaluation",
                                  label=f"k-NN evaluation after {done:,} iterations"))  # fmt: skip


def _checkpoints(mine: History, scale: Scale) -> list[int]:
    """Iterations after which the run saved a checkpoint, by its configuration; of many, some of every octave."""
    execution = (mine.config or {}).get("execution")
    period = execution.get("checkpoint_period_iterations") if isinstance(execution, Mapping) else None
    if not isinstance(period, int) or period < 1 or mine.done < period:
        return []
    spread = np.geomspace(max(scale.low, period), mine.done, CHECKPOINTS)
    return [int(done) for done in np.unique(np.floor(spread / period + 1e-9) * period)]


def _draw_levels(panel: Panel, levels: Sequence[Level]) -> None:
    """Horizontal lines with their labels: the highest one's above it, the others' below, so that near ones part."""
    for index, level in enumerate(sorted(levels, key=lambda level: -level.value)):
        y = svg.pixel_y(panel, level.value)
        panel.fixed.append(f'<line class="{level.kind}" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>')
        below = y + 16 if index else y - 7
        panel.fixed.append(svg.render_text("8", below, level.label, kind=f"label {level.kind}"))


def _reference_kind(drawn: Sequence[object]) -> str:
    """One reference run is half of a comparison; many are a background."""
    return "reference sole" if len(drawn) == 1 else "reference"


def _ghosts(mine: History, metric: str, span: Scale) -> list[tuple[Floats, Floats]]:
    """The overwritten stretches of the run, each a curve of its own."""
    done, values = series(mine.lineage.ghosts, metric)
    cuts = np.flatnonzero(np.diff(done) <= 0) + 1
    curves = [svg.thin(x, y, scale=span, columns=REFERENCE_COLUMNS)
              for x, y in zip(np.split(done, cuts), np.split(values, cuts), strict=True)]  # fmt: skip
    return [(curve.share, curve.mean) for curve in curves]


def _apart(iterations: Iterable[int], scale: Scale, *, gap: float) -> list[int]:
    """Those of the iterations that stand at least `gap` of the width apart, the last one first served."""
    kept: list[int] = []
    for done in sorted(iterations, reverse=True):
        if not kept or scale.at(kept[-1]) - scale.at(done) >= gap:
            kept.append(done)
    return kept


def _dot(scale: Scale, panel: Panel, iteration: float, value: float, *, kind: str, label: str) -> str:
    """A point of a curve that tells its numbers when pointed at."""
    x, y = percent(scale.at(iteration)), svg.pixel_y(panel, value)
    return f'<circle class="{kind} dot" cx="{x}" cy="{y:.1f}" r="3.5"><title>{escape(label)}</title></circle>'


def _glyph(panel: Panel, value: float, y: float, path: str, *, kind: str, label: str) -> str:
    """A small shape at a value of the x axis, unscaled."""
    x = percent(panel.x.at(value))
    shape = f'<path class="{kind}" d="{path}"><title>{escape(label)}</title></path>'
    return f'<svg x="{x}" y="{y:.1f}" width="1" height="1" overflow="visible">{shape}</svg>'


def _bar(panel: Panel, start: float, end: float, y: float, row: float, kind: str, label: str) -> str:
    """A horizontal bar from `start` to `end`, at least a hair wide."""
    x, width = panel.x.at(start), max(panel.x.at(end) - panel.x.at(start), 0.003)
    box = f'x="{percent(x)}" width="{percent(width)}" y="{y + row * 0.15:.1f}" height="{row * 0.7:.1f}"'
    return f'<rect class="{kind}" {box} rx="2"><title>{escape(label)}</title></rect>'
