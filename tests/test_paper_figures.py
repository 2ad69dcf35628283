"""A figure for a paper: the same bytes each time, gaps where there are no numbers, a mistake said in a sentence."""

import dataclasses
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from synthetic_runs import make_history, make_records
from typer.testing import CliRunner

from reproduce.cli import app
from reproduce.errors import LogError, ReproduceError
from reproduce.figures import paper
from reproduce.figures.svg import iteration_scale
from reproduce.lineage import History
from reproduce.logs import Record

STARTS = {"pdf": b"%PDF-", "png": b"\x89PNG\r\n", "svg": b"<?xml"}


def make_run(seed: int, *, stop: int = 600) -> History:
    return make_history(f"$seed_{seed}$", seed=seed, records=make_records(seed, stop=stop, total=600), total=600)


def with_values(run: History, *, rows: slice = slice(None), **values: float) -> History:
    """The run with other values on some of its lines."""
    records = list(run.lineage.records)
    records[rows] = [dataclasses.replace(line, values={**line.values, **values}) for line in records[rows]]
    return dataclasses.replace(run, lineage=dataclasses.replace(run.lineage, records=tuple(records)))


def texts(run: History, references: Sequence[History] = ()) -> str:
    """The words of a figure: Matplotlib writes each as a comment beside its glyphs."""
    drawing = paper.render_paper_figure(run, references=references, form="svg").decode()
    ElementTree.fromstring(drawing)
    assert "nan" not in drawing.lower().replace("nan-", "")
    return drawing


@pytest.mark.parametrize("form", STARTS)
def test_bytes_are_the_same_each_time(form: str) -> None:
    """The same logs give the same file, whatever the user's settings, which stay as they were."""
    mine, others = make_run(0), [make_run(1), make_run(2)]
    first = paper.render_paper_figure(mine, references=others, form=form)
    with matplotlib.rc_context({"lines.linewidth": 9, "savefig.dpi": 50, "svg.hashsalt": None, "font.size": 20}):
        assert paper.render_paper_figure(mine, references=others, form=form) == first
        assert matplotlib.rcParams["lines.linewidth"] == 9
    assert first.startswith(STARTS[form])


def test_every_loss_and_the_evaluations_have_a_panel() -> None:
    """A panel for each loss, one for k-NN whose title states where it got to; the legend counts the references."""
    drawing = texts(make_run(0), [make_run(seed) for seed in (1, 2, 3)])
    for words in ("Total loss", "iBOT loss", "KoLeo loss", "k-NN (k = 10) reaches", "median of 3 references"):
        assert f"<!-- {words}" in drawing
    assert "reference" not in texts(make_run(0))
    bare = dataclasses.replace(make_run(0), knn={})
    assert "k-NN" not in texts(bare, [make_run(1)])


def test_curve_is_the_log() -> None:
    """A column of the drawing is the mean of its lines, and beyond the last line there is none."""
    run = make_run(0, stop=300)
    span = iteration_scale(600)
    curve = paper._on_columns(with_values(run, ibot_loss=2.5), "ibot_loss", span)
    middles = span.low * (span.high / span.low) ** paper._column_middles()
    inside = (middles > 11) & (middles < 290)
    assert np.allclose(curve[inside], 2.5)
    assert np.isnan(curve[middles > 300]).all()


def test_reference_that_ends_early_ends_the_range() -> None:
    """The range never narrows because a run is missing from it, and a panel says where one does not log its loss."""
    short, whole = make_run(1, stop=200), make_run(2)
    silent = [Record(r.line, r.iteration, r.total, {"total_loss": 1.0}, None, None, 0) for r in whole.lineage.records]
    drawing = texts(make_run(0), [short, whole, make_history("silent", records=silent, total=600)])
    assert "iBOT loss (2 of 3 references)" in drawing
    assert "<!-- Total loss -->" in drawing


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e308, 1e38, 0.0])
@pytest.mark.parametrize("rows", [slice(None), slice(20, 30), slice(59, None), slice(1, None)])
def test_broken_values_leave_gaps(bad: float, rows: slice) -> None:
    """NaN, infinities and absurd numbers, in this run or in its references, are gaps and no crash."""
    run, sound = with_values(make_run(0), rows=rows, ibot_loss=bad, total_loss=bad), make_run(1)
    drawing = texts(run, [sound])
    assert ("not finite from" in drawing) == (not math.isfinite(bad))
    texts(sound, [run, make_run(2)])


@pytest.mark.parametrize("lines", [1, 2, 3])
def test_shortest_logs_are_drawn(lines: int) -> None:
    """One line is enough, alone and beside others."""
    run = make_run(0, stop=10 * lines)
    texts(run)
    texts(run, [run, make_run(1)])
    texts(dataclasses.replace(run, knn={0: {10: 50.0}}), [make_run(1)])


def test_names_from_a_log_are_never_markup() -> None:
    """Metrics that we do not know and names of runs are not set as type: neither markup nor mathematics."""
    hostile = with_values(make_run(0), **{"$\\frac{_loss": 1.0, "<script>": 2.0, "k-NN": 3.0, "\ud800": 4.0})
    drawing = texts(dataclasses.replace(hostile, name="$\\undefined{<script>"), [hostile])
    assert "script" not in drawing
    assert "frac" not in drawing


def test_mistakes_say_what_is_wrong(tmp_path: Path) -> None:
    """An unknown suffix, a folder that does not exist and a log without any curve are each named."""
    run = make_run(0)
    for name, said in (("figure.gif", "the suffix .gif"), ("figure", "no suffix"), ("none/figure.pdf", "No such file")):
        with pytest.raises(ReproduceError, match=said):
            paper.write_paper_figure(tmp_path / name, mine=run, references=())
    empty = make_history("empty", records=[], knn={})
    for mine, others in ((empty, ()), (run, (empty,))):
        with pytest.raises(LogError, match="runs/empty: nothing to draw"):
            paper.write_paper_figure(tmp_path / "figure.pdf", mine=mine, references=others)
    unfinished = dataclasses.replace(empty, knn={100: {10: math.nan}})
    with pytest.raises(LogError, match="nothing to draw"):
        paper.write_paper_figure(tmp_path / "figure.pdf", mine=unfinished, references=())
    assert not list(tmp_path.iterdir())


def test_command_writes_the_figure(tmp_path: Path) -> None:
    """The command draws logs into the file that it is told, and its suffix is read before any log."""
    log = tmp_path / "log.json"
    log.write_text("".join(f'{{"iteration": {i}, "total_loss": {9 - i / 100}}}\n' for i in range(0, 300, 10)))
    target = tmp_path / "figure.SVG"
    assert CliRunner().invoke(app, ["figure", str(log), str(log), "--to", str(target)]).exit_code == 0
    assert target.read_bytes().startswith(STARTS["svg"])
    assert CliRunner().invoke(app, ["figure", "missing", "--to", "figure.tiff"]).exit_code == 2
    assert CliRunner().invoke(app, ["figure", str(log)]).exit_code == 2
