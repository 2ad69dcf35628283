"""Every row with its runs' newest verdicts in, one page out: a matrix of rows and checks, and who vouches for what.

Each state is an icon with its word. A reproduction counts where its signature holds; the others are listed apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from reproduce.audit import Finding, audit
from reproduce.quantities import plural, render_fixed, render_value
from reproduce.report.page import render_page
from reproduce.report.sections import LAYERS, NOT_COMPARED, OUTCOMES, STATE_WORDS, split_metrics, worst_state
from reproduce.report.weights_section import TONES
from reproduce.signatures import SignedRecord, Standing
from reproduce.spec import Spec
from reproduce.verdict import Verdict
from reproduce.weights_verdict import WeightsVerdict

NEEDS_LOG = {"L1", "L4"}  # layers that can only hold a log against another one
RUNS_SHOWN = 40  # of a row; a sweep has hundreds
BEST_FIRST = ("reproduced", "better", "consistent", "on track", "variant", "worse", "failed")
SIGNATURES: dict[Standing, str] = {  # standing of a signature -> tone
    "verified": "pass", "unknown signer": "warn", "altered": "fail", "other recipe": "warn", "unsigned": "unknown",
    "no record": "fail", "not checked": "unknown",
}  # fmt: skip


@dataclass(frozen=True)
class IndexRun:
    """A run by its name. `verdict` is None where it was not judged; `said` is then how far it came, or what is wrong.

    report: its file beside the index, if there is one.
    """

    name: str
    verdict: Verdict | None
    report: str | None
    said: str


@dataclass(frozen=True)
class IndexEntry:
    """A row: its spec, its own run if it was begun, its other runs, and the verdicts on its released weights.

    report: the row's file beside the index, which it has without a run too. `command` is what reproduces it.
    """

    spec: Spec
    run: IndexRun | None
    report: str | None
    command: str
    others: tuple[IndexRun, ...] = ()
    weights: tuple[WeightsVerdict, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One state of the matrix; `text` is what a pointer resting on it is told."""

    state: str
    word: str
    text: str


@dataclass(frozen=True)
class RunLine:
    """A run as one line of the matrix; `progress` says how far an unfinished one, or one that was not judged, came."""

    name: str
    report: str | None
    outcome: Cell
    progress: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class IndexRow:
    """A row as the page shows it. `hidden` runs are not shown."""

    entry: IndexEntry
    line: RunLine
    others: tuple[RunLine, ...]
    hidden: int
    weights: tuple[Cell, ...]
    published: tuple[str, ...]
    conflicts: int


@dataclass(frozen=True)
class SignedLine:
    """A record as the leaderboard shows it: the verdict, the difference from what it was held against."""

    item: SignedRecord
    outcome: Cell
    difference: str
    signature: Cell


def render_index(entries: Sequence[IndexEntry], *, signed: Sequence[SignedRecord] = ()) -> str:
    """The index of all rows in the order given, and the leaderboard of what others signed, best verdict first."""
    rows = tuple(_make_row(entry) for entry in entries)
    lines = sorted(filter(None, map(_make_signed, signed)), key=_rank)
    ran = sum(entry.run is not None for entry in entries)
    context = {
        "rows": rows,
        "layers": tuple(LAYERS.items()),
        "signed": [line for line in lines if line.item.standing == "verified"],
        "uncounted": [line for line in lines if line.item.standing != "verified"],
        "strays": [item for item in signed if item.record is None],
        "summary": f"{plural(len(rows), 'row')}, {ran} of them run here",
    }
    return render_page("index.html", context)


def _make_row(entry: IndexEntry) -> IndexRow:
    findings: Sequence[Finding] = audit(entry.spec)
    return IndexRow(
        entry,
        _make_line(entry.run, entry.spec, report=entry.report),
        tuple(_make_line(run, entry.spec, report=run.report) for run in entry.others[:RUNS_SHOWN]),
        len(entry.others[RUNS_SHOWN:]),
        tuple(
            Cell(TONES[one.outcome], f"{one.px} px: {one.outcome}", " ".join((one.sentence, *one.problems)))
            for one in entry.weights
        ),
        _published(entry.spec),
        sum(finding.state == "conflict" for finding in findings),
    )


def _make_line(run: IndexRun | None, spec: Spec, *, report: str | None) -> RunLine:
    verdict = run.verdict if run is not None else None
    if run is None:
        outcome = Cell(*OUTCOMES["not run"], "No run of this row was found.")
    elif verdict is None:
        outcome = Cell("absent", "Not judged", run.said)
    else:
        outcome = Cell(*OUTCOMES[verdict.outcome], verdict.sentence)
    at = verdict.on_track_at if verdict is not None else None
    done = verdict.progress if verdict is not None and at is None else at
    progress = f"{100 * done:.1f} % of the run" if done is not None and done < 1 else ""
    if run is not None and verdict is None:
        progress = run.said
    cells = tuple(_make_cell(verdict, layer, spec=spec, run=run) for layer in LAYERS)
    return RunLine(run.name if run is not None else "", report, outcome, progress, cells)


def _make_cell(verdict: Verdict | None, layer: str, *, spec: Spec, run: IndexRun | None) -> Cell:
    """The worst state of a layer; where nothing could be tested, why."""
    if layer in NEEDS_LOG and spec.published_log.state == "never published":
        return Cell("unknown", "no published log", "The log of this row was never published.")
    if verdict is None:
        word, text = ("not run", "No run of this row was found.") if run is None else ("not judged", run.said)
        return Cell("absent", word, text)
    checks = [check for check in verdict.checks if check.layer == layer]
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


def _make_signed(item: SignedRecord) -> SignedLine | None:
    record = item.record
    if record is None:
        return None
    tone, word = OUTCOMES.get(record.outcome, ("unknown", "Unknown verdict"))
    known = record.knn is not None and record.against is not None
    points = record.knn - record.against if known else None  # type: ignore[operator]
    return SignedLine(
        item,
        Cell(tone, word, record.sentence),
        render_fixed(points, decimals=2, signed=True),
        Cell(SIGNATURES[item.standing], item.standing, item.why),
    )


def _rank(line: SignedLine) -> tuple[str, int, str, str]:
    """By row, then the better verdict, then the earlier run."""
    record = line.item.record
    assert record is not None
    place = BEST_FIRST.index(record.outcome) if record.outcome in BEST_FIRST else len(BEST_FIRST)
    return record.row, place, record.date or "~", record.name
