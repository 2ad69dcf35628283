"""Verdicts on released weights in, what a report shows of them out: rows with words and tones."""

from collections.abc import Sequence
from dataclasses import dataclass

from reproduce.quantities import render_fixed
from reproduce.weights_verdict import Comparison, WeightsVerdict

TONES = {"reproduced": "pass", "consistent": "partial", "differs": "fail", "no reference": "unknown"}
STATES = {"agrees": "pass", "differs": "fail", "other size": "absent", "not measured": "absent"}


@dataclass(frozen=True)
class WeightsRow:
    """One published value with its tone, and the difference as text."""

    item: Comparison
    state: str
    difference: str


@dataclass(frozen=True)
class WeightsView:
    """A verdict with its tone and word."""

    verdict: WeightsVerdict
    state: str
    word: str
    rows: tuple[WeightsRow, ...]


def make_weights(verdicts: Sequence[WeightsVerdict]) -> tuple[WeightsView, ...]:
    """The verdicts in their order; the values that decide before the others."""
    views = []
    for verdict in verdicts:
        ordered = sorted(verdict.comparisons, key=lambda item: (item.metric, not item.target, item.difference is None))
        rows = tuple(
            WeightsRow(item, STATES[item.state], render_fixed(item.difference, decimals=2, signed=True))
            for item in ordered
        )
        views.append(WeightsView(verdict, TONES[verdict.outcome], f"evaluated, {verdict.outcome}", rows))
    return tuple(views)
