"""Axes beside iterations: which picture is the same under other labels, and how far runs are stretched."""

import dataclasses
import json

import numpy as np
import pytest
from html_page import Page
from synthetic_runs import TOTAL, make_history, make_runs, make_verdict

from reproduce.axes import axis_knots, over_axis
from reproduce.figures.spans import linear, make_spans
from reproduce.lineage import History, make_lineage
from reproduce.report.page import Axes, render_report


def of_half_the_batch(run: History) -> History:
    """The same lines of a run that has half as many images in an iteration, twice as many iterations, and half of
    the time for each."""
    records = [
        dataclasses.replace(
            record,
            iteration=2 * record.iteration + 1,
            values={**record.values, "current_batch_size": 32.0, "iter_time": record.values["iter_time"] / 2},
        )
        for record in run.lineage.records
    ]
    config = json.loads(json.dumps(run.config, default=dict))
    config["recipe"]["global_batch"] = 32
    return dataclasses.replace(run, lineage=make_lineage(records), total=2 * TOTAL, config=config)


def test_runs_that_count_alike_are_relabelled() -> None:
    """Of one batch and one length, a tenth of the axis of iterations is a tenth of the other; times still differ."""
    mine, references = make_runs()
    spans = {span.key: span for span in make_spans(mine, references=references)}
    assert {key: span.relabelled for key, span in spans.items()} == {
        "progress": True, "images": True, "gpu-hours": False,
    }  # fmt: skip
    assert (spans["progress"].scales[0].high, spans["images"].scales[0].high) == (100, 64 * TOTAL)
    assert spans["images"].scales[0].low == 640


@pytest.mark.parametrize("axis", ["progress", "images", "gpu-hours"])
def test_runs_meet_where_they_are_as_far(axis: str) -> None:
    """Twice the iterations of half the batch, each in half of the time, lie at one place on every axis but iterations;
    a point on it is where its name says."""
    mine = make_history("mine")
    other = of_half_the_batch(mine)
    for spans in (make_spans(mine, references=[other]), linear(make_spans(mine, references=[other]))):
        (span,) = (span for span in spans if span.key == axis)
        assert not span.relabelled
        own, theirs = span.scales
        done = np.array([11.0, 601.0, 2001.0, float(TOTAL)])
        assert own.share(done) == pytest.approx(theirs.share(2 * done), abs=1e-9)
        assert own.share(done)[-1] == pytest.approx(1)
        assert (np.diff(own.share(done)) > 0).all()
    spent = sum(record.values["iter_time"] * rise for record, rise in zip(
        mine.lineage.records, np.diff([-1, *(r.iteration for r in mine.lineage.records)]), strict=True))  # fmt: skip
    end = {"progress": 100.0, "images": 64.0 * TOTAL, "gpu-hours": spent / 3600}[axis]
    assert np.interp(TOTAL, *axis_knots(mine, axis)) == pytest.approx(end)  # type: ignore[arg-type]


def test_gpu_hours_count_processes_and_not_accumulated_parts() -> None:
    """A batch that is taken in four parts by one process costs that process alone."""
    mine = make_history("mine")
    assert mine.config is not None
    values = {"current_batch_size": 16.0, "iter_time": 3600.0}
    records = [dataclasses.replace(r, values={**r.values, **values}) for r in mine.lineage.records]
    mine = dataclasses.replace(mine, lineage=make_lineage(records))
    for accumulation, processes in ((4, 1), (1, 4)):
        config = {**mine.config, "execution": {"accumulation": accumulation}}
        done, hours = axis_knots(dataclasses.replace(mine, config=config), "gpu-hours")
        assert np.interp(100, done, hours) == pytest.approx(100 * processes)


def test_axes_to_choose_are_those_that_all_runs_tell_of() -> None:
    """Iterations first and chosen; an axis is offered where every log says what it takes, and none beside cells."""
    mine, references = make_runs()
    timeless = [
        dataclasses.replace(r, values={k: v for k, v in r.values.items() if k != "iter_time"})
        for r in mine.lineage.records
    ]
    without = dataclasses.replace(references[0], lineage=make_lineage(timeless), config=None, total=None)
    cells = over_axis([mine, references[0]], "progress")
    assert Axes("iterations", make_spans(mine, references=[without])).choices == ()
    assert Axes("cells", make_spans(cells[0], references=cells[1:])).choices == ()
    text = render_report(make_verdict(mine=mine, references=references), mine=mine, references=references)
    inputs = [attributes for tag, attributes in Page(text).tags if tag == "input"]
    offered = ["to-iteration", "to-progress", "to-images", "to-gpu-hours"]
    assert [attributes["class"] for attributes in inputs] == [*offered, *offered]
    assert [attributes["class"] for attributes in inputs if "checked" in attributes] == ["to-iteration"] * 2
