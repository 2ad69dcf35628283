"""Checkpoints of a run: a model, its optimizer and the log's open block in; folders that appear whole out, and back.

`checkpoints/000600` holds the state after 600 iterations: tensors alone, as the safetensors files of
`torch.distributed.checkpoint` (nothing is unpickled, any number of processes may load them), and `checkpoint.json`.
Random streams need no state: every draw is a function of the seed and the iteration.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.optim import Optimizer

from franca.config import ConfigError, TrainConfig
from franca.distributed import all_reduce_sum, barrier, rank, world_size
from franca.train.metrics import LOG

NAME = re.compile(r"\d{6,}")
MANIFEST = "checkpoint.json"


class CheckpointError(ValueError):
    """A checkpoint that is incomplete or not what was written; the message names the file."""


def save_checkpoint(
    folder: Path, *, done: int, config: TrainConfig, model: nn.Module, optimizer: Optimizer, progress: dict[str, Any]
) -> None:
    """Write the state after `done` iterations to `folder/checkpoints`, and drop all but the newest ones.

    `progress` is what else the loop carries, as JSON holds it.

    It is written under another name, flushed to disk and renamed: a kill leaves a whole checkpoint or none.
    """
    final = folder / "checkpoints" / f"{done:06d}"
    temporary = final.with_name(f".{final.name}.incomplete")
    if rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier()
    with _quiet_alone():
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        dcp.save(_list_tensors(model, optimizer), storage_writer=writer, no_dist=world_size() == 1)
    if rank() == 0:
        _write_manifest(temporary, done=done, config=config, progress=progress)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _flush(final.parent)
        for old in (
            *list_checkpoints(folder)[config.execution.checkpoints_kept :],
            *final.parent.glob(".*.incomplete"),
        ):
            shutil.rmtree(old)
        LOG.info("Saved checkpoint to %s", final)
    barrier()


def load_newest_checkpoint(
    folder: Path, *, config: TrainConfig, model: nn.Module, optimizer: Optimizer
) -> dict[str, Any] | None:
    """Fill model and optimizer from the newest good checkpoint. Returns its iteration and progress; None without one.

    A damaged one is named in a warning and passed over. Raises `ConfigError` where one belongs to another recipe.
    """
    found = _choose(folder, config=config) if rank() == 0 else 0
    done = int(all_reduce_sum(torch.tensor(found)))
    if done < 0:
        return None
    path = folder / "checkpoints" / f"{done:06d}"
    with _quiet_alone():
        reader = HuggingFaceStorageReader(str(path))
        dcp.load(_list_tensors(model, optimizer), storage_reader=reader, no_dist=world_size() == 1)
    LOG.info("Resuming from checkpoint %s", path)
    return json.loads((path / MANIFEST).read_text())


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, newest first."""
    if not (folder / "checkpoints").is_dir():
        return []
    found = [path for path in (folder / "checkpoints").iterdir() if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself. Raises `CheckpointError` where a file is missing or not as it was written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, digest in manifest["files"].items():
            if _digest(path / name) != digest:
                raise CheckpointError(f"{path / name} is not as it was written")
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return manifest


@contextlib.contextmanager
def _quiet_alone() -> Iterator[None]:
    """A run of one process has no process group on purpose; torch warns of it at every save and load."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _list_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """All that a step changes, by name: parameters, centers, and the optimizer's moments and step counts."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = tensor
    return tensors


def _choose(folder: Path, *, config: TrainConfig) -> int:
    """The iterations of the newest good checkpoint, -1 where there is none."""
    for path in list_checkpoints(folder):
        try:
            manifest = read_manifest(path)
        except CheckpointError as error:
            LOG.warning("passing over a damaged checkpoint: %s", error)
            continue
        written = manifest["fingerprint"], manifest["seed"]
        if written != (config.fingerprint, config.seed):
            raise ConfigError(
                f"{path} is of recipe {written[0]} with seed {written[1]}, this run is of {config.fingerprint} with "
                f"seed {config.seed}; use another run folder"
            )
        return manifest["iteration"]
    return -1


def _write_manifest(path: Path, *, done: int, config: TrainConfig, progress: dict[str, Any]) -> None:
    """Flush every file to disk, then say what they are."""
    files = sorted(path.iterdir())
    manifest = {
        "iteration": done,
        "fingerprint": config.fingerprint,
        "seed": config.seed,
        **progress,
        "files": {file.name: _digest(file) for file in files},
    }
    (path / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for file in (*files, path / MANIFEST, path):
        _flush(file)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Have the disk hold a file's bytes, or a folder's names, before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
