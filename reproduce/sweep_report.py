"""The members of a sweep in, `reports/sweeps/NAME.html` out: where each stands now, whatever of it is missing."""

import dataclasses
import hashlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from reproduce.files import write_whole
from reproduce.judging import RunFiles
from reproduce.lineage import History, load_history
from reproduce.progress import read_progress
from reproduce.report.sweep import SweepRun, render_sweep_page
from reproduce.sweeps import Member, changed_values, target_of, varied_keys

NAME_LENGTH = 100


def write_sweep_report(members: Sequence[Member], *, words: Sequence[str], command: Sequence[str]) -> Path:
    """Write the page of a sweep that `words` (rows, lists of changes, where it stops) name; returns its path.

    Runs that went further than the sweep are shown as they stood where it stops. `command` asks for the page again.
    Raises `LogError` where a run's log is of another kind than a trainer's.
    """
    keys = varied_keys(members)
    path = members[0].resolved.spec.root / "reports" / "sweeps" / f"{_name(words)}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = [_make_run(member, keys) for member in members]
    write_whole(path, render_sweep_page(" ".join(words), runs, keys=keys, command=shlex.join(command)))
    return path


def _make_run(member: Member, keys: Sequence[str]) -> SweepRun:
    resolved, standing, changed = member.resolved, member.standing, changed_values(member)
    target = target_of(resolved)
    progress = read_progress(resolved.folder, target=target) if standing else None
    report = RunFiles(resolved.spec, resolved.run).report("html")
    return SweepRun(
        row=resolved.spec.row,
        values=tuple(changed.get(key, "") for key in keys),
        state=standing.state if standing else "not submitted",
        outcome=standing.checked if standing else None,
        iteration=f"{progress.done if progress else 0:,} / {target:,}",
        loss=f"{progress.losses['loss']:.4g}" if progress and "loss" in progress.losses else "",
        knn=f"{progress.knn[2]:.2f} %" if progress and progress.knn else "",
        hours=_hours(member, done=progress.done if progress else 0),
        report=f"../{report.name}" if report.is_file() else None,
        history=_load_log(resolved.folder, target=target),
    )


def _hours(member: Member, *, done: int) -> str:
    """GPU-hours so far at the speed that was measured last; "" of a run on CPUs or without a measurement."""
    speed = member.standing.images_per_second if member.standing else None
    config = member.resolved.config
    if not speed or config.execution.device != "cuda":
        return ""
    return f"{done * config.recipe.global_batch / speed * config.execution.processes / 3600:,.1f}"


def _load_log(folder: Path, *, target: int) -> History | None:
    """A run's history as far as its first `target` iterations."""
    if not (folder / "training_metrics.json").is_file():
        return None
    history = load_history(folder)
    lineage = history.lineage
    records = tuple(record for record in lineage.records if record.iteration < target)
    knn = {done: point for done, point in history.knn.items() if done <= target}
    return dataclasses.replace(history, lineage=dataclasses.replace(lineage, records=records), knn=knn, total=target)


def _name(words: Sequence[str]) -> str:
    """A file's name of the words; of long ones their beginning, and a digest."""
    name = re.sub(r"[^A-Za-z0-9._=,+-]", "-", " ".join(words))
    if name == " ".join(words).replace(" ", "-") and len(name) <= NAME_LENGTH:
        return name
    return f"{name[: NAME_LENGTH - 9]}-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:8]}"
