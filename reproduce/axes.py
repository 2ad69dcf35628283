"""Runs that are counted differently in, the same runs over one axis out: progress, images seen or GPU-hours.

The axis is cut into as many equal cells as the shortest log has lines, `CELLS` at most; a cell holds the mean of the
lines in it. What a run logs at a point therefore becomes comparable with what another logs near it, and no finer.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reproduce.errors import LogError
from reproduce.layers.configuration import known_recipe
from reproduce.lineage import POINT, History, Launch, Lineage, log_period
from reproduce.log_head import flatten
from reproduce.records import Record

Axis = Literal["iteration", "progress", "images", "gpu-hours"]

CELLS = 2000
FAR = 10**12  # iterations: no run has as many


def over_axis(runs: Sequence[History], axis: Axis) -> list[History]:
    """The runs with cells of the axis for iterations, the first cell 0. The axis ends where the longest run does.

    Over GPU-hours a run that is finished is as long as it took; k-NN is left out, for what is evaluated every so many
    iterations is so at other hours on another machine.
    Raises `LogError` for a run whose log does not say what the axis takes, or, by iteration, for runs that count
    differently.
    """
    if axis == "iteration":
        _require_one_unit(runs)
        return list(runs)
    places = [[_place(run, record.iteration, axis) for record in run.lineage.records] for run in runs]
    if axis == "gpu-hours":
        places = [_gpu_hours(run) for run in runs]
    end = 1.0 if axis == "progress" else max(found[-1] for found in places)
    cells = max(1, min(CELLS, *(len(found) for found in places)))
    return [_resampled(run, found, end=end, cells=cells, axis=axis) for run, found in zip(runs, places, strict=True)]


def _require_one_unit(runs: Sequence[History]) -> None:
    other = next((run for run in runs if run.unit != runs[0].unit), None)
    if other is not None:
        raise LogError(
            f"counts in {runs[0].unit}s, {other.path} in {other.unit}s",
            path=runs[0].path,
            mend="compare by another axis: --x progress, or --x images",
        )


def _place(run: History, at: int, axis: Axis) -> float:
    """Where a run stands on the axis after the iteration `at`."""
    if axis == "progress":
        total = whole_length(run)
        if total:
            return (at + 1) / total
        raise LogError(
            "does not say how long the whole run is",
            path=run.path,
            mend="compare by images: --x images, or name log.txt",
        )
    if axis == "images":
        return float(at) if run.unit == "sample" else (at + 1) * _global_batch(run)
    return 0.0


def axis_knots(run: History, axis: Axis) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Iterations done, and where on the axis a run is after them; between two points it is linear. Progress is in
    percent. Two points, the second far beyond any run's end, where it is linear all along.

    Raises `LogError` for a run whose log does not say what the axis takes.
    """
    if axis != "gpu-hours":
        share = 100 if axis == "progress" else 1
        return np.array([0.0, FAR]), np.array([0.0, share * _place(run, FAR - 1, axis)])
    done = [record.iteration + 1.0 for record in run.lineage.records]
    hours = _gpu_hours(run)
    if not all(map(math.isfinite, hours)):
        raise LogError("has lines whose iteration took no finite time", path=run.path, mend="--x progress")
    beyond = hours[-1] * FAR / done[-1]
    return np.array([0.0, *done, done[-1] + FAR]), np.array([0.0, *hours, hours[-1] + beyond])


def whole_length(run: History) -> int | None:
    """Iterations of the whole run, None where the log does not say; of logs of epochs, which never do, those it has."""
    return run.total or (run.done if run.unit == "epoch" else None)


def _global_batch(run: History) -> float:
    """Images of one iteration, over all processes."""
    logged = flatten(run.head.config or {})
    values = run.lineage.records[-1].values
    for batch in (
        known_recipe(run).get("global_batch"),
        logged.get("global_batch_size"),
        values.get("global_batch_size"),
    ):
        if run.unit in ("iteration", "step") and isinstance(batch, (int, float)) and batch > 0:
            return float(batch)
    raise LogError("does not say how many images an iteration has", path=run.path, mend="compare by --x progress")


def _gpu_hours(run: History) -> list[float]:
    """Hours of all GPUs together up to each record, from the printed seconds of an iteration."""
    own_batch = run.lineage.records[-1].values.get("current_batch_size")
    processes = _global_batch(run) / own_batch if own_batch else math.nan
    processes /= ((run.config or run.head.config or {}).get("execution") or {}).get("accumulation", 1)
    if not processes > 0 or any("iter_time" not in record.values for record in run.lineage.records):
        raise LogError(
            "does not say how many GPUs it had, or how long an iteration took", path=run.path, mend="--x progress"
        )
    before = itertools.chain((-1,), (record.iteration for record in run.lineage.records))
    spent = (
        (record.iteration - at) * record.values["iter_time"] * processes / 3600
        for at, record in zip(before, run.lineage.records, strict=False)
    )
    return list(itertools.accumulate(spent))


def _resampled(run: History, places: Sequence[float], *, end: float, cells: int, axis: Axis) -> History:
    gathered: dict[int, list[Record]] = {}
    for place, record in zip(places, run.lineage.records, strict=True):
        gathered.setdefault(min(math.ceil(place / end * cells - 1e-9), cells) - 1, []).append(record)
    records = tuple(_mean_record(cell, found) for cell, found in sorted(gathered.items()) if cell >= 0)
    launch = Launch(records[0].line, records[-1].line, 0, records[-1].iteration, "start")
    over = run.total is not None and run.total - run.done < log_period(run.lineage.records)
    knn = {}
    if axis != "gpu-hours":
        knn = {round(_place(run, done - 1, axis) / end / POINT): point for done, point in run.knn.items() if done > 0}
    return dataclasses.replace(
        run,
        lineage=Lineage((launch,), records, (), run.lineage.problems),
        text=None,
        knn=knn,
        total=cells if axis == "progress" else records[-1].iteration + 1 if axis == "gpu-hours" and over else None,
        unit="cell",
    )


def _mean_record(cell: int, records: Sequence[Record]) -> Record:
    names = dict.fromkeys(name for record in records for name in record.values if not name.startswith("mean_"))
    values = {}
    for name in names:
        found = [record.values[name] for record in records if name in record.values]
        values[name] = math.fsum(found) / len(found) if all(map(math.isfinite, found)) else math.nan
    last = records[-1]
    return Record(last.line, cell, None, values, None, last.time, last.launch)
