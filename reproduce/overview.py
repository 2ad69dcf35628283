"""The rows in, what was made of each here out: read from small files alone, so that it answers at once."""

import json
from dataclasses import dataclass
from pathlib import Path

from reproduce.compose import find_root
from reproduce.errors import RunError, SpecError
from reproduce.runs import read_state
from reproduce.spec import find_rows
from reproduce.terminal import render_table


@dataclass(frozen=True)
class RowState:
    """A row and how far its own run came; `run` and `verdict` are None where there is none. GPUs 0: a CPU.

    log_here: whether all files that the row names as its log are in the project.
    """

    row: str
    version: int
    title: str
    summary: str
    gpus: int
    gpu_hours: float | None
    log: str
    log_here: bool
    run: str | None
    verdict: str | None


def list_row_states() -> tuple[tuple[RowState, ...], tuple[SpecError, ...]]:
    """Every row with its own run and verdict, in alphabetical order, and an error for each file that is none."""
    root = find_root()
    rows, broken = find_rows(root=root)
    states = tuple(
        RowState(
            row=row.row,
            version=row.version,
            title=row.title,
            summary=row.summary,
            gpus=row.gpus,
            gpu_hours=row.gpu_hours,
            log=row.log,
            log_here=row.log_here,
            run=_describe_run(root / "runs" / f"{row.row}@{row.version}" / "main"),
            verdict=_read_outcome(root / "reports" / f"{row.row}.json"),
        )
        for row in rows
    )
    return states, broken


def render_rows(states: tuple[RowState, ...], *, width: int) -> str:
    """The rows as a table."""
    header = ("row", "GPUs", "GPU-hours", "its log", "run here", "verdict", "title")
    cells = [
        (
            state.row,
            str(state.gpus or "CPU"),
            "" if state.gpu_hours is None else f"{state.gpu_hours:,.0f}",
            state.log if state.log_here else f"{state.log}, not here",
            state.run or "–",
            state.verdict or "–",
            state.title,
        )
        for state in states
    ]
    return render_table(header, cells, width=width)


def _describe_run(folder: Path) -> str | None:
    try:
        state = read_state(folder)
    except RunError:  # one run's damage must not keep the rows from being listed; `status` says what it is
        return "broken"
    return None if state is None else f"{state.state} {state.iteration}/{state.of}"


def _read_outcome(path: Path) -> str | None:
    """The outcome of a verdict that was written here; None too where the file is damaged, as `judge` writes it anew."""
    try:
        return str(json.loads(path.read_text())["outcome"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
