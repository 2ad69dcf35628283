"""Checks in, a verdict out: one outcome, one plain sentence, what could not be concluded, an exit code; as JSON too."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from reproduce.checks import Band, Check

T = TypeVar("T")

Outcome = Literal["reproduced", "consistent", "better", "worse", "failed", "on track", "variant", "no reference"]
MetricState = Literal["reproduced", "consistent", "better", "worse", "unknown"]


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


@dataclass(frozen=True)
class ReferenceSummary:
    """A run that was compared against. `done` iterations by its log."""

    name: str
    path: str
    seed: int | None
    done: int
    launches: int


@dataclass(frozen=True)
class Verdict:
    """What the checks say together. `row` and `version` are None without a spec; `progress` is done / total or None.

    method: the numbers the method was run with (alpha, critical values, ...), for the report's method box.
    """

    outcome: Outcome
    sentence: str
    cannot_conclude: tuple[str, ...]
    row: str | None
    version: int | None
    run: str
    done: int
    total: int | None
    progress: float | None
    checks: tuple[Check, ...]
    metrics: tuple[MetricResult, ...]
    bands: tuple[Band, ...]
    references: tuple[ReferenceSummary, ...]
    problems: tuple[str, ...]
    method: Mapping[str, float]
    exit_code: int

    def to_json(self) -> str:
        """The text of `reports/<row>.json`; the same verdict gives the same bytes."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Verdict":
        """The verdict that `to_json` wrote. Raises ValueError where the text is not one."""
        try:
            return typing.cast(Verdict, _restore(cls, json.loads(text)))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a verdict: {error}") from error


def _restore(kind: Any, value: Any) -> Any:
    """A JSON value as the type of its annotation: dataclasses from mappings, tuples from lists."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return typing.cast(type, kind)(
            **{f.name: _restore(hints[f.name], value[f.name]) for f in dataclasses.fields(kind)}
        )
    if origin is tuple:
        return tuple(_restore(arguments[0], item) for item in value)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _restore(next(a for a in arguments if a is not type(None)), value)
    return value
