"""A run that is being trained in, where it stands out: from the ends of its files, however long they have become."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reproduce.files import read_tail
from reproduce.quantities import render_duration
from reproduce.runs import read_state

TAIL_BYTES = 16384  # some twenty lines: more than one, should the last be torn
LOSSES = {
    "total_loss": "loss",
    "dino_local_crops_loss": "local",
    "dino_global_crops_loss": "global",
    "koleo_loss": "koleo",
    "ibot_loss": "ibot",
}


@dataclass(frozen=True)
class Progress:
    """`done` of `target` iterations; the newest losses by their short names; `knn` is (iterations done, k, percent)."""

    done: int
    target: int
    losses: Mapping[str, float]
    images_per_second: float | None
    seconds_left: float | None
    knn: tuple[int, int, float] | None


def read_progress(folder: Path, *, target: int) -> Progress:
    """Where the run stands on its way to `target` iterations; one that went further is read as it stood there.

    What is not there yet is None or empty.
    """
    from reproduce.logs import parse_json_lines

    state = read_state(folder)
    log = folder / "training_metrics.json"
    beyond = state is not None and state.iteration > target
    size = log.stat().st_size if beyond and log.is_file() else TAIL_BYTES
    lines = read_tail(log, size=size).splitlines() if log.is_file() else []
    records = [record for record in parse_json_lines(lines, path=str(log))[0] if record.iteration < target]
    values = records[-1].values if records else {}
    done = min(target, max(state.iteration if state else 0, records[-1].iteration + 1 if records else 0))
    iter_time = values.get("iter_time")
    return Progress(
        done=done,
        target=target,
        losses={short: values[name] for name, short in LOSSES.items() if name in values},
        images_per_second=values.get("images_per_second"),
        seconds_left=None if iter_time is None else max(0, target - done) * iter_time,
        knn=_read_knn(folder, target=target),
    )


def render_progress(progress: Progress) -> str:
    """One line of text: `340/1200  loss 14.73  (local 9.41  …)  812 images/s  k-NN 91.8 % at 300  2 min left`."""
    parts = [f"{progress.done}/{progress.target}"]
    parts += [f"{name} {value:.4g}" for name, value in progress.losses.items()]
    if progress.images_per_second is not None:
        parts.append(f"{progress.images_per_second:.0f} images/s")
    if progress.knn is not None:
        done, k, percent = progress.knn
        parts.append(f"{k}-NN {percent:.1f} % at {done}")
    if progress.seconds_left:
        parts.append(f"{render_duration(round(progress.seconds_left))} left")
    return "  ".join(parts)


def newest_evaluation(folder: Path, *, target: float = math.inf) -> int | None:
    """Iterations done at the newest evaluation inside the run, to `target`; `eval/training_599` is that after 600."""
    names = [
        path.parent.name.removeprefix("training_") for path in folder.glob("eval/training_*/results_eval_knn.json")
    ]
    return max((int(name) + 1 for name in names if name.isdigit() and int(name) < target), default=None)


def _read_knn(folder: Path, *, target: int) -> tuple[int, int, float] | None:
    """The newest k-NN evaluation inside the run, at most at `target`, at its smallest k."""
    from reproduce.logs import parse_knn

    done = newest_evaluation(folder, target=target)
    if done is None:
        return None
    accuracies, _ = parse_knn(folder / "eval" / f"training_{done - 1}" / "results_eval_knn.json")
    return (done, min(accuracies), accuracies[min(accuracies)]) if accuracies else None
