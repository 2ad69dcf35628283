"""Drawings are XML whose coordinates and words say what the numbers say."""

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_runs import LEVELS, TOTAL, make_band, make_check, make_history, make_records, make_result

from reproduce import quantities
from reproduce.checks import CheckState
from reproduce.figures import captions, plots, svg
from reproduce.figures.spans import draw_iterations
from reproduce.figures.svg import Panel, Scale
from reproduce.lineage import History

HOSTILE = "<script>alert(1)</script>\"'&]]>"
SPAN = svg.iteration_scale(TOTAL)


def parse(drawing: str) -> ElementTree.Element:
    """The drawing as XML; HTML is laxer, so what parses here parses there."""
    return ElementTree.fromstring(drawing)


def share_of(text: str) -> float:
    """A percentage of the width as a share."""
    return float(text.removesuffix("%")) / 100


def by_class(root: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [element for element in root.iter() if kind in element.get("class", "").split()]


@pytest.mark.parametrize(
    ("value", "text"),
    [(625000, "625,000"), (12.141249, "12.14"), (0.00035, "3.5e−4"), (-0.5, "−0.5"), (0.0, "0"), (1e15, "1e15"),
     (None, "–"), (math.nan, "NaN"), (-math.inf, "−∞"), (99.99999, "100"), (1234.5678, "1,235")],
)  # fmt: skip
def test_number_is_short_and_has_a_true_minus(value: float | None, text: str) -> None:
    """Four significant digits, thousands apart, and nothing that only a programmer reads."""
    assert quantities.render_number(value) == text


def test_values_of_sources_stay_verbatim() -> None:
    """Truth values, lists and mappings of a spec are legible, and no number loses digits that a source printed."""
    assert quantities.render_value(True) == "yes"
    assert quantities.render_value([0.05, 1]) == "0.05, 1"
    assert quantities.render_value({"a": None}) == "a: –"
    assert quantities.render_value(0.000991364) == "9.91364e−4"
    assert (quantities.render_value(82.0), quantities.render_value(82)) == ("82.0", "82")
    assert quantities.render_fixed(-0.0004, decimals=2, signed=True) == "0.00"


def test_durations_and_sizes_carry_their_unit() -> None:
    """Each stretch of time and each size is written in the unit that fits it."""
    assert [quantities.render_duration(s) for s in (0.21, 725, 12000, 187200)] == [
        "0.21 s", "12 min 5 s", "3 h 20 min", "2 d 4 h",
    ]  # fmt: skip
    assert [quantities.render_bytes(size) for size in (340, 1300, 31_000_000)] == ["340 B", "1.3 kB", "31 MB"]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_linear_ticks_are_round_and_inside(low: float, width: float, count: int) -> None:
    """Ticks lie on the scale, a constant 1, 2 or 5 times a power of ten apart, about as many as were asked for."""
    scale = Scale(low, low + width)
    ticks = svg.linear_ticks(scale, count=count)
    assert all(low - 1e-6 * width <= tick <= low + width + 1e-6 * width for tick in ticks)
    assert len(ticks) <= 2.6 * count + 2
    if len(ticks) > 2 and abs(low) < 1e3 * width:
        step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-6)
        assert min(abs(mantissa - factor) for factor in (1, 2, 5, 10)) < 1e-2


@pytest.mark.parametrize("last", [20, 100, 6_000, 160_000, 625_000])
def test_logarithmic_axis_has_at_least_three_labels(last: int) -> None:
    """From a run of 20 iterations to one of 625,000 the axis can be read."""
    labelled, bare = svg.decade_ticks(svg.iteration_scale(last))
    assert 3 <= len(labelled) <= 7
    assert not set(labelled) & set(bare)


@pytest.mark.parametrize("last", [300, 6_000, 625_000])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_labels_of_the_iteration_axis_never_touch(last: int, logarithmic: bool) -> None:
    """On the narrowest panel, 280 px, labels set in 12 px have air between them."""
    scale = svg.iteration_scale(last) if logarithmic else Scale(0, last)
    panel = Panel(scale, Scale(0, 1), 100, "", "")
    draw_iterations(panel)
    labels = [e for e in parse(svg.render_panel(panel)).iter("text") if e.get("text-anchor") == "middle"]
    spans = sorted((share_of(e.get("x", "")) * 280, len(e.text or "") * 6.7) for e in labels)
    assert len(spans) >= 2
    for (left, wide), (right, broad) in itertools.pairwise(spans):
        assert left + wide / 2 < right - broad / 2


@given(st.integers(1, 3000), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_thinning_keeps_extremes_and_bounds_the_points(count: int, columns: int, seed: int) -> None:
    """However long a curve is, it has at most one point a column, and its least and greatest value survive."""
    generator = np.random.default_rng(seed)
    iterations = np.cumsum(generator.integers(1, 30, count)).astype(np.float64)
    values = generator.normal(size=count)
    thinned = svg.thin(iterations, values, scale=Scale(1, iterations[-1] + 1, logarithmic=True), columns=columns)
    assert len(thinned.share) <= columns
    assert thinned.low.min() == values.min()
    assert thinned.high.max() == values.max()
    assert (thinned.low <= thinned.mean + 1e-12).all()
    assert (np.diff(thinned.share) > 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_values_lift_the_pen(bad: float) -> None:
    """A stretch that is not finite is a gap, never a line across it."""
    iterations = np.arange(1, 11, dtype=np.float64)
    values = np.where((iterations > 4) & (iterations < 7), bad, 1.0)
    thinned = svg.thin(iterations, values, scale=Scale(1, 10), columns=100)
    path = svg.render_line(Panel(Scale(1, 10), Scale(0, 2), 100, "", ""), thinned.share, thinned.mean, kind="mine")
    assert path.count("M") == 2
    assert "nan" not in path
    assert "inf" not in path


def test_words_inside_a_drawing_are_escaped() -> None:
    """Titles, descriptions and labels that hold markup are text when the drawing is parsed."""
    panel = Panel(Scale(0, 1), Scale(0, 1), 10, HOSTILE, HOSTILE, fixed=[svg.render_text("1", 2, HOSTILE)])
    root = parse(svg.render_panel(panel))
    assert [root.findtext(tag) for tag in ("title", "desc", "text")] == [HOSTILE] * 3
    assert not list(root.iter("script"))


def test_loss_title_states_that_the_run_stays_inside() -> None:
    """A run inside its band is said to be, with the greatest deviation and the limit."""
    mine, references = make_history("main", seed=42), [make_history(f"r{i}", seed=i) for i in range(4)]
    band = make_band("ibot_loss", mine=references[0], references=references)
    figure = plots.render_loss_figure("ibot_loss", mine=mine, references=references, band=band, span=SPAN)
    assert figure.title == "iBOT loss stays inside the band"
    assert "the limit is 4.23" in figure.caption
    root = parse(figure.upper)
    assert len(by_class(root, "reference")) == 4
    assert len(by_class(root, "band")) == 1
    assert figure.lower is not None
    assert not by_class(parse(figure.lower), "outside")


def test_loss_title_states_where_the_run_leaves_the_band() -> None:
    """A run that leaves its band is said to, with the iteration, and every block outside is marked."""
    mine, references = make_history("main", seed=42), [make_history(f"r{i}", seed=i) for i in range(4)]
    band = make_band("ibot_loss", mine=mine, references=references, shift=9.0)
    outside = [end for end, z in zip(band.ends, band.z, strict=True) if z is not None and abs(z) > band.critical]
    figure = plots.render_loss_figure("ibot_loss", mine=mine, references=references, band=band, span=SPAN)
    assert figure.title == f"iBOT loss leaves the band by iteration {outside[0]:,}"
    assert f"{len(outside)} of {len(band.z)} blocks lie outside" in figure.caption
    assert figure.lower is not None
    assert len(by_class(parse(figure.lower), "outside")) == len(outside)


def test_loss_title_states_that_nothing_was_tested() -> None:
    """Without a reference run, and with one but no band, the title claims nothing."""
    mine = make_history("main")
    alone = plots.render_loss_figure("ibot_loss", mine=mine, references=(), band=None, span=SPAN)
    beside = plots.render_loss_figure("ibot_loss", mine=mine, references=[mine], band=None, span=SPAN)
    assert alone.title == "iBOT loss: nothing to compare with"
    assert beside.title == "iBOT loss: shown, not tested"


def test_loss_that_is_not_finite_is_named_by_its_iteration() -> None:
    """The first iteration that is not finite stands in the title."""
    records = make_records(0)
    records[300].values["ibot_loss"] = math.nan  # type: ignore[index]
    mine = make_history("main", records=records)
    figure = plots.render_loss_figure("ibot_loss", mine=mine, references=(), band=None, span=SPAN)
    assert figure.title == "iBOT loss is not finite from iteration 3,001 on"
    assert parse(figure.upper)


def test_spike_leaves_the_frame_and_not_the_rest() -> None:
    """One line a thousand times too high does not flatten the curve."""
    records = make_records(0)
    records[300].values["ibot_loss"] = 1e4  # type: ignore[index]
    scale = plots.loss_scale([captions.series(records, "ibot_loss")[1]], band=None)
    assert scale.high < 10


def test_overwritten_stretches_and_later_launches_are_drawn() -> None:
    """A resumed run shows what was lost and where each later launch began."""
    records = make_records(1, stop=4200) + make_records(2, start=3600, first_line=421)
    mine = make_history("main", records=records)
    root = parse(plots.render_loss_figure("ibot_loss", mine=mine, references=(), band=None, span=SPAN).upper)
    assert len(by_class(root, "ghost")) == 1
    (line,) = by_class(root, "launch-line")
    assert share_of(line.get("x1", "")) == pytest.approx(SPAN.at(3601), abs=1e-3)
    assert line.findtext("title") == "resume at iteration 3,600"
    strip = parse(plots.render_lineage_figure(mine.lineage, total=TOTAL))
    (lost,) = by_class(strip, "lost")
    assert share_of(lost.get("x", "")) == pytest.approx(0.6, abs=1e-3)
    assert share_of(lost.get("width", "")) == pytest.approx(591 / 6000, abs=1e-3)


@pytest.mark.parametrize(
    ("states", "title"),
    [(("pass", "pass"), "Learning rate is the one it should be"), (("pass", "fail"), "Learning rate is another one"),
     (("unknown", "pass"), "Learning rate is the one it should be"), (("unknown", "unknown"), "Learning rate")],
)  # fmt: skip
def test_schedule_title_says_what_its_checks_say(states: tuple[CheckState, CheckState], title: str) -> None:
    """The title is that of the learning rate's own two checks, not of another column's, and quotes those made."""
    own, column = (
        make_check(id=name, state=state, finding=f"lr: {name}.")
        for name, state in zip(("schedule-lr", "column-lr"), states, strict=True)
    )
    other = make_check(id="column-last_layer_lr", state="fail", finding="another column")
    mine = make_history("main")
    figure = plots.render_schedule_figure(
        "lr", mine=mine, references=[mine], checks=(own, column, other), span=Scale(0, TOTAL)
    )
    assert figure.title == title
    assert "another column" not in figure.caption
    assert [name in figure.caption for name in ("schedule-lr", "column-lr")] == [s != "unknown" for s in states]


def test_knn_figure_keeps_the_pixels_in_the_frame() -> None:
    """The raw-pixel baseline and the published value are drawn where they belong, even far from every curve."""
    levels = [plots.Level(12.5, "raw pixels 12.5 %", "pixels"), plots.Level(97.0, "published 97 %", "published")]
    mine = make_history("main")
    figure = plots.render_knn_figure(20, mine=mine, references=[mine], band=None, levels=levels, span=Scale(0, TOTAL))
    root = parse(figure.upper)
    heights = {kind: float(by_class(root, kind)[0].get("y1", "nan")) for kind in ("pixels", "published")}
    assert 0 < heights["published"] < heights["pixels"] < plots.KNN_PX
    assert re.fullmatch(r"k-NN \(k = 20\) reaches \d\d\.\d\d % after 6,000 iterations", figure.title)


@pytest.mark.parametrize(
    ("difference", "low", "high", "margin"),
    [(-0.07, -0.31, 0.17, 0.5), (2.0, 1.7, 2.3, 0.5), (0.0, 0.0, 0.0, 0.5), (0.3, None, None, None)],
)
def test_interval_lies_where_its_numbers_say(
    difference: float, low: float | None, high: float | None, margin: float | None
) -> None:
    """Point, interval and margin share one axis around zero, and all of it is inside the frame."""
    drawing = plots.render_interval(make_result(difference=difference, low=low, high=high, margin=margin, target=None))
    assert drawing is not None
    root = parse(drawing)
    (point,) = by_class(root, "dot")
    bar = by_class(root, "interval")[0]
    ends = [share_of(bar.get(key, "")) for key in ("x1", "x2")]
    assert 0 <= ends[0] <= share_of(point.get("cx", "")) <= ends[1] <= 1
    if margin:
        (zone,) = by_class(root, "margin")
        edge = share_of(zone.get("x", "")) + share_of(zone.get("width", ""))
        inside = high is not None and low is not None and -margin < low and high < margin
        assert (ends[1] < edge and ends[0] > share_of(zone.get("x", ""))) is inside


def test_interval_of_nothing_is_nothing() -> None:
    """A result without a difference has no drawing."""
    assert plots.render_interval(make_result(difference=None)) is None


@pytest.mark.parametrize("metric", [*LEVELS, "total_loss"])
def test_curves_of_the_longest_run_stay_small(metric: str, long_run: History) -> None:
    """62,500 lines become a drawing of a few tens of kilobytes."""
    span = svg.iteration_scale(625_000)
    figure = plots.render_loss_figure(metric, mine=long_run, references=(), band=None, span=span)
    assert len(figure.upper) < 40_000


@pytest.fixture(scope="module")
def long_run() -> History:
    return make_history("long", records=make_records(0, stop=625_000, total=625_000), total=625_000)


@pytest.mark.parametrize(
    ("period", "least", "most"), [(1500, 4, 4), (600, 8, 10), (1, 20, 60), (0, 0, 0), ("600", 0, 0), (7000, 0, 0)]
)
def test_checkpoints_are_ticks_on_the_axis(period: object, least: int, most: int) -> None:
    """Every checkpoint of a sparse run is drawn, as many as fit of a dense one, and none where none is known."""
    mine = make_history("main", config={"execution": {"checkpoint_period_iterations": period}})
    figure = plots.render_loss_figure("ibot_loss", mine=mine, references=(), band=None, span=SPAN)
    ticks = by_class(parse(figure.upper), "checkpoint")
    shares = sorted(share_of(tick.get("x1", "")) for tick in ticks)
    assert least <= len(ticks) <= most
    assert all(after - before > 0.019 for before, after in itertools.pairwise(shares))
