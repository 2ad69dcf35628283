"""Every row with its newest verdict in, one page out: a matrix of rows and checks, each state an icon with its word."""

from collections.abc import Sequence
from dataclasses import dataclass

from reproduce.audit import Finding, audit
from reproduce.figures.quantities import plural, render_value
from reproduce.report.page import render_page
from reproduce.report.sections import LAYERS, NOT_COMPARED, OUTCOMES, STATE_WORDS, split_metrics, worst_state
from reproduce.spec import Spec
from reproduce.verdict import Verdict

NEEDS_LOG = {"L1", "L4"}  # layers that can only hold a log against another one


@dataclass(frozen=True)
class IndexEntry:
    """A row: its spec, its newest verdict if it was run, and the report's file beside the index if there is one.

    `command` is what reproduces it.
    """

    spec: Spec
    verdict: Verdict | None
    report: str | None
    command: str


@dataclass(frozen=True)
class Cell:
    """One state of the matrix; `text` is what a pointer resting on it is told."""

    state: str
    word: str
    text: str


@dataclass(frozen=True)
class IndexRow:
    """A row as the page shows it."""

    entry: IndexEntry
    outcome: Cell
    cells: tuple[Cell, ...]
    published: tuple[str, ...]
    conflicts: int


def render_index(entries: Sequence[IndexEntry]) -> str:
    """The index of all rows, in the order given."""
    rows = tuple(_make_row(entry) for entry in entries)
    run = sum(entry.verdict is not None for entry in entries)
    context = {
        "rows": rows,
        "layers": tuple(LAYERS.items()),
        "summary": f"{plural(len(rows), 'row')}, {run} of them run here.",
    }
    return render_page("index.html", context)


def _make_row(entry: IndexEntry) -> IndexRow:
    findings: Sequence[Finding] = audit(entry.spec)
    verdict = entry.verdict
    tone, word = OUTCOMES["not run" if verdict is None else verdict.outcome]
    sentence = "No run of this row was found." if verdict is None else verdict.sentence
    return IndexRow(
        entry,
        Cell(tone, word, sentence),
        tuple(_make_cell(entry, layer) for layer in LAYERS),
        _published(entry.spec),
        sum(finding.state == "conflict" for finding in findings),
    )


def _make_cell(entry: IndexEntry, layer: str) -> Cell:
    """The worst state of a layer; where nothing could be tested, why."""
    if entry.verdict is None:
        if layer in NEEDS_LOG and entry.spec.published_log.state == "never published":
            return Cell("unknown", "no published log", "The log of this row was never published.")
        return Cell("absent", "not run", "No run of this row was found.")
    checks = [check for check in entry.verdict.checks if check.layer == layer]
    state = worst_state([check.state for check in checks])
    text = " ".join(check.finding for check in checks if check.state == state)
    return Cell(state, STATE_WORDS[state] if checks else NOT_COMPARED, text or "No check of this layer could be made.")


def _published(spec: Spec) -> tuple[str, ...]:
    """The metrics that are judged with their targets, those without one with all that was published of them."""
    lines = []
    judged, others = split_metrics(spec)
    for metric in judged:
        stated = [item.value for item in metric.values if item.value is not None]
        values = [metric.target] if metric.target is not None else stated
        text = ", ".join(dict.fromkeys(render_value(value) for value in values))
        lines.append(f"{metric.label}: {text} {metric.unit}" if text else f"{metric.label}: nothing published")
    return (*lines, f"{len(others)} more") if others else tuple(lines)
