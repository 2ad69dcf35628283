"""A verdict, its histories and an audit in, what a report says of them out: rows and words, words, drawings."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from reproduce.audit import Finding, equal
from reproduce.checks import Check, MetricResult
from reproduce.curves import LOSSES
from reproduce.figures.plots import render_interval
from reproduce.lineage import History
from reproduce.quantities import plural, render_fixed, render_number
from reproduce.spec import Claim, Metric, Spec
from reproduce.verdict import Verdict

STATE_WORDS = {"pass": "pass", "warn": "warning", "fail": "fail", "unknown": "unknown", "absent": "not run"}
NOT_COMPARED = "not compared"
OUTCOMES = {  # outcome of a verdict -> tone, word
    "reproduced": ("pass", "Reproduced"),
    "consistent": ("partial", "Consistent"),
    "on track": ("partial", "On track"),
    "better": ("warn", "Better"),
    "variant": ("warn", "Variant"),
    "worse": ("fail", "Worse"),
    "failed": ("fail", "Failed"),
    "no reference": ("unknown", "No reference"),
    "not run": ("absent", "Not run"),
}
METRIC_STATES = {
    "reproduced": ("pass", "reproduced"),
    "consistent": ("partial", "consistent"),
    "better": ("warn", "better"),
    "worse": ("fail", "worse"),
    "unknown": ("unknown", "not judged"),
}
METHOD_TERMS = {
    "alpha": "False alarms in all, at most",
    "alpha_L1": "of them first iterations",
    "alpha_L4": "of them loss band",
    "alpha_L5": "of them k-NN",
    "margin_loss_relative": "Margin of a loss, share of it",
    "margin_knn_points": "Margin of k-NN, points",
    "blocks_per_octave": "Blocks per octave",
    "pool_blocks": "Variance pooled over, blocks each way",
    "floor_relative": "Least spread, share of a loss",
    "correlation_length_log_time": "Correlation length in log time",
    "simulations": "Simulated sets of runs",
    "critical_losses": "Limit of |z|, losses",
    "references_losses": "Reference runs, losses",
    "critical_knn": "Limit of |z|, k-NN",
    "references_knn": "Reference runs, k-NN",
    "iterations_compared": "Compared as far as the references go",
}
LOSS_STATES = METRIC_STATES | {"better": ("fail", "lower"), "worse": ("fail", "higher")}  # a lower loss is not better
LAYERS = {
    "L0": ("Configuration", "Before anything runs: do recipe, configuration and log agree?"),
    "L1": ("First iterations", "Same heads, losses and initialization? The first losses are a fingerprint."),
    "L2": ("Schedules and input", "Line by line: learning rate, decay, momentum, batch; then crops, blur and masks."),
    "L3": ("Collapse", "Is the loss clear of the value that a constant output has?"),
    "L4": ("Loss band", "Does every loss keep within the spread of equal runs?"),
    "L5": ("k-NN", "The result itself: is the representation as good?"),
}


@dataclass(frozen=True)
class OutcomeView:
    """The banner: a tone for icon and color, the word, the sentence, and under a heading what stays open."""

    tone: str
    word: str
    sentence: str
    heading: str
    open: tuple[str, ...]


@dataclass(frozen=True)
class LayerView:
    """One rung of the ladder. `state` is the worst of its checks; "absent" where none ran."""

    id: str
    name: str
    question: str
    state: str
    word: str
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class ResultView:
    """One result: its facts as a list of terms, and how its interval reads in words."""

    result: MetricResult
    state: str
    word: str
    decimals: int
    facts: tuple[tuple[str, str], ...]
    reading: str
    interval: Markup | None


@dataclass(frozen=True)
class KnnRow:
    """Accuracies at one k, at the last evaluation of mine; None where there is none."""

    k: int
    mine: float | None
    mean: float | None
    low: float | None
    high: float | None
    untrained: float | None
    pixels: float | None


@dataclass(frozen=True)
class ClaimRow:
    """A fact as the audit found it, and the places of those of its values that are run."""

    finding: Finding
    runs: tuple[int, ...]


@dataclass(frozen=True)
class ClaimGroup:
    """Claims of one state; the harmless ones are folded away."""

    title: str
    folded: bool
    rows: tuple[ClaimRow, ...]


def make_outcome(verdict: Verdict | None, *, spec: Spec | None, findings: Sequence[Finding]) -> OutcomeView:
    """The banner of a verdict, or of a row that was never run."""
    if verdict is not None:
        tone, word = OUTCOMES[verdict.outcome]
        sentence = verdict.sentence.removeprefix(f"{word}: ")  # the banner has said the word
        return OutcomeView(tone, word, sentence, "What could not be concluded", verdict.cannot_conclude)
    conflicts = sum(finding.state == "conflict" for finding in findings)
    sentence = "No run of this row was found: this page holds what was published of it, and nothing is judged."
    if conflicts:
        sentence += f" Its sources contradict one another on {plural(conflicts, 'fact')}."
    return OutcomeView(*OUTCOMES["not run"], sentence, "What is missing", describe_gaps(spec) if spec else ())


def describe_gaps(spec: Spec) -> tuple[str, ...]:
    """What a reproduction of the row has to do without."""
    logs = {
        "published": (),
        "never published": ("Its log was never published, so first iterations and loss band can never be held to it.",),
        "ours": (),
    }
    gaps = ["A run.", *logs[spec.published_log.state]]
    judged, _ = split_metrics(spec)
    gaps += [f"A trustworthy published value: {metric.label}." for metric in judged if metric.target is None]
    if not any(file.status == "published" for file in spec.weights):
        gaps.append("Released weights that can be trusted.")
    return tuple(gaps)


def split_metrics(spec: Spec) -> tuple[tuple[Metric, ...], tuple[Metric, ...]]:
    """The metrics that are measured here, and the others."""
    judged = tuple(metric for metric in spec.metrics if metric.target is not None or metric.target_why)
    return judged, tuple(metric for metric in spec.metrics if metric not in judged)


def make_layers(checks: Sequence[Check]) -> tuple[LayerView, ...]:
    """All six rungs in order, with those checks that ran."""
    views = []
    for layer, (name, question) in LAYERS.items():
        own = tuple(check for check in checks if check.layer == layer)
        state = worst_state([check.state for check in own])
        word = STATE_WORDS[state] if own else NOT_COMPARED
        views.append(LayerView(layer, name, question, state, word, own))
    return tuple(views)


def worst_state(states: Sequence[str]) -> str:
    """fail before warn before unknown before pass; "absent" where there is none."""
    return next((state for state in ("fail", "warn", "unknown", "pass") if state in states), "absent")


def describe_checks(checks: Sequence[Check]) -> str:
    """How many checks ended how, in one line."""
    if not checks:
        return "No check ran."
    counts = [(sum(check.state == state for check in checks), word) for state, word in STATE_WORDS.items()]
    parts = ", ".join(f"{count} {word}" for count, word in counts if count)
    return f"{plural(len(checks), 'check')}, cheapest first: {parts}. Open one for the lines that show it."


def make_results(results: Sequence[MetricResult], *, cells: bool = False) -> tuple[ResultView, ...]:
    """Results in the verdict's order; of runs in cells of an axis, after how many is left out."""
    views = []
    for result in results:
        states = LOSS_STATES if result.name in LOSSES else METRIC_STATES
        state, word = states[result.state]
        decimals = 2 if "%" in result.unit or "point" in result.unit else 4
        views.append(
            ResultView(
                result,
                state,
                word,
                decimals,
                _result_facts(result, decimals, cells=cells),
                _reading(result, decimals),
                render_interval(result),
            )
        )
    return tuple(views)


def difference_unit(result: MetricResult) -> str:
    """Differences of percentages are points."""
    unit = "points" if result.unit == "%" else result.unit
    return f" {unit}" if unit else ""


def _result_facts(result: MetricResult, decimals: int, *, cells: bool) -> tuple[tuple[str, str], ...]:
    """The headline's list: what the value is held against, what was published, the interval and the margin."""
    unit = f" {result.unit}" if result.unit else ""
    facts = []
    if result.center is not None:
        facts.append(("Held against", f"{render_fixed(result.center, decimals=decimals)}{unit}, {result.basis}"))
    if result.target is not None:
        facts.append(("Published", f"{render_number(result.target)}{unit}, {result.target_source}"))
    if result.iteration is not None and not cells:
        facts.append(("Measured after", f"{result.iteration:,} iterations"))
    if result.detectable is not None:
        facts.append(
            (
                "Detectable",
                f"a true difference of {render_number(result.detectable, digits=2)}{difference_unit(result)} or more",
            )
        )
    return tuple(facts)


def _reading(result: MetricResult, decimals: int) -> str:
    """The difference, its interval and its margin in one line."""
    if result.difference is None:
        return ""
    text = f"difference {render_fixed(result.difference, decimals=decimals, signed=True)}{difference_unit(result)}"
    if result.low is not None and result.high is not None:
        low, high = (render_fixed(edge, decimals=decimals, signed=True) for edge in (result.low, result.high))
        text += f", {100 * result.confidence:.0f} % interval {low} to {high}"
    if result.margin is not None:
        text += f", margin ±{render_number(result.margin, digits=2)}"
    if result.target is not None and result.center is not None:
        text += f"; ◆ published {render_fixed(result.target - result.center, decimals=decimals, signed=True)}"
    return text


def make_knn_rows(mine: History, *, references: Sequence[History], pixels: Mapping[str, Any]) -> tuple[KnnRow, ...]:
    """One row per k at the last iteration at which mine was evaluated."""
    if not mine.knn:
        return ()
    done = max(mine.knn)
    rows = []
    for k in sorted({k for point in mine.knn.values() for k in point}):
        others = [run.knn[done][k] for run in references if k in run.knn.get(done, {})]
        untrained = mine.knn[0].get(k) if 0 in mine.knn and done else None
        baseline = pixels.get(str(k))
        rows.append(
            KnnRow(
                k,
                mine.knn[done].get(k),
                statistics.fmean(others) if others else None,
                min(others, default=None),
                max(others, default=None),
                untrained,
                float(baseline) if isinstance(baseline, (int, float)) and math.isfinite(baseline) else None,
            )
        )
    return tuple(rows)


def make_claim_rows(findings: Sequence[Finding], *, claims: Sequence[Claim]) -> tuple[ClaimRow, ...]:
    """Every finding with the places of the values that are run, to the claim's own tolerance."""
    tolerances = {claim.field: claim.tolerance_relative for claim in claims}
    return tuple(
        ClaimRow(
            finding,
            tuple(
                place
                for place, item in enumerate(finding.values)
                if finding.run_value is not None
                and equal(item.value, finding.run_value, tolerance=tolerances[finding.field])
            ),
        )
        for finding in findings
    )


def make_claim_groups(rows: Sequence[ClaimRow]) -> tuple[ClaimGroup, ...]:
    """Conflicts first, then what no source states, then the rest, folded."""
    titles = {
        "conflict": ("sources contradict one another", False),
        "open": ("no source speaks of this row", False),
        "single": ("one source states it", True),
        "agree": ("all sources agree", True),
    }
    groups = []
    for state, (title, folded) in titles.items():
        own = tuple(row for row in rows if row.finding.state == state)
        if own:
            groups.append(ClaimGroup(f"{plural(len(own), 'fact')}: {title}", folded, own))
    return tuple(groups)


def describe_claims(rows: Sequence[ClaimRow]) -> str:
    """How many facts stand on how firm ground."""
    if not rows:
        return "The spec states no claims."
    conflicts = sum(row.finding.state == "conflict" for row in rows)
    firm = f"on {conflicts} of them the sources disagree" if conflicts else "no two sources contradict one another"
    return f"{plural(len(rows), 'published fact')}; {firm}. Beside each stands what is run here, and why."


def method_numbers(method: Mapping[str, float]) -> tuple[tuple[str, str], ...]:
    """The numbers that the method was run with, by what they are."""
    return tuple((METHOD_TERMS.get(key, key), render_number(value)) for key, value in method.items())
