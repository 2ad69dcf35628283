"""A run's files in, the facts of a report about it out: configuration, launches, speed, provenance."""

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from franca.config import to_mapping
from reproduce.figures.captions import series
from reproduce.figures.plots import LAUNCHES_SHOWN
from reproduce.lineage import History, Launch, Lineage, log_period
from reproduce.quantities import NONE, plural, render_duration, render_number, render_value
from reproduce.report.provenance import Provenance
from reproduce.runs import margins_sha256
from reproduce.spec import Spec

Facts = tuple[tuple[str, str], ...]
Column = tuple[str, Mapping[str, Any]]  # a configuration under its name

SPEED = (
    ("iter_time", "Seconds per iteration"),
    ("data_time", "of which waiting for data"),
    ("images_per_second", "Images per second"),
    ("max_memory_mb", "Greatest memory, MB"),
)
SPEED_FIGURES = (  # title, metric, the part of it that is filled
    ("Seconds per iteration; filled, the wait for data", "iter_time", "data_time"),
    ("Images per second", "images_per_second", None),
)

LABELS = {"cpu": "CPU", "gpu": "GPU", "cuda": "CUDA"}


@dataclass(frozen=True)
class SettingRow:
    """One key of the configuration over all columns; `differs` where two columns disagree."""

    key: str
    texts: tuple[str, ...]
    differs: bool


@dataclass(frozen=True)
class SettingTable:
    """Configurations side by side: `changed` are those of `rows` that differ."""

    title: str
    summary: str
    columns: tuple[str, ...]
    changed: tuple[SettingRow, ...]
    rows: tuple[SettingRow, ...]


@dataclass(frozen=True)
class LaunchRow:
    """A launch by its number from 1, and how many of its logged lines a later one overwrote."""

    number: int
    launch: Launch
    lost: int


@dataclass(frozen=True)
class SpeedRow:
    """A quantity as text, for mine and for the reference runs."""

    label: str
    mine: str
    others: str


def flatten(mapping: Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys with legible values."""
    flat: dict[str, str] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, prefix=f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = render_value(value)
    return flat


def make_setting_tables(
    spec: Spec | None, *, mine: History | None, references: Sequence[History]
) -> tuple[SettingTable, ...]:
    """The recipes at hand side by side; and, of runs without a file of their own, what their logs print."""
    recipes = [(spec.name, to_mapping(spec.recipe))] if spec is not None else []
    printed: list[Column] = []
    if mine is not None:
        recipes += _recipes([("mine", mine)])
        printed += _printed([("mine", mine)])
    others = [(run.name, run) for run in references]
    recipes += _grouped(_recipes(others))
    printed += _grouped(_printed(others))
    tables = []
    if recipes:
        tables.append(_make_setting_table("The whole recipe", "recipes", recipes))
    if printed:
        tables.append(_make_setting_table("All that the logs print", "configurations that the logs print", printed))
    return tuple(tables)


def _recipes(runs: Sequence[tuple[str, History]]) -> list[Column]:
    return [(name, _mapping(run.config.get("recipe"))) for name, run in runs if run.config is not None]


def _printed(runs: Sequence[tuple[str, History]]) -> list[Column]:
    return [(name, run.head.config) for name, run in runs if run.config is None and run.head.config is not None]


def _grouped(columns: Sequence[Column]) -> list[Column]:
    """Equal configurations of several reference runs as one column."""
    groups: list[tuple[Mapping[str, Any], list[str]]] = []
    for name, mapping in columns:
        names = next((names for other, names in groups if other == mapping), None)
        if names is None:
            groups.append((mapping, [name]))
        else:
            names.append(name)
    return [(names[0] if len(names) == 1 else plural(len(names), "reference run"), mapping)
            for mapping, names in groups]  # fmt: skip


def _make_setting_table(title: str, what: str, columns: Sequence[Column]) -> SettingTable:
    """Flattened configurations side by side, key by key in the order of the first that has it."""
    heads = tuple(name for name, _ in columns)
    flat = [flatten(mapping) for _, mapping in columns]
    keys = dict.fromkeys(key for column in flat for key in column)
    rows = []
    for key in keys:
        texts = tuple(column.get(key, NONE) for column in flat)
        rows.append(SettingRow(key, texts, len(set(texts)) > 1))
    changed = tuple(row for row in rows if row.differs)
    if len(heads) < 2:
        summary = f"{heads[0]} alone: there is nothing to hold it against."
    else:
        differ = f"They differ in {plural(len(changed), 'key')}." if changed else "They are the same in every key."
        summary = f"The {what} of {', '.join(heads)} side by side. {differ}"
    return SettingTable(title, summary, heads, changed, tuple(rows))


def make_launch_rows(lineage: Lineage) -> tuple[LaunchRow, ...]:
    """The newest launches with their counts of overwritten lines."""
    first = max(len(lineage.launches) - LAUNCHES_SHOWN, 0)
    return tuple(
        LaunchRow(number, launch, sum(launch.first_line <= ghost.line <= launch.last_line for ghost in lineage.ghosts))
        for number, launch in enumerate(lineage.launches[first:], first + 1)
    )


def describe_lineage(lineage: Lineage) -> str:
    """What happened to the run, in one or two sentences."""
    launches = lineage.launches
    if not launches:
        return "The log holds no iteration line."
    kinds = {kind: sum(launch.kind == kind for launch in launches) for kind in ("resume", "restart", "gap")}
    if len(launches) == 1:
        return "One launch, never interrupted."
    parts = [plural(count, kind) for kind, count in kinds.items() if count]
    counted = plural(len(lineage.ghosts), "logged line does", "logged lines do")
    lost = f" {counted} not count: overwritten by a later launch, or of a restart that did not get as far."
    shown = f" Shown are the newest {LAUNCHES_SHOWN}." if len(launches) > LAUNCHES_SHOWN else ""
    text = f"{plural(len(launches), 'launch', 'launches')}: {', '.join(parts)}."
    times = [time for ghost in lineage.ghosts if math.isfinite(time := ghost.values.get("iter_time", math.nan))]
    if times:
        lost += f" That was some {render_duration(sum(times) * log_period(lineage.records))} of training."
    return text + (lost if lineage.ghosts else "") + shown


def make_jobs(launch: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """(time, job, site) of what the harness launched, by `provenance.json`; the newest, in their order."""
    listed = launch.get("launches")
    jobs = [_mapping(job) for job in listed[-LAUNCHES_SHOWN:]] if isinstance(listed, list) else []
    return tuple(
        (str(job["time"]), str(job.get("job", NONE)), str(job.get("site", NONE))) for job in jobs if "time" in job
    )


def make_speed_rows(mine: History, *, references: Sequence[History]) -> tuple[SpeedRow, ...]:
    """Medians over all lines; the reference runs' from least to greatest."""
    rows = []
    for metric, label in SPEED:
        own = _median(mine, metric)
        others = sorted(value for run in references if (value := _median(run, metric)) is not None)
        if own is None and not others:
            continue
        spread = [render_number(value, digits=3) for value in dict.fromkeys((*others[:1], *others[-1:]))]
        rows.append(SpeedRow(label, render_number(own, digits=3), " … ".join(spread) or NONE))
    return tuple(rows)


def describe_speed(mine: History) -> str:
    """Time on the lines kept, and the share of it that waited for data."""
    time, data = series(mine.lineage.records, "iter_time")[1], series(mine.lineage.records, "data_time")[1]
    if not len(time):
        return "The log holds no times."
    median = statistics.median(time.tolist())
    text = f"{render_duration(median)} an iteration, {render_duration(median * mine.done)} for the {mine.done:,} kept."
    if len(data) and sum(time) > 0:
        text += f" {100 * float(sum(data)) / float(sum(time)):.1f} % of it waited for data."
    return text


def _median(run: History, metric: str) -> float | None:
    values = [value for value in series(run.lineage.records, metric)[1].tolist() if math.isfinite(value)]
    return statistics.median(values) if values else None


def resource_facts(spec: Spec) -> Facts:
    """The documented machine."""
    resources = spec.resources
    facts = {
        "GPUs": f"{resources.gpus} × {resources.gpu or 'unnamed'}" if resources.gpus else "none",
        "Nodes": resources.nodes,
        "Batch per GPU" if resources.gpus else "Batch per step": resources.batch_per_gpu,
        "GPU-hours": resources.gpu_hours,
    }
    return tuple((term, render_value(value)) for term, value in facts.items() if value is not None)


def provenance_groups(
    provenance: Provenance | None, *, spec: Spec | None, mine: History | None
) -> tuple[tuple[str, Facts], ...]:
    """Facts of identity, code, machine and data, in groups; what is not known is left out."""
    groups: list[tuple[str, list[tuple[str, Any]]]] = []
    launch = provenance.launch if provenance else {}
    if spec is not None:
        groups.append(("Identity", _identity_facts(spec, mine=mine, launch=launch)))
    if provenance is not None:
        groups += [("Code", _code_facts(launch)), *_machine_facts(provenance.environment)]
        groups.append(("Evaluation", _evaluation_facts(provenance.evaluation)))
    kept = [(name, tuple((term, render_value(value)) for term, value in facts if value is not None))
            for name, facts in groups]  # fmt: skip
    return tuple((name, facts) for name, facts in kept if facts)


def _identity_facts(spec: Spec, *, mine: History | None, launch: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Row, fingerprints, seed; and whether the margins are still those declared before the launch."""
    declared, now = launch.get("margins_sha256"), margins_sha256(spec.margins)
    margins = f"{now[:16]}, not declared" if declared is None else f"{declared[:16]}, "
    if declared is not None:
        margins += "declared before the launch, unchanged" if declared == now else f"CHANGED SINCE: now {now[:16]}"
    return [
        ("Row", spec.name),
        ("Recipe fingerprint", spec.fingerprint),
        ("Run's fingerprint", mine.config.get("fingerprint") if mine and mine.config else None),
        ("Seed", mine.seed if mine else spec.seed),
        ("Overrides", ", ".join(spec.overrides) or None),
        ("Margins' hash", margins),
        ("Spec's hash", launch.get("spec_sha256")),
    ]


def _code_facts(launch: Mapping[str, Any]) -> list[tuple[str, Any]]:
    git = _mapping(launch.get("git"))
    state = None if git.get("dirty") is None else ("with uncommitted changes" if git["dirty"] else "clean")
    command = launch.get("command")
    return [
        ("Command", shlex.join(map(str, command)) if isinstance(command, list) else command),
        ("Commit", git.get("sha")),
        ("Work tree", state),
        ("Hash of changes", git.get("diff_sha256")),
        ("Harness", launch.get("harness_version")),
        ("Declared", launch.get("created")),
        ("Launches", len(launch["launches"]) if isinstance(launch.get("launches"), list) else None),
    ]


def _machine_facts(environment: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """Machine, data and packages as the trainer found them."""
    packages, data = _mapping(environment.get("packages")), _mapping(environment.get("data"))
    machine = [
        (LABELS.get(key, str(key).capitalize()), value)
        for key, value in environment.items()
        if key not in ("packages", "data")
    ]
    return [
        ("Machine", machine),
        ("Data", [(str(key).capitalize(), value) for key, value in data.items()]),
        ("Packages", [(str(key), value) for key, value in packages.items()]),
    ]


def _evaluation_facts(evaluation: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Which teacher was evaluated last, and how."""
    protocol = _mapping(evaluation.get("protocol"))
    return [
        ("Iteration", evaluation.get("iteration")),
        ("Checkpoint", evaluation.get("checkpoint")),
        ("SHA-256", evaluation.get("checkpoint_sha256")),
        *(
            (str(key).replace("_", " ").capitalize() if len(str(key)) > 1 else str(key), value)
            for key, value in protocol.items()
        ),
    ]


def _mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is a mapping, else an empty one: the files may have been edited by hand."""
    return value if isinstance(value, Mapping) else {}
