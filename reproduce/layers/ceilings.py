"""L3: what no healthy run shows, whatever the reference: values that are not finite, a collapse, a loss that stands.

A student that gives every prototype the same probability has a cross-entropy of ln K at each level, however the
teacher looks. As logged: local n/(n + 1) of it and global 1/(n + 1), for n local crops; iBOT half of it times the
share of masked global crops.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from franca.config import prototypes_per_level
from reproduce.checks import Check, CheckState, Evidence, plural, quote
from reproduce.curves import LOSSES, TOTAL, make_median_curve
from reproduce.layers.configuration import known_recipe, load_recipe
from reproduce.lineage import History, log_period
from reproduce.logs import Record

COLLAPSE_LINES = 50  # in a row; of a short run a quarter, but ten at least
COLLAPSE_DISTANCE = 2e-3  # measured: fires at 1.5 % of a collapsed public run and on none of six others
COLLAPSE_SHARE = 0.25  # of the run: a head without normalization starts at its ceiling, and has left it by then
STANDING_LINES = 20

FINITE = Check(
    id="finite",
    layer="L3",
    title="Finite values",
    state="pass",
    finding="",
    value=0.0,
    limit=0.0,
    unit="lines",
    iteration=None,
    evidence=(),
    says="No loss was infinite or undefined in the branch of the run that counts.",
    cannot_say="Whether single iterations between two lines were, where the log prints medians only.",
)

COLLAPSE = Check(
    id="collapse",
    layer="L3",
    title="Uniform output",
    state="unknown",
    finding="The heads are not known, so the losses of a uniform output are not.",
    value=None,
    limit=float(COLLAPSE_LINES),
    unit="lines at the uniform value",
    iteration=None,
    evidence=(),
    says="The student tells its inputs apart: no loss stays where a uniform output would put it.",
    cannot_say="A collapse of another kind: to one prototype, or of the features and not of the heads.",
)

STANDING = Check(
    id="standing",
    layer="L3",
    title="Loss columns move",
    state="pass",
    finding="",
    value=0.0,
    limit=0.0,
    unit="columns",
    iteration=None,
    evidence=(),
    says="Every loss is there, and moves.",
    cannot_say="Whether it has the right weight in what is optimized.",
)


def check_absolute(mine: History, *, references: Sequence[History]) -> tuple[Check, ...]:
    """The checks that need no reference."""
    return (
        _check_finite(mine),
        _check_collapse(mine, references=references),
        _check_standing(mine, references=references),
    )


def uniform_losses(history: History) -> dict[str, float]:
    """The logged values of a student whose output is uniform, for the losses whose heads are known."""
    recipe = load_recipe(history)
    if recipe is not None:
        return _uniform(
            dino=prototypes_per_level(recipe.heads.dino, recipe.heads.nesting),
            ibot=prototypes_per_level(recipe.heads.ibot, recipe.heads.nesting),
            local_crops=recipe.crops.local_number,
            masked=recipe.masking.sample_probability,
        )
    logged = (history.head.config or {}).get("dino")
    if isinstance(logged, Mapping) and logged.get("MRL"):
        return {}  # the levels of Franca's nested heads are not in its log's configuration
    known = known_recipe(history)
    dino, crops = known.get("heads.dino.prototypes"), known.get("crops.local_number")
    ibot, masked = known.get("heads.ibot.prototypes", dino), known.get("masking.sample_probability")
    if not all(isinstance(value, (int, float)) and value > 0 for value in (dino, ibot, crops, masked)):
        return {}
    return _uniform(dino=(dino,), ibot=(ibot,), local_crops=crops, masked=masked)  # type: ignore[arg-type]


def _uniform(*, dino: tuple[int, ...], ibot: tuple[int, ...], local_crops: int, masked: float) -> dict[str, float]:
    entropy = sum(math.log(prototypes) for prototypes in dino)
    return {
        "dino_local_crops_loss": entropy * local_crops / (local_crops + 1),
        "dino_global_crops_loss": entropy / (local_crops + 1),
        "ibot_loss": sum(math.log(prototypes) for prototypes in ibot) * masked / 2,
    }


def _check_finite(mine: History) -> Check:
    records = mine.lineage.records
    failed = mine.state is not None and mine.state.get("state") == "failed"
    if failed:
        error = (mine.state or {}).get("error")
        message = error.get("message") if isinstance(error, dict) else error
        found = (Evidence(str(mine.path / "state.json"), None, f"state: failed, {message}"),)
        return dataclasses.replace(FINITE, state="fail", finding=f"The run failed: {message}.", evidence=found)
    if not records:
        return dataclasses.replace(FINITE, state="unknown", finding="The log has no iteration lines.", value=None)
    bad = [record for record in records if _non_finite(record, averages=False)]
    if bad:
        at, metric = bad[0].iteration, _non_finite(bad[0], averages=False)
        finding = f"{metric} is not finite at iteration {at:,}, and on {plural(len(bad), 'line')} in all."
        evidence = quote(mine, at, metric=metric)
        return dataclasses.replace(
            FINITE, state="fail", finding=finding, value=float(len(bad)), iteration=at, evidence=evidence
        )
    between = next((record for record in records if _non_finite(record, averages=True)), None)
    lost = next((record for record in mine.lineage.ghosts if _non_finite(record, averages=False)), None)
    if between is not None:
        metric, at = _non_finite(between, averages=True), between.iteration
        finding = f"The mean of {metric} is not finite from iteration {at:,} on: some iteration before it was not."
        evidence = quote(mine, at, metric=metric)
        return dataclasses.replace(FINITE, state="warn", finding=finding, iteration=at, evidence=evidence)
    if lost is not None:
        finding = (
            f"Finite in the branch that counts; a launch that was given up was not, at iteration {lost.iteration:,}."
        )
        return dataclasses.replace(FINITE, state="warn", finding=finding, iteration=lost.iteration)
    return dataclasses.replace(FINITE, finding=f"All losses are finite on {plural(len(records), 'line')}.")


def _check_collapse(mine: History, *, references: Sequence[History]) -> Check:
    ceilings = uniform_losses(mine)
    if not ceilings or not mine.lineage.records:
        return COLLAPSE
    enough, longest, found = find_collapse(mine, ceilings)
    listed = ", ".join(f"{metric} {ceiling:.4f}" for metric, ceiling in ceilings.items())
    check = dataclasses.replace(COLLAPSE, value=float(longest), limit=float(enough))
    if not found:
        finding = f"No loss stays within {COLLAPSE_DISTANCE} of a uniform output's: {listed}."
        return dataclasses.replace(check, state="pass", finding=finding)
    at, metric = min(found)
    finding = f"{metric} stays at {ceilings[metric]:.4f}, a uniform output's value, from iteration {at:,} on."
    alike = references and all(find_collapse(run, ceilings)[2] for run in references)
    if alike:
        finding += " So do all reference runs."
    evidence = quote(mine, at, metric=metric)
    state: CheckState = "warn" if alike else "fail"
    return dataclasses.replace(check, state=state, finding=finding, iteration=at, evidence=evidence)


def find_collapse(history: History, ceilings: Mapping[str, float]) -> tuple[int, int, list[tuple[int, str]]]:
    """How many lines in a row make a collapse, how many there are at most, and where each collapse begins."""
    records = history.lineage.records
    span = history.total or history.done
    enough = min(COLLAPSE_LINES, max(10, span // log_period(records) // 4))
    longest, found = 0, list[tuple[int, str]]()
    for metric, ceiling in ceilings.items():
        curve = make_median_curve(history, metric)
        for first, last in _stretches(np.abs(curve.values - ceiling) <= COLLAPSE_DISTANCE):
            longest = max(longest, last - first + 1)
            start, end = int(curve.iterations[first]), int(curve.iterations[last])
            # A head whose logits begin at zero begins there too; it has to leave.
            if last - first + 1 >= enough and (first > 0 or end >= COLLAPSE_SHARE * span):
                found.append((start, metric))
    return enough, longest, found


def _check_standing(mine: History, *, references: Sequence[History]) -> Check:
    records = mine.lineage.records
    if len(records) < STANDING_LINES:
        finding = f"There {'is' if len(records) == 1 else 'are'} {plural(len(records), 'line')}, too few to tell."
        return dataclasses.replace(STANDING, state="unknown", finding=finding, value=None)
    off = {"koleo_loss": "losses.koleo_weight", "ibot_loss": "losses.ibot_weight"}
    known = known_recipe(mine)
    off_by_recipe = {metric for metric, key in off.items() if known.get(key) == 0}
    others = [metric for metric in LOSSES if any(_moves(run, metric) for run in references)] if references else LOSSES
    missing = [metric for metric in others if not any(metric in record.values for record in records)]
    standing = [metric for metric in others if metric not in missing and not _moves(mine, metric)]
    wrong = [metric for metric in (*missing, *standing) if metric not in off_by_recipe]
    if not wrong:
        note = f" Off by the recipe: {', '.join(sorted(off_by_recipe))}." if off_by_recipe else ""
        return dataclasses.replace(STANDING, finding=f"{plural(len(others), 'loss column')} move.{note}")
    parts = [f"{metric} is not logged" for metric in wrong if metric in missing]
    parts += [f"{metric} does not move" for metric in wrong if metric in standing]
    at = records[len(records) // 2].iteration
    evidence = tuple(found for metric in wrong for found in quote(mine, at, metric=metric))
    return dataclasses.replace(
        STANDING, state="fail", finding=f"{'; '.join(parts)}.", value=float(len(wrong)), evidence=evidence
    )


def _moves(history: History, metric: str) -> bool:
    """Whether the second half of a column holds more than one value."""
    values = make_median_curve(history, metric).values
    return len(np.unique(values[len(values) // 2 :])) > 1


def _non_finite(record: Record, *, averages: bool) -> str:
    """The first loss of a line that is not finite, or the empty string."""
    values = (record.averages or {}) if averages else record.values
    return next((key for key in (*LOSSES, TOTAL) if not math.isfinite(values.get(key, 0.0))), "")


def _stretches(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last place of every stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return [(int(first), int(last) - 1) for first, last in edges.reshape(-1, 2)]
