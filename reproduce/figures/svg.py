"""Numbers in, SVG text out: scales, ticks, thinned curves and panels that keep their type size at every width.

A panel has two layers. Curves lie in a nested `<svg>` that is stretched to the panel (`preserveAspectRatio="none"`,
strokes unscaled); text, ticks and markers lie above it, horizontally in percent, vertically in pixels. So one drawing
serves a phone and a desktop, and no letter is ever scaled.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STRETCH = 1000  # units of the stretched layer along each side
COLUMNS = 400  # a curve is thinned to this many columns: about one a pixel of the widest panel


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`. On a logarithmic one everything below `low` (iteration 0) sits at its start.

    knots: (iterations, what the axis counts), where it does not count iterations: values are read off between them.
    """

    low: float
    high: float
    logarithmic: bool = False
    knots: tuple[Floats, Floats] | None = field(default=None, compare=False)

    def places(self, values: Floats) -> Floats:
        """What the axis counts at `values`."""
        return values if self.knots is None else np.interp(values, *self.knots)

    def share(self, values: Floats) -> Floats:
        """Positions along the axis, 0 at `low` and 1 at `high`."""
        places = self.places(values)
        if self.logarithmic:
            return np.log(np.maximum(places, self.low) / self.low) / math.log(self.high / self.low)
        return (places - self.low) / (self.high - self.low)

    def at(self, value: float) -> float:
        """The position of one value."""
        return float(self.share(np.array([value], dtype=np.float64))[0])


@dataclass(frozen=True)
class Thinned:
    """A curve in at most `COLUMNS` points: position, mean, least and greatest value of each column; NaN is a break."""

    share: Floats
    mean: Floats
    low: Floats
    high: Floats


@dataclass
class Panel:
    """A drawing area `height` pixels high and as wide as its figure. `title` and `text` are read by screen readers.

    `under` and `fixed` keep their size, `stretched` lies between them.
    """

    x: Scale
    y: Scale
    height: int
    title: str
    text: str
    under: list[str] = field(default_factory=list)
    stretched: list[str] = field(default_factory=list)
    fixed: list[str] = field(default_factory=list)


def value_scale(values: Iterable[float], *, pad: float = 0.06) -> Scale:
    """A linear scale around the finite `values` with some air at both ends; 0 to 1 where there are none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Scale(0.0, 1.0)
    low, high = min(finite), max(finite)
    air = (high - low) * pad or abs(high) * pad or 1.0
    return Scale(low - air, high + air)


def iteration_scale(last: float) -> Scale:
    """A logarithmic scale to `last` iterations, at least one octave long; from 10 on for all but the shortest runs."""
    first = 10.0 if last >= 200 else 1.0  # logs hold a line every 10 iterations
    return Scale(first, max(last, 2 * first), logarithmic=True)


def linear_ticks(scale: Scale, *, count: int) -> tuple[float, ...]:
    """About `count` round values (1, 2 or 5 times a power of ten apart) inside the scale."""
    rough = (scale.high - scale.low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9)
    return tuple(round(index * step, 12) for index in range(first, last + 1))


def decade_ticks(scale: Scale) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Labelled and bare ticks of a logarithmic axis: the powers of ten, with 2 and 5 where fewer than three fit."""
    powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    inside = [
        (10.0**power * factor, factor)
        for power in powers
        for factor in range(1, 10)
        if scale.low <= 10.0**power * factor <= scale.high * (1 + 1e-9)
    ]
    decades = [value for value, factor in inside if factor == 1]
    labelled = decades if len(decades) >= 3 else [value for value, factor in inside if factor in (1, 2, 5)]
    return tuple(labelled), tuple(value for value, _ in inside if value not in labelled)


def thin(iterations: Floats, values: Floats, *, scale: Scale, columns: int = COLUMNS) -> Thinned:
    """Thin what lies on `scale` to columns of equal width along it. A column with any non-finite value is a break."""
    share = scale.share(iterations)
    kept = (scale.places(iterations) >= scale.low) & (share <= 1 + 1e-9)
    share, series = share[kept], values[kept]
    column = np.minimum((share * columns).astype(np.int64), columns - 1)
    order = np.argsort(column, kind="stable")
    share, series, column = share[order], series[order], column[order]
    if not len(column):
        return Thinned(share, series, series, series)
    starts = np.flatnonzero(np.r_[True, column[1:] != column[:-1]])
    sizes = np.diff(np.r_[starts, len(column)])
    # reduceat carries a NaN or an infinity into its column, and the next line turns both into a break.
    with np.errstate(invalid="ignore", over="ignore"):
        stacked = np.stack([
            np.add.reduceat(series, starts) / sizes,
            np.minimum.reduceat(series, starts),
            np.maximum.reduceat(series, starts),
        ])  # fmt: skip
    stacked[:, ~np.isfinite(stacked).all(axis=0)] = np.nan
    return Thinned(np.add.reduceat(share, starts) / sizes, *stacked)


def render_line(panel: Panel, share: Floats, values: Floats, *, kind: str) -> str:
    """A curve as a path of CSS class `kind`; NaN lifts the pen, a lone point becomes a dot."""
    pieces = []
    for run in _runs(values):
        points = _points(panel, share[run], values[run])
        pieces.append("M" + "L".join(points if len(points) > 1 else points * 2))
    return f'<path class="{kind}" d="{"".join(pieces)}"/>' if pieces else ""


def render_area(panel: Panel, share: Floats, low: Floats, high: Floats, *, kind: str) -> str:
    """The area between two curves as a path of CSS class `kind`; NaN in either is a gap."""
    pieces = []
    for run in _runs(low + high):
        lower, upper = _points(panel, share[run], low[run]), _points(panel, share[run], high[run])
        pieces.append("M" + "L".join(upper + lower[::-1]) + "Z")
    return f'<path class="{kind}" d="{"".join(pieces)}"/>' if pieces else ""


def render_text(x: str, y: float, text: str, *, kind: str = "", anchor: str = "start") -> str:
    """A line of text at `x` ("12.5%" or pixels) and `y` pixels."""
    return f'<text class="{kind}" x="{x}" y="{_short(y)}" text-anchor="{anchor}">{escape(text)}</text>'


def percent(share: float) -> str:
    """A share of the width as SVG takes it."""
    return f"{_short(100 * share)}%"


def pixel_y(panel: Panel, value: float) -> float:
    """The vertical pixel of a value, kept inside the panel."""
    return panel.height * (1 - min(max(panel.y.at(value), 0.0), 1.0))


def draw_y_axis(panel: Panel, *, ticks: Sequence[float], labels: Sequence[str]) -> None:
    """Grid lines across the panel with their labels left of it."""
    for value, label in zip(ticks, labels, strict=True):
        y = pixel_y(panel, value)
        panel.under.append(f'<line class="grid" x1="0" x2="100%" y1="{_short(y)}" y2="{_short(y)}"/>')
        panel.fixed.append(render_text("-8", y + 4, label, kind="tick", anchor="end"))


def draw_x_axis(
    panel: Panel, scale: Scale, *, ticks: Sequence[float], bare: Sequence[float], labels: Sequence[str]
) -> None:
    """The base line, ticks on the scale, and labels below; a label that would touch its neighbour is left out."""
    base = panel.height
    panel.fixed.append(f'<line class="axis" x1="0" x2="100%" y1="{base}" y2="{base}"/>')
    for value in bare:
        x = percent(scale.at(value))
        panel.fixed.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{base}" y2="{base + 3}"/>')
    taken = 2.0
    for value, label in sorted(zip(ticks, labels, strict=True), reverse=True):
        share = scale.at(value)
        x = percent(share)
        panel.fixed.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{base}" y2="{base + 5}"/>')
        half = 0.012 * len(label) + 0.008  # half a label's width on the narrowest panel, 280 px
        if share + half <= taken:
            panel.fixed.append(render_text(x, base + 18, label, kind="tick", anchor="middle"))
            taken = share - half


def render_panel(panel: Panel, *, below: int = 0) -> Markup:
    """The finished `<svg>`; `below` pixels are kept under the plot for axis labels."""
    stretched = (
        f'<svg x="0" y="0" width="100%" height="{panel.height}" viewBox="0 0 {STRETCH} {STRETCH}" '
        f'preserveAspectRatio="none">{"".join(panel.stretched)}</svg>'
    )
    return Markup(
        f'<svg class="panel" role="img" width="100%" height="{panel.height + below}">'
        f"<title>{escape(panel.title)}</title><desc>{escape(panel.text)}</desc>"
        f"{''.join(panel.under)}{stretched}{''.join(panel.fixed)}</svg>"
    )


def _points(panel: Panel, share: Floats, values: Floats) -> list[str]:
    """Points of the stretched layer; values beyond the panel stay at its edge."""
    height = np.clip(panel.y.share(values), 0.003, 0.997)
    return [f"{_short(STRETCH * x)} {_short(STRETCH * (1 - y))}" for x, y in zip(share, height, strict=True)]


def _runs(values: Floats) -> list[slice]:
    """Slices over the unbroken stretches of finite values."""
    finite = np.r_[False, np.isfinite(values), False]
    edges = np.flatnonzero(finite[1:] != finite[:-1])
    return [slice(int(first), int(last)) for first, last in zip(edges[::2], edges[1::2], strict=True)]


def _short(value: float) -> str:
    """A coordinate with at most one decimal, and no negative zero."""
    return f"{value:.1f}".removesuffix(".0") if abs(value) >= 0.05 else "0"
