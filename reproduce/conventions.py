"""Runs whose logs say one thing in different ways in, the same runs in one way out, or why they cannot be compared.

DINOv2 and Franca log losses as they are weighted among themselves: of n local crops, local n / (n + 1) and global
1 / (n + 1) of the mean cross-entropy, iBOT half of it, KoLeo times its weight; `total_loss` is their sum. DINOv3 logs
the raw means, and a total of the weighted ones. Other families differ in names: `Loss`, `train_loss`, `Test Acc@1`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from reproduce.curves import LOSSES, SCHEDULES, TOTAL
from reproduce.errors import LogError
from reproduce.lineage import History, Lineage
from reproduce.log_head import Head, flatten
from reproduce.records import Record

# How other names call what timm's summary.csv calls so.
NAMES = {
    "Loss": "train_loss",
    "LR": "train_lr",
    "Test Loss": "eval_loss",
    "Test Acc@1": "eval_top1",
    "Test Acc@5": "eval_top5",
    "test_loss": "eval_loss",
    "test_acc1": "eval_top1",
    "test_acc5": "eval_top5",
    "lr": "train_lr",
}
TIMES = ("iter_time", "data_time", "max_memory_mb", "images_per_second", "time", "throughput", "n_parameters")


def make_comparable(mine: History, references: Sequence[History]) -> tuple[History, tuple[History, ...]]:
    """The runs in one convention. Raises `LogError` where a log has no records, or is of a convention that cannot be
    translated into the others'."""
    runs = [mine, *references]
    for run in runs:
        require_records(run)
    if stay_raw(runs):
        # Raw among raw is comparable; what is computed of a configuration would be in the other convention.
        runs = [dataclasses.replace(run, head=Head()) for run in runs]
    else:
        runs = [in_dinov2_terms(run) if is_dinov3(run) else run for run in runs]
    known = any(metric in run.lineage.records[-1].values for run in runs for metric in LOSSES)
    if not known and len({run.dialect for run in runs}) > 1:
        runs = [_renamed(run) for run in runs]
    return runs[0], tuple(runs[1:])


def comparable_columns(mine: History, references: Sequence[History]) -> tuple[str, ...]:
    """The columns to compare as curves: DINOv2's losses where any run has them, else what all runs share but times.

    Raises `LogError` where the runs share no column.
    """
    runs = (mine, *references)
    named = [list(dict.fromkeys(name for record in run.lineage.records for name in record.values)) for run in runs]
    if all(set(LOSSES) & set(names) for names in named):
        return LOSSES
    skipped = {*TIMES, *SCHEDULES, "train_lr"}
    shared = tuple(name for name in named[0] if name not in skipped and all(name in names for names in named[1:]))
    if not shared:
        other = next((run for run, names in zip(runs, named, strict=True) if not set(named[0]) & set(names)), runs[-1])
        found = [", ".join(names[:6]) for names in (named[0], named[runs.index(other)])]
        raise LogError(f"shares no column with {other.path}: {found[0]} here, {found[1]} there", path=mine.path)
    return shared


def require_records(run: History) -> None:
    """Raise `LogError` that says what is wrong with a log that holds no iterations."""
    if run.lineage.records:
        return
    path = run.log_path or run.path
    if path.stat().st_size == 0:
        raise LogError("the file is empty: nothing was logged", path=path, mend="name the log of a run that began")
    wrong = "no iteration lines: it ends before the training's first"
    if run.head.config is not None:
        wrong = f"no iteration lines: it ends in its header, behind the configuration of line {run.head.config_line}"
    reasons = [problem.message for problem in run.problems if "died" in problem.message or "error" in problem.message]
    raise LogError(
        wrong + (f"; {reasons[0]}" if reasons else ""), path=path, mend="name the whole log, or that of a later launch"
    )


def stay_raw(runs: Sequence[History]) -> bool:
    """Whether all runs are DINOv3's and not all say what it takes to scale them: they are compared as they are."""
    return all(map(is_dinov3, runs)) and not all(map(_says_its_scales, runs))


def is_dinov3(history: History) -> bool:
    return history.dialect.startswith("dinov3")


def in_dinov2_terms(history: History) -> History:
    """A DINOv3 run with its losses as DINOv2 logs them. Raises `LogError` where its log does not hold what it takes."""
    config = flatten(history.head.config or {})
    if not _says_its_scales(history):
        raise LogError(
            "logs raw losses, as DINOv3 does, and not the crops and weights to scale them by as DINOv2's logs do",
            path=history.path,
            mend="name its log.txt, which begins with the configuration, or compare it with other logs of DINOv3",
        )
    local, koleo = config["crops.local_crops_number"], config["dino.koleo_loss_weight"]
    scales = {
        "dino_local_crops_loss": local / (local + 1),
        "dino_global_crops_loss": 1 / (local + 1),
        "ibot_loss": 0.5,
        "koleo_loss": float(koleo),
    }
    lineage = history.lineage
    scaled = dataclasses.replace(
        lineage,
        records=tuple(_scaled(record, scales) for record in lineage.records),
        ghosts=tuple(_scaled(record, scales) for record in lineage.ghosts),
    )
    return dataclasses.replace(history, lineage=scaled)


def _says_its_scales(history: History) -> bool:
    config = flatten(history.head.config or {})
    local, koleo = config.get("crops.local_crops_number"), config.get("dino.koleo_loss_weight")
    return isinstance(local, int) and local > 0 and isinstance(koleo, (int, float))


def _scaled(record: Record, scales: Mapping[str, float]) -> Record:
    averages = None if record.averages is None else _scaled_values(record.averages, scales)
    return dataclasses.replace(record, values=_scaled_values(record.values, scales), averages=averages)


def _scaled_values(values: Mapping[str, float], scales: Mapping[str, float]) -> dict[str, float]:
    found = {name: value * scales.get(name, 1.0) for name, value in values.items()}
    if "local_batch_size" in found:
        found["current_batch_size"] = found.pop("local_batch_size")
    if TOTAL in found and all(name in found for name in scales):
        found[TOTAL] = sum(found[name] for name in scales)
    return found


def _renamed(history: History) -> History:
    def rename(records: Sequence[Record]) -> tuple[Record, ...]:
        return tuple(
            dataclasses.replace(record, values={NAMES.get(name, name): value for name, value in record.values.items()})
            for record in records
        )

    lineage = history.lineage
    return dataclasses.replace(
        history,
        lineage=Lineage(lineage.launches, rename(lineage.records), rename(lineage.ghosts), lineage.problems),
    )
