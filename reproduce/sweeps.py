"""Rows and lists of changes in, runs out: what each is and costs, submitted as arrays of jobs where it is missing.

Hydra's sweep syntax says which runs: `optim.base_lr=1e-3,3e-3 seed=range(1,4)` are six. Asking again submits only what
is missing, so a sweep needs no file of its own: its runs are those that the same words name.
"""

import fnmatch
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from reproduce.beside import Beside
from reproduce.compose import find_root
from reproduce.errors import ReproduceError, SpecError
from reproduce.files import held, short_path
from reproduce.judging import load_run_spec
from reproduce.launch import make_parameters, submit_array
from reproduce.overrides import MOST_RUNS, split_sweep
from reproduce.phases import Screen, require_trainer, train, trainer
from reproduce.places import did_you_mean
from reproduce.plan import make_plan
from reproduce.progress import read_progress
from reproduce.resolve import Resolved, resolve
from reproduce.runs import is_alive, open_run, record_launch
from reproduce.sites import Site
from reproduce.snapshot import CODE, take_snapshot
from reproduce.spec import list_rows
from reproduce.standing import Standing, load_standings
from reproduce.terminal import render_table

ALIVE = {"running", "waiting", "requeued", "suspended"}
SWEEPS = "sweeps"


@dataclass(frozen=True)
class Member:
    """One run of a sweep. `standing` is None where it was never made; GPU-hours are None where nothing tells them."""

    resolved: Resolved
    changes: tuple[str, ...]
    standing: Standing | None
    gpu_hours: float | None
    disk_bytes: int

    @property
    def is_missing(self) -> bool:
        """Whether it is still to be submitted: neither done nor at it."""
        if self.standing is None:
            return True
        return self.standing.state not in ALIVE and self.standing.iteration < target_of(self.resolved)


def make_sweep(pattern: str, changes: Sequence[str], *, site: Site, until: str | None) -> tuple[Member, ...]:
    """Every run that a row, or a pattern of rows, and lists of changes name.

    Raises `SpecError` where there is no such row or a change is none, `SiteError` where a row cannot run on the site.
    """
    root = find_root()
    known = [row.row for row in list_rows(root=root)]
    rows = fnmatch.filter(known, pattern)
    if not rows:
        raise SpecError(f"no row is named {pattern}", mend=did_you_mean(pattern, known))
    standings, problem = load_standings(root)
    if problem and site.executor == "slurm":
        raise ReproduceError(
            f"what of the sweep is submitted already cannot be told: {problem}", mend="try again when squeue answers"
        )
    known_runs = {standing.folder: standing for standing in standings}
    choices = [split_sweep(text) for text in changes]
    count = len(rows) * math.prod(map(len, choices))
    if count > MOST_RUNS:
        raise SpecError(f"{count:,} runs are more than the {MOST_RUNS:,} that a sweep may have", mend="sweep over less")
    members = (
        _make_member(row, combination, site=site, until=until, known=known_runs)
        for row in rows
        for combination in itertools.product(*choices)
    )
    return tuple({member.resolved.folder: member for member in members}.values())  # 3e-3 and 0.003 are one run


def submit_sweep(
    members: Sequence[Member], *, parallel: int, command: Sequence[str], screen: Screen
) -> tuple[Resolved, ...]:
    """Submit what is missing, `parallel` jobs at a time: one array for runs that ask for equal nodes.

    On this machine, which has no queue, they are trained one after another. Returns the runs that were submitted.
    """
    missing = [member.resolved for member in members if member.is_missing]
    arrays: dict[tuple[str, int, int], list[Resolved]] = defaultdict(list)
    for resolved in missing:
        arrays[resolved.config.execution.device, resolved.nodes, resolved.tasks_per_node].append(resolved)
    for runs in arrays.values():
        require_trainer(runs[0].site)
        if runs[0].site.executor == "local":
            for resolved in runs:
                train(resolved, command=command, screen=screen)
        else:
            _submit_runs(runs, parallel=parallel, command=command, screen=screen)
    return tuple(missing)


def check_cost(members: Sequence[Member], *, max_gpu_hours: float | None) -> None:
    """Raise `ReproduceError` where what is missing would take more GPU-hours than are allowed, or nobody can tell."""
    if max_gpu_hours is None:
        return
    missing = [member for member in members if member.is_missing]
    unknown = [m for m in missing if m.gpu_hours is None and m.resolved.config.execution.device == "cuda"]
    if unknown:
        raise ReproduceError(
            f"the GPU-hours of {_count(unknown)} are not known, {unknown[0].resolved.spec.name} first",
            mend="leave --max-gpu-hours out",
        )
    total = sum(member.gpu_hours or 0.0 for member in missing)
    if total > max_gpu_hours:
        raise ReproduceError(
            f"{_count(missing)} would take about {total:,.0f} GPU-hours, more than {max_gpu_hours:,.0f}",
            mend="sweep over less, stop earlier with --until, or allow more",
        )


def render_sweep(members: Sequence[Member], *, width: int) -> str:
    """The runs of a sweep by what differs between them, how each stands, and what the missing ones would take."""
    varied = varied_keys(members)
    header = ("state", "row", *varied, "iteration", "loss", "k-NN", "job", "nodes", "GPU-hours")
    table = render_table(header, [_cells(member, varied) for member in members], width=width)
    missing = [member for member in members if member.is_missing]
    hours = sum(member.gpu_hours or 0.0 for member in missing)
    disk = sum(member.disk_bytes for member in missing) / 1e9
    total = f"{_count(members)}, {len(missing)} to submit"
    return f"{table}\n{total}" + (f": about {hours:,.0f} GPU-hours, {disk:,.1f} GB of checkpoints" if missing else "")


def _make_member(
    row: str, changes: tuple[str, ...], *, site: Site, until: str | None, known: Mapping[Path, Standing]
) -> Member:
    spec = load_run_spec(row, changes=changes, seed=None)
    resolved = resolve(spec, site=site, until=until)
    plan = make_plan(spec, site=site)
    share = target_of(resolved) / spec.recipe.iterations
    hours = plan.cost.gpu_hours or plan.cost.documented_gpu_hours
    return Member(
        resolved=resolved,
        changes=changes,
        standing=known.get(resolved.folder),
        gpu_hours=None if hours is None else hours * share,
        disk_bytes=plan.checkpoints_bytes,
    )


def _submit_runs(runs: Sequence[Resolved], *, parallel: int, command: Sequence[str], screen: Screen) -> None:
    """One array. Every run's launch is locked meanwhile; one that somebody else has started by then is left out."""
    with ExitStack() as locks:
        free = []
        for resolved in runs:
            folder = open_run(resolved, command=command, root=resolved.spec.root)
            locks.enter_context(held(folder / "launch.lock"))
            if not is_alive(folder):
                free.append(resolved)
        if not free:
            return
        first = free[0]
        place = first.spec.root / "runs" / SWEEPS
        jobs = submit_array(
            [(trainer(resolved), resolved.folder) for resolved in free],
            folder=place,
            parameters=make_parameters(first, nodes=first.nodes, tasks_per_node=first.tasks_per_node),
            parallel=parallel,
            snapshot=take_snapshot(place / CODE),
        )
        for resolved, job in zip(free, jobs, strict=True):
            record_launch(resolved.folder, job=job, site=resolved.site.name)
            screen.say(f"{short_path(resolved.folder)}: submitted as job {job.job_id}")
    for resolved in free:  # their launches are free again, each evaluation is one of its own
        Beside(resolved, say=screen.say).keep()


def varied_keys(members: Sequence[Member]) -> tuple[str, ...]:
    """The keys whose values are not the same in all runs."""
    values: dict[str, set[str]] = defaultdict(set)
    for member in members:
        for key, value in changed_values(member).items():
            values[key].add(value)
    return tuple(key for key, found in values.items() if len(found) > 1)


def changed_values(member: Member) -> dict[str, str]:
    """What was asked of a run, by key."""
    parts = (change.partition("=") for change in member.changes)
    return {key: value for key, _, value in parts}


def target_of(resolved: Resolved) -> int:
    """How many iterations a run is to come to."""
    return resolved.config.execution.until_iteration or resolved.config.recipe.iterations


def _count(members: Sequence[Member]) -> str:
    return f"{len(members)} run{'' if len(members) == 1 else 's'}"


def _cells(member: Member, varied: Sequence[str]) -> tuple[str, ...]:
    resolved, standing, changed = member.resolved, member.standing, changed_values(member)
    target = target_of(resolved)
    progress = read_progress(resolved.folder, target=target) if standing else None
    return (
        "to submit" if member.is_missing and standing is None else standing.state if standing else "",
        resolved.spec.row,
        *(changed.get(key, "") for key in varied),
        f"{progress.done if progress else 0}/{target}",
        f"{progress.losses['loss']:.4g}" if progress and "loss" in progress.losses else "",
        f"{progress.knn[2]:.1f} %" if progress and progress.knn else "",
        (standing.job or "") if standing else "",
        f"{resolved.nodes} × {resolved.tasks_per_node}",
        "?" if member.gpu_hours is None else f"{member.gpu_hours:,.0f}",
    )
