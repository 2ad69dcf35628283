"""Histories in, a verdict out: one outcome, one plain sentence, what could not be concluded, an exit code; as JSON too.

The false-alarm rate alpha of the spec is shared by the three layers that test what is random: a quarter each to the
first lines (L1) and to k-NN (L5), half to the loss curves (L4).
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reproduce.bands import LOG_TIME_CORRELATION, SIMULATIONS
from reproduce.checks import Band, Check
from reproduce.checks import MetricResult as MetricResult
from reproduce.conclusions import Grounds, decide, exit_code, say_open_questions, say_outcome
from reproduce.conclusions import Outcome as Outcome
from reproduce.curves import BLOCKS_PER_OCTAVE, LOSSES
from reproduce.json_text import render_json
from reproduce.layers.beginning import check_beginning
from reproduce.layers.ceilings import check_absolute
from reproduce.layers.configuration import check_configuration
from reproduce.layers.data import check_data, find_replay
from reproduce.layers.draws import check_draws
from reproduce.layers.fingerprint import check_first_lines, identical_run
from reproduce.layers.knn import KnnBand, check_knn, make_knn_band, render_knn_band
from reproduce.layers.losses import FLOOR, POOL, LossBands, check_losses, make_loss_bands, render_bands
from reproduce.layers.results import make_knn_results, make_loss_results
from reproduce.layers.schedules import check_schedules
from reproduce.lineage import History, log_period
from reproduce.spec import Margins, Spec

DEFAULT_MARGINS = Margins(alpha=0.01, loss_relative=0.01, knn_points=0.5)
REACH = "iterations_compared"
SHARES = {"L1": 0.25, "L4": 0.5, "L5": 0.25}


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

    method: the numbers the method was run with (alpha, critical values, ...), for the report's method box; where the
    references end early, how many iterations were compared.
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
        return render_json(dataclasses.asdict(self)) + "\n"

    @property
    def on_track_at(self) -> float | None:
        """The share of the recipe up to which a run is on track, as far as it was compared; None of other outcomes."""
        if self.outcome != "on track" or self.progress is None:
            return None
        return self.progress * self.method.get(REACH, self.done) / max(self.done, 1)

    @classmethod
    def from_json(cls, text: str) -> "Verdict":
        """The verdict that `to_json` wrote. Raises ValueError where the text is not one."""
        try:
            return typing.cast(Verdict, _restore(cls, json.loads(text)))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a verdict: {error}") from error


def judge(
    mine: History, references: Sequence[History], *, spec: Spec | None = None, columns: Sequence[str] | None = None
) -> Verdict:
    """Hold a run against its reference runs, its own recipe and, through `spec`, the row's recipe and published value.

    With `columns`, nothing but those as curves, and k-NN: for logs of another family than DINOv2's, or over another
    axis. What is missing is a state, not an error: an unfinished run is judged as far as it came.
    """
    margins = spec.margins if spec else DEFAULT_MARGINS
    total = mine.total or max((run.total or 0 for run in references), default=0) or None
    losses = LOSSES if columns is None else columns
    bands = make_loss_bands(
        mine, references=references, total=total, alpha=margins.alpha * SHARES["L4"], metrics=losses
    )
    knn = make_knn_band(mine, references=references, alpha=margins.alpha * SHARES["L5"])
    checks = _make_checks(
        mine, references, spec=spec, margins=margins, bands=bands, knn=knn, curves_only=columns is not None
    )
    metrics = _make_metrics(mine, references, spec=spec, margins=margins, bands=bands, knn=knn)
    progress, twin = _progress(mine, references, total), identical_run(mine, references, metrics=losses)
    grounds = Grounds(mine, tuple(references), checks, metrics, bands, progress, twin)
    outcome = decide(grounds)
    return Verdict(
        outcome=outcome,
        sentence=say_outcome(outcome, grounds),
        cannot_conclude=say_open_questions(grounds),
        row=spec.row if spec else None,
        version=spec.version if spec else None,
        run=mine.name,
        done=mine.done,
        total=total,
        progress=grounds.progress,
        checks=checks,
        metrics=metrics,
        bands=(*(render_bands(bands) if bands else ()), *((render_knn_band(knn),) if knn else ())),
        references=tuple(map(_summary, references)),
        problems=tuple(problem for run in (mine, *references) for problem in _problems(run, spec=spec)),
        method=_method(margins, bands, knn) | ({REACH: float(grounds.reach)} if grounds.shorter else {}),
        exit_code=exit_code(outcome, grounds),
    )


def _make_checks(
    mine: History,
    references: Sequence[History],
    *,
    spec: Spec | None,
    margins: Margins,
    bands: LossBands | None,
    knn: KnnBand | None,
    curves_only: bool,
) -> tuple[Check, ...]:
    curves = (*check_losses(mine, bands=bands), *check_knn(knn, mine=mine, margin=margins.knn_points))
    if curves_only:
        return curves
    return (
        *check_configuration(mine, references=references, spec=spec),
        *check_data(mine, references=references, spec=spec),
        *check_first_lines(mine, references=references, alpha=margins.alpha * SHARES["L1"]),
        *check_schedules(mine, references=references),
        *check_draws(mine, references=references),
        *check_absolute(mine, references=references),
        check_beginning(mine),
        *curves,
    )


def _make_metrics(
    mine: History,
    references: Sequence[History],
    *,
    spec: Spec | None,
    margins: Margins,
    bands: LossBands | None,
    knn: KnnBand | None,
) -> tuple[MetricResult, ...]:
    points, alpha = margins.knn_points, margins.alpha * SHARES["L5"]
    return (
        *make_knn_results(mine, references=references, band=knn, spec=spec, margin=points, alpha=alpha),
        *make_loss_results(bands, margin_relative=margins.loss_relative),
    )


def _progress(mine: History, references: Sequence[History], total: int | None) -> float | None:
    """The share of the recipe that is done; of the longest reference run where no log says how long the recipe is.

    A text log stops at the last multiple of its period: less than one period short counts as done.
    """
    of = total or max((run.done for run in references), default=0)
    if not of:
        return None
    short = of - mine.done
    return 1.0 if short < log_period(mine.lineage.records) else mine.done / of


def _problems(run: History, *, spec: Spec | None) -> list[str]:
    replay = find_replay(run, spec=spec)
    return [str(problem) for problem in (*run.problems, *((replay,) if replay else ()))]


def _summary(run: History) -> ReferenceSummary:
    return ReferenceSummary(run.name, str(run.path), run.seed, run.done, len(run.lineage.launches))


def _method(margins: Margins, bands: LossBands | None, knn: KnnBand | None) -> dict[str, float]:
    """The numbers that the method was run with."""
    numbers = {
        "alpha": margins.alpha,
        **{f"alpha_{layer}": margins.alpha * share for layer, share in SHARES.items()},
        "margin_loss_relative": margins.loss_relative,
        "margin_knn_points": margins.knn_points,
        "blocks_per_octave": float(BLOCKS_PER_OCTAVE),
        "pool_blocks": float(POOL),
        "floor_relative": FLOOR,
        "correlation_length_log_time": LOG_TIME_CORRELATION,
        "simulations": float(SIMULATIONS),
    }
    if bands is not None and math.isfinite(bands.limits.critical):
        numbers |= {"critical_losses": bands.limits.critical, "references_losses": float(len(bands.runs))}
    if knn is not None and math.isfinite(knn.limits.critical):
        numbers |= {"critical_knn": knn.limits.critical, "references_knn": float(len(knn.references))}
    return numbers


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
