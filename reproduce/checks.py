"""Histories in, checks out: each one test with its state, its number, its limit, and the lines that show it."""

from dataclasses import dataclass
from typing import Literal

Layer = Literal["L0", "L1", "L2", "L3", "L4", "L5"]
CheckState = Literal["pass", "warn", "fail", "unknown"]


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

    kind "loss": blocks (start, end] of iterations. kind "knn": points, start == end == iterations done.
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
