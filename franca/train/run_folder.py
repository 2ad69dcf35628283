"""What a trainer leaves in its run folder beside log and checkpoints: its lock, its state, where it ran, and signals.

The files are the harness's to read: `train.lock` is held while the trainer lives, `state.json` says how far it came.
"""

import contextlib
import fcntl
import json
import os
import platform
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from franca.config import ConfigError, TrainConfig, dump_config, peak_lr
from franca.data.datasets import Dataset, describe_dataset
from franca.distributed import rank
from franca.evaluate.knn import replace_file
from franca.train.metrics import LOG

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)  # submitit's time-out, SLURM's preemption, Ctrl-C
ORIGIN = "git.txt"  # beside a copy of the code: where it was taken from
PACKAGES = ("jaxtyping", "numpy", "pillow", "safetensors", "scikit-learn", "scipy", "torch", "xformers")


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Be the folder's only trainer. Raises `ConfigError` where another one lives; a killed one holds nothing."""
    if rank():
        yield
        return
    with (folder / "train.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise ConfigError(
                f"{folder}: another trainer (process {owner}) is at work here; wait for it or stop it"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@dataclass
class Stop:
    """The signal that asked the process to stop, if any did."""

    asked: str | None = None


@contextlib.contextmanager
def catch_signals() -> Iterator[Stop]:
    """Note the first signal that asks to stop, for the loop to act on; a second Ctrl-C stops at once."""
    stop = Stop()

    def note(number: int, _: object) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = signal.Signals(number).name

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_state(folder: Path) -> dict[str, Any]:
    """What the trainer last said of itself; empty before its first word."""
    path = folder / "state.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write_state(
    folder: Path,
    *,
    state: str,
    iteration: int,
    of: int,
    images_per_second: float | None,
    error: dict[str, str] | None = None,
) -> None:
    """Replace `state.json`: running, finished, paused, interrupted or failed, after `iteration` iterations `of` all."""
    if rank():
        return
    fields = {"state": state, "iteration": iteration, "of": of, "images_per_second": images_per_second, "error": error}
    replace_file(folder / "state.json", json.dumps(fields) + "\n")


def write_environment(folder: Path, *, config: TrainConfig, device: torch.device, dataset: Dataset) -> None:
    """Replace `environment.json`: what this launch ran on and with."""
    if rank():
        return
    if len(dataset) != config.recipe.data.images:
        LOG.warning("%s: %d images here, the recipe says %d", dataset.name, len(dataset), config.recipe.data.images)
    environment = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "processes": config.execution.processes,
        "packages": {name: version for name in PACKAGES if (version := _installed(name))},
        "data": describe_dataset(dataset),
    }
    replace_file(folder / "environment.json", json.dumps(environment, indent=1) + "\n")


def log_head(config: TrainConfig) -> None:
    """The head of a launch's log: the code's commit, the scaled learning rate and the whole configuration."""
    LOG.info("git:\n  %s\n", _describe_git())
    if config.recipe.optim.scaling == "sqrt_1024":
        base, peak = config.recipe.optim.base_lr, peak_lr(config.recipe)
        LOG.info("sqrt scaling learning rate; base: %s, new: %s", base, peak)
    LOG.info("%s", dump_config(config))


def _describe_git() -> str:
    """Commit and branch of the checkout that this file is in, or was copied from, in the words of DINOv2's log."""
    origin = Path(__file__).parents[2] / ORIGIN
    if origin.is_file():
        return origin.read_text().strip()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        result = subprocess.run(command, check=False, capture_output=True, text=True)
        return result.stdout.strip() if result.returncode == 0 else ""

    try:
        sha, branch = git("rev-parse", "HEAD"), git("rev-parse", "--abbrev-ref", "HEAD")
        status = "has uncommitted changes" if git("status", "--porcelain") else "clean"
    except FileNotFoundError:  # no git here
        sha = branch = status = ""
    if not sha:
        return "sha: N/A, status: clean, branch: N/A"
    return f"sha: {sha}, status: {status}, branch: {branch}"


def _cpu_name() -> str:
    """The processor as Linux names it, which Python's `platform` does not."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
