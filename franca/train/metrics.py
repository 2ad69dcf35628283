"""The run's log: one iteration's numbers in; DINOv2's text lines (`log.txt`) and JSON lines out.

A printed value is the lower median of the last 20 iterations, the one in brackets the mean since the process started
(dinov2 `logging/helpers.py`). Losses stay on the device: one transfer per `check`. The JSON lines hold more than
DINOv2's: block means, of losses and of what was drawn for crops and masks (`franca.laws.DRAWS`), the teacher's
temperature, images per second, and the model FLOPs that a process did, as a share of its device's peak (`mfu`) where
that is known.
"""

import contextlib
import io
import json
import logging
import math
import resource
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from franca.closed_form import Beginning, first_losses, make_beginning
from franca.config import TrainConfig
from franca.distributed import all_processes, all_reduce_mean, rank
from franca.flops import peak_tflops, step_flops
from franca.laws import DRAWS

LOG = logging.getLogger("franca")
WINDOW = 20  # dinov2 `SmoothedValue(window_size=20)`
LOSSES = ("dino_local_crops_loss", "dino_global_crops_loss", "koleo_loss", "ibot_loss")
RAW = ("total_loss", *LOSSES)
AVERAGED = (*RAW, *DRAWS)
UNPRINTED = ("time", "data", "grad_norm", "teacher_temp")  # of the text log's columns, which are DINOv2's


class NonFiniteError(ArithmeticError):
    """A loss or gradient norm that is not finite; the message names the iteration and the terms."""


class Meter:
    """The values of one quantity since the process started: the last 20 of them, and their sum."""

    def __init__(self) -> None:
        self.window: deque[float] = deque(maxlen=WINDOW)
        self.total = 0.0
        self.count = 0

    def add(self, value: float) -> None:
        self.window.append(value)
        self.total += value
        self.count += 1

    @property
    def median(self) -> float:
        """The lower median of the window, as `torch.median` takes it."""
        return sorted(self.window)[(len(self.window) - 1) // 2]

    @property
    def window_mean(self) -> float:
        return sum(self.window) / len(self.window)

    @property
    def mean(self) -> float:
        return self.total / self.count


class Metrics:
    """Collects the numbers of every iteration and writes a line every `log_period_iterations` and at the last one.

    `block` holds the sums over the iterations since the last line, and their count: the one part that a checkpoint
    keeps, so that the block means of a resumed run are those of an uninterrupted one; beside it, `skipped` counts the
    steps that the recipe allowed to leave out. Where a scaler probes for overflow (`scaled`), an infinite gradient norm
    is its signal and it withholds the step; elsewhere it is an error.
    """

    def __init__(self, config: TrainConfig, *, folder: Path, device: torch.device, scaled: bool) -> None:
        self.folder = folder
        self.device = device
        self.iterations = config.recipe.iterations
        self.period = config.execution.log_period_iterations
        self.images = config.recipe.global_batch
        self.beginning = make_beginning(config.recipe)
        step = step_flops(config.recipe, images=config.execution.batch_per_process)
        self.teraflops_per_image = step.total / config.execution.processes / 1e12
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        self.peak_tflops = peak_tflops(name, precision=config.recipe.precision.backbone)
        self.terms = LOSSES if scaled else (*LOSSES, "grad_norm")
        self.healthy = torch.ones((), dtype=torch.bool, device=device)
        self.skips = config.recipe.optim.nonfinite_skips
        self.skipped = 0
        self.left_out = False
        self.unreadable = 0
        self.meters: dict[str, Meter] = {}
        self.pending: list[tuple[int, dict[str, float], Tensor, NDArray[np.float64]]] = []
        self.raw: dict[str, float] = {}
        self.block = [0.0] * (len(AVERAGED) + 1)
        self.block_s = 0.0
        self.block_timed = 0

    def add(
        self,
        iteration: int,
        *,
        settings: Mapping[str, float],
        losses: Mapping[str, Tensor],
        grad_norm: Tensor,
        draws: Sequence[NDArray[np.float64]],
    ) -> None:
        """Keep one iteration's schedules and the draws of its parts, its losses where they are; no wait for the device.

        `healthy` turns false, on the device and in every process, where one of them is not finite; for good, unless
        steps may be skipped.
        """
        values = torch.stack([*(losses[name].detach().float() for name in LOSSES), grad_norm.detach().float()])
        finite = all_processes(values[: len(self.terms)].isfinite().all())
        self.healthy = finite if self.skips else self.healthy & finite
        self.pending.append((iteration, dict(settings), values, np.mean(draws, axis=0)))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"block": self.block, "skipped": self.skipped}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept; a block of other columns, of another version's checkpoint, begins anew."""
        if len(state["block"]) == len(self.block):
            self.block = state["block"]
        self.skipped = state.get("skipped", 0)

    def is_due(self, iteration: int) -> bool:
        """Whether a line is written at this iteration."""
        return iteration % self.period == 0 or iteration == self.iterations - 1

    def check(self) -> None:
        """Fetch what is pending, averaged over the processes. `left_out` then tells of the last iteration.

        Raises `NonFiniteError` at the first iteration that is not finite and may not be skipped.
        """
        if not self.pending:
            return
        draws = torch.from_numpy(np.stack([draws for *_, draws in self.pending])).to(self.device, torch.float32)
        values = torch.stack([values for _, _, values, _ in self.pending])
        rows = all_reduce_mean(torch.cat([values, draws], dim=1)).tolist()
        for (iteration, settings, *_), row in zip(self.pending, rows, strict=True):
            named = dict(zip((*LOSSES, "grad_norm", *DRAWS), row, strict=True))
            bad = [term for term in self.terms if not math.isfinite(named[term])]
            self.left_out = bool(bad)
            if bad:
                self._skip(f"iteration {iteration}: {' and '.join(bad)} not finite")
                continue
            self.raw = {"total_loss": sum(named[name] for name in LOSSES), **{name: named[name] for name in LOSSES}}
            added = (*self.raw.values(), *(named[name] for name in DRAWS), 1.0)
            self.block = [total + value for total, value in zip(self.block, added, strict=True)]
            for name, value in (*settings.items(), *self.raw.items(), ("grad_norm", named["grad_norm"])):
                self.meters.setdefault(name, Meter()).add(value)
        self.pending.clear()

    def _skip(self, reason: str) -> None:
        if self.skipped == self.skips:
            raise NonFiniteError(
                f"{reason}; the weights were kept" + (f" ({self.skips} skips used)" * bool(self.skips))
            )
        self.skipped += 1
        LOG.warning("%s; the step was left out (%d of %d)", reason, self.skipped, self.skips)

    def add_times(self, *, iteration_s: float, data_s: float) -> None:
        """Keep how long the iteration took, and how much of it was waiting for data."""
        self.meters.setdefault("time", Meter()).add(iteration_s)
        self.meters.setdefault("data", Meter()).add(data_s)
        self.block_s += iteration_s
        self.block_timed += 1

    def write(self, iteration: int) -> float:
        """Write the line of `iteration` to both files, start the next block, and return its images per second."""
        images_per_second = self.images * self.block_timed / self.block_s
        if rank() == 0 and self.raw:  # no line before the first step that was not left out
            LOG.info("%s", self._text(iteration))
            append_line(self.folder / "training_metrics.json", json.dumps(self._record(iteration, images_per_second)))
            if iteration == 0 and self.beginning is not None:
                say_beginning(self.raw, beginning=self.beginning)
        self.block = [0.0] * len(self.block)
        self.block_s, self.block_timed = 0.0, 0
        return images_per_second

    def _text(self, iteration: int) -> str:
        width = len(str(self.iterations))
        eta = timedelta(seconds=int(self.meters["time"].mean * (self.iterations - iteration)))
        shown = (
            f"{name}: {meter.median:.4f} ({meter.mean:.4f})"
            for name, meter in self.meters.items()
            if name not in UNPRINTED
        )
        tail = (
            f"time: {self.meters['time'].window_mean:.6f}",
            f"data: {self.meters['data'].window_mean:.6f}",
            f"max mem: {max_memory_mb(self.device):.0f}",
        )
        return "  ".join((f"Training  [{iteration:{width}d}/{self.iterations}]", f"eta: {eta}", *shown, *tail))

    def _record(self, iteration: int, images_per_second: float) -> dict[str, int | float]:
        medians = {name: meter.median for name, meter in self.meters.items() if name not in ("time", "data")}
        *sums, count = self.block
        means = [total / count if count else math.nan for total in sums]
        record: dict[str, int | float] = {
            "iteration": iteration,
            "iter_time": self.meters["time"].window_mean,
            "data_time": self.meters["data"].window_mean,
            **medians,
            **{f"raw_{name}": self.raw[name] for name in RAW},
            **{f"mean_{name}": mean for name, mean in zip(AVERAGED, means, strict=True)},
            "images_per_second": images_per_second,
            "tflops_per_process": images_per_second * self.teraflops_per_image,
            "max_memory_mb": max_memory_mb(self.device),
        }
        if self.unreadable:
            record["unreadable_images"] = self.unreadable
        if self.peak_tflops is not None:
            record["mfu"] = record["tflops_per_process"] / self.peak_tflops
        return {name: value for name, value in record.items() if math.isfinite(value)}


def say_beginning(losses: Mapping[str, float], *, beginning: Beginning) -> None:
    """Log the losses of iteration 0 beside what random weights must have; a warning where one is beyond its limits."""
    for name, expected in first_losses(beginning).items():
        said = (name, losses[name], expected.value, expected.low, expected.high)
        right = expected.low <= losses[name] <= expected.high
        verdict = "as random weights have it" if right else "not as random weights have it"
        LOG.log(logging.INFO if right else logging.WARNING, f"%s: %.4f, {verdict}: %.4f, within %.4f to %.4f", *said)


@contextlib.contextmanager
def open_log(folder: Path) -> Iterator[None]:
    """Send the `franca` logger to `log.txt`, appended line by line, and to stdout, in glog's format as DINOv2 does.

    Only the first process writes.
    """
    if rank():
        yield
        return
    mend_last_line(folder / "log.txt")
    mend_last_line(folder / "training_metrics.json")
    formatter = logging.Formatter(
        "%(level)s%(asctime)s %(process)d %(name)s %(filename)s:%(lineno)d] %(message)s", datefmt="%Y%m%d %H:%M:%S"
    )
    with (folder / "log.txt").open("ab", buffering=0) as raw:
        # Unbuffered: a message of many lines is one write, so a kill tears at most the last message.
        file = logging.StreamHandler(io.TextIOWrapper(raw, encoding="utf-8", write_through=True))
        handlers = (file, logging.StreamHandler(sys.stdout))
        for handler in handlers:
            handler.setFormatter(formatter)
            handler.addFilter(_add_level_letter)
            LOG.addHandler(handler)
        LOG.setLevel(logging.INFO)
        try:
            yield
        finally:
            for handler in handlers:
                LOG.removeHandler(handler)


def append_line(path: Path, text: str) -> None:
    """Append one line in a single write: whole, or torn only at the very end."""
    with path.open("ab", buffering=0) as file:
        file.write(f"{text}\n".encode())


def mend_last_line(path: Path) -> None:
    """End a torn last line, so that the next line does not continue it."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb") as file:
        file.seek(-1, io.SEEK_END)
        torn = file.read() != b"\n"
    if torn:
        append_line(path, "")


def max_memory_mb(device: torch.device) -> float:
    """The most memory that tensors took on a CUDA device, or that the process took on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _add_level_letter(record: logging.LogRecord) -> bool:
    record.level = record.levelname[0]
    return True
