"""Logs or run folders of any dialect in, the verdict on each of mine held against theirs out; no row is needed."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from reproduce.axes import Axis, over_axis
from reproduce.conventions import comparable_columns, is_dinov3, make_comparable, stay_raw
from reproduce.curves import LOSSES
from reproduce.lineage import History
from reproduce.verdict import Verdict, judge

BY = {"progress": "share of the run", "images": "images seen", "gpu-hours": "GPU-hours"}


@dataclass(frozen=True)
class Comparison:
    """A verdict, and the runs as they were compared: in one convention, over one axis."""

    verdict: Verdict
    mine: History
    references: tuple[History, ...]


def compare_runs(mine: History, references: Sequence[History], *, axis: Axis = "iteration") -> Comparison:
    """Hold a run against others. Raises `LogError` where a log is empty, or counts or logs what cannot be translated.

    Of logs of DINOv2's family by iteration all checks are made; of others, and over another axis, the curves and k-NN.
    """
    own, theirs = make_comparable(mine, references)
    columns = comparable_columns(own, theirs)
    own, *others = over_axis((own, *theirs), axis)
    plain = columns != LOSSES or axis != "iteration"
    verdict = judge(own, others, columns=columns if plain else None)
    notes = _notes(mine, references, columns=columns, axis=axis)
    verdict = dataclasses.replace(verdict, cannot_conclude=(*notes, *verdict.cannot_conclude))
    return Comparison(verdict, own, tuple(others))


def _notes(mine: History, references: Sequence[History], *, columns: Sequence[str], axis: Axis) -> list[str]:
    """What was done to the logs before they were compared, and what was therefore not."""
    runs = (mine, *references)
    notes = []
    if any(map(is_dinov3, runs)) and not stay_raw(runs):
        notes.append(
            "Whether the raw losses agree: DINOv3's were scaled as DINOv2 logs them, by its own configuration."
        )
    if axis != "iteration":
        notes.append(
            f"What only shows iteration by iteration: the runs are compared over {BY[axis]}, in cells, "
            "and iterations in the checks count cells."
        )
    if axis == "progress":
        lengths = [run.name for run in runs if run.total is None]
        notes += [
            f"Whether {name} is finished: its log does not say, and it is taken for the whole run." for name in lengths
        ]
    if axis == "gpu-hours":
        notes.append("Whether a difference is one of training or of speed: a run on faster machines is ahead by that.")
        if any(run.knn for run in runs):
            notes.append(
                "k-NN: runs are evaluated every so many iterations, which are other GPU-hours elsewhere. It is "
                "compared over iterations, progress or images."
            )
    if tuple(columns) != LOSSES:
        notes.append(
            f"Schedules, first lines and collapse: the checks of those are for DINOv2's losses. Compared are "
            f"{', '.join(columns)}."
        )
    return notes
