"""The runs of a sweep in, one page out: a line per run with what differs, how it stands and ended, and all curves."""

from collections.abc import Sequence
from dataclasses import dataclass

from reproduce.curves import TOTAL
from reproduce.figures.captions import as_columns, knn_points, series
from reproduce.figures.plots import HUES, Figure, render_overlay
from reproduce.figures.svg import iteration_scale
from reproduce.lineage import History
from reproduce.quantities import plural
from reproduce.report.page import render_page
from reproduce.report.sections import OUTCOMES


@dataclass(frozen=True)
class SweepRun:
    """A run: its values of the keys that differ, how it stands, and its report beside the page; "" is not known.

    `outcome` is its verdict's, None of a run that was not judged; `history` None of one that has no log.
    """

    row: str
    values: tuple[str, ...]
    state: str
    outcome: str | None
    iteration: str
    loss: str
    knn: str
    hours: str
    report: str | None
    history: History | None


@dataclass(frozen=True)
class _Line:
    """A run as the page shows it; `hue` is that of its curves."""

    run: SweepRun
    hue: int | None
    tone: str
    word: str


def render_sweep_page(title: str, runs: Sequence[SweepRun], *, keys: Sequence[str], command: str) -> str:
    """The page of a sweep, its runs in the order given. `keys` are what differs, `command` what asks for it again."""
    hues = {id(run): number % HUES for number, run in enumerate(run for run in runs if run.history is not None)}
    judged = sum(run.outcome is not None for run in runs)
    context = {
        "title": title,
        "keys": keys,
        "lines": tuple(_make_line(run, hues.get(id(run))) for run in runs),
        "figures": _make_figures(runs, keys=keys),
        "hues": HUES,
        "command": command,
        "summary": f"{plural(len(runs), 'run')}, {judged} of them judged.",
    }
    return render_page("sweep.html", context)


def _make_line(run: SweepRun, hue: int | None) -> _Line:
    tone, word = OUTCOMES.get(run.outcome or "", ("absent", "Not judged"))
    return _Line(run, hue, tone, word)


def _make_figures(runs: Sequence[SweepRun], *, keys: Sequence[str]) -> tuple[Figure, ...]:
    """The loss that is trained on and the k-NN accuracy of every run that has them, each in one panel."""
    drawn = [(_label(run, keys), run.history) for run in runs if run.history is not None]
    if not drawn:
        return ()
    span = iteration_scale(max(history.total or history.done for _, history in drawn))
    losses = [(label, *series(history.lineage.records, TOTAL)) for label, history in drawn]
    figures = [render_overlay("Total loss", losses, span=span)]
    nearest = [  # the untrained network has no place on an axis in log time
        min((k for done, point in history.knn.items() if done for k in point), default=None) for _, history in drawn
    ]
    if any(k is not None for k in nearest):
        points = [
            (label, *as_columns(knn_points(history.knn, k) if k else []))
            for (label, history), k in zip(drawn, nearest, strict=True)
        ]
        figures.append(render_overlay("k-NN top-1 of the teacher", points, span=span, unit=" %"))
    return tuple(figures)


def _label(run: SweepRun, keys: Sequence[str]) -> str:
    changed = ", ".join(f"{key}={value}" for key, value in zip(keys, run.values, strict=True) if value)
    return f"{run.row} {changed}".strip()
