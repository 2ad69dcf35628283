"""What a check is: one test with its state, its number, its limit, and the lines that show it.

The tests themselves are in `reproduce/layers/`, one module a layer.
"""

import bisect
import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from reproduce.lineage import History
from reproduce.logs import read_lines

Layer = Literal["L0", "L1", "L2", "L3", "L4", "L5"]
CheckState = Literal["pass", "warn", "fail", "unknown"]
MetricState = Literal["reproduced", "consistent", "better", "worse", "unknown"]


@dataclass(frozen=True)
class Evidence:
    """A quoted line: `source` is the file, `line` its number (None where the evidence has none)."""

    source: str
    line: int | None
    text: str


@dataclass(frozen=True)
class Check:
    """One test. `finding` is one plain sentence of what was found, with its numbers.

    value against limit: the number that decides, in `unit`; None where the test has no number.
    iteration: where it broke first (or None). says / cannot_say: what a pass means, and what it does not show.
    """

    id: str
    layer: Layer
    title: str
    state: CheckState
    finding: str
    value: float | None
    limit: float | None
    unit: str
    iteration: int | None
    evidence: tuple[Evidence, ...]
    says: str
    cannot_say: str


@dataclass(frozen=True)
class Band:
    """The simultaneous band of one metric, block by block (tuples of equal length; None where not tested).

    kind "loss": blocks (start, end] of iterations done. kind "knn": points, start == end == iterations done.
    `z` is the standardized deviation of `mine` from `center`; it leaves the band where |z| > `critical`.
    """

    metric: str
    kind: Literal["loss", "knn"]
    statistic: str
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    mine: tuple[float | None, ...]
    center: tuple[float | None, ...]
    lower: tuple[float | None, ...]
    upper: tuple[float | None, ...]
    z: tuple[float | None, ...]
    critical: float
    references: int


@dataclass(frozen=True)
class MetricResult:
    """One headline metric of the run against what it is judged by.

    mine: the run's value, at `iteration` iterations done. target: the published value, None where there is none.
    basis: what `center` is, e.g. "mean of 10 reference runs" or "published". difference = mine - center.
    low, high: the confidence interval of the difference at `confidence`. margin: the equivalence margin of the spec.
    detectable: the smallest true difference that would have been seen (at 50 % power), None where not computable.
    """

    name: str
    title: str
    unit: str
    state: MetricState
    iteration: int | None
    mine: float | None
    target: float | None
    target_source: str
    basis: str
    center: float | None
    references: tuple[float, ...]
    difference: float | None
    low: float | None
    high: float | None
    confidence: float
    margin: float | None
    detectable: float | None
    note: str


def plural(count: int, one: str) -> str:
    """`1 line`, `3 lines`."""
    return f"{count:,} {one}" if count == 1 else f"{count:,} {one}s"


def the_references(count: int) -> str:
    """`the reference run`, `the 10 reference runs`."""
    return "the reference run" if count == 1 else f"the {count:,} reference runs"


def finite_number(value: float) -> float | None:
    """A number for JSON, which has neither infinity nor NaN: None for those."""
    return float(value) if math.isfinite(value) else None


def finite_numbers(values: Iterable[float]) -> tuple[float | None, ...]:
    """Numbers for JSON, each as `finite_number`."""
    return tuple(map(finite_number, values))


def quote(history: History, iteration: int, *, metric: str) -> tuple[Evidence, ...]:
    """The line that `history` logged for `iteration`, cut down to the iteration and `metric`; none if there is none."""
    records = history.lineage.records
    place = bisect.bisect_left(records, iteration, key=lambda record: record.iteration)
    if history.log_path is None or place == len(records) or records[place].iteration != iteration:
        return ()
    number = records[place].line
    line = next(itertools.islice(read_lines(history.log_path), number - 1, None), "")
    return (Evidence(str(history.log_path), number, _excerpt(line, metric)),)


def _excerpt(line: str, metric: str) -> str:
    """The parts of an iteration line that matter, with … for what was left out."""
    if line.startswith("{"):
        parts = re.findall(rf'"(?:iteration|{re.escape(metric)})": [^,}}]+', line)
        return "{" + ", … ".join(parts) + ", …}"
    parts = re.findall(rf"Training +\[[^\]]+\]|(?<=  ){re.escape(metric)}: [^ ]+(?: \([^)]+\))?", line)
    return "  …  ".join(parts)
