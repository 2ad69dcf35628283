"""Checkpoints of a run: a model, its optimizer and the log's open block in; folders that appear whole out, and back.

`checkpoints/000600` holds the state after 600 iterations: tensors alone, in the safetensors files that
`torch.distributed.checkpoint` reads (nothing is unpickled, any number of processes may load them, however each of
them shards its tensors), and `checkpoint.json`. Training goes on while one is written.
Random streams need no state: every draw is a function of the seed and the iteration.
"""

import contextlib
import copy
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter
from torch.optim import Optimizer

from franca.config import ConfigError, TrainConfig
from franca.distributed import all_reduce_sum, local_part, make_cpu_group, rank, world_size
from franca.train.metrics import LOG
from franca.train.tensor_file import Kind, write_tensor_file

NAME = re.compile(r"\d{6,}")
MANIFEST = "checkpoint.json"
NONE, UNREADABLE, DAMAGED = -1, -2, -3  # in place of the iterations of a checkpoint
OFFSETS = "DCP_SHARDING_INFO"  # where `HuggingFaceStorageReader` looks for a shard's place in its tensor


class CheckpointError(ValueError):
    """A checkpoint that is incomplete, not what was written, or could not be written; the message names the file."""


@contextlib.contextmanager
def make_checkpoints(folder: Path, *, config: TrainConfig) -> Iterator["Checkpoints"]:
    """The checkpoints of a run that is at work in `folder`. Leaving the block waits for the last one.

    An exception that leaves the block is never replaced by one of the checkpoint under way, which the log has.
    """
    with _quiet_alone(), ThreadPoolExecutor(1, thread_name_prefix="checkpoint") as executor:
        checkpoints = Checkpoints(folder, config=config, executor=executor)
        try:
            yield checkpoints
        except BaseException:
            with contextlib.suppress(CheckpointError):
                checkpoints.wait()
            raise
        checkpoints.wait()


class Checkpoints:
    """Writes checkpoints beside the training, one at a time, and keeps the newest ones.

    `copies` is this process's part of the state in the CPU's memory, kept from one save to the next: taking it anew
    costs more than filling it.
    """

    def __init__(self, folder: Path, *, config: TrainConfig, executor: Executor) -> None:
        self.folder = folder
        self.config = config
        self.executor = executor
        self.group = make_cpu_group()
        self.copies: dict[str, Tensor] = {}
        self.under_way: Future[None] | None = None

    def save(self, done: int, *, model: nn.Module, optimizer: Optimizer, progress: dict[str, Any]) -> None:
        """Copy the state after `done` iterations, and have it written to `folder/checkpoints` while training goes on.

        `progress` is what else the loop carries, as JSON holds it. All processes call this together. It waits for the
        save before it and, on a CPU, for the copy; on another device the copy is queued behind the step.

        It is written under another name, flushed to disk and renamed: a kill leaves a whole checkpoint or none.
        Raises `CheckpointError` where the save before it failed.
        """
        self.wait()
        tensors = _list_tensors(model, optimizer)
        copied = self._copy(tensors)
        manifest = {
            "iteration": done,
            "fingerprint": self.config.fingerprint,
            "seed": self.config.seed,
            **copy.deepcopy(progress),
        }
        self.under_way = self.executor.submit(self._write, tensors, manifest=manifest, copied=copied)

    def wait(self) -> None:
        """Return when the last save is on disk. Raises `CheckpointError` where it could not be written."""
        under_way, self.under_way = self.under_way, None
        if under_way:
            under_way.result()

    def _copy(self, tensors: dict[str, Tensor]) -> torch.Event | None:
        """Fill `copies`; the event, on a device that runs on its own, is when they are filled."""
        device = None
        for name, tensor in tensors.items():
            part = local_part(tensor.detach())
            away = part.device.type != "cpu"
            if name not in self.copies:
                self.copies[name] = torch.empty(part.shape, dtype=part.dtype, pin_memory=away)
            self.copies[name].copy_(part, non_blocking=True)
            device = part.device if away else device
        if device is None:
            return None
        copied = torch.Event(device)
        copied.record()
        return copied

    def _write(self, tensors: dict[str, Tensor], *, manifest: dict[str, Any], copied: torch.Event | None) -> None:
        """Write `copies`, in a thread of its own. Of `tensors` themselves it reads where their shards lie, no value."""
        if copied:
            copied.synchronize()
        writer = _Writer(
            self.folder, copies=self.copies, manifest=manifest, kept=self.config.execution.checkpoints_kept
        )
        try:
            dcp.save(tensors, storage_writer=writer, process_group=self.group, no_dist=self.group is None)
        except CheckpointException as failure:
            error = _explain(failure, f"{writer.final} could not be written")
            LOG.error("%s", error)
            if rank() == 0:
                shutil.rmtree(writer.temporary, ignore_errors=True)
            raise error from failure


class _Writer(StorageWriter):
    """One checkpoint as `torch.distributed.checkpoint` has it written: planned together, a file from every process.

    The first process makes the folder before the others write, and gives it its name when they have.
    """

    def __init__(self, folder: Path, *, copies: dict[str, Tensor], manifest: dict[str, Any], kept: int) -> None:
        self.folder = folder
        self.copies = copies
        self.manifest = manifest
        self.kept = kept
        self.final = folder / "checkpoints" / f"{manifest['iteration']:06d}"
        self.temporary = self.final.with_name(f".{self.final.name}.incomplete")

    def reset(self, checkpoint_id: Any = None) -> None:
        """A writer writes one checkpoint, so nothing is left of another."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if is_coordinator:
            for killed in self.final.parent.glob(".*.incomplete"):
                shutil.rmtree(killed)
            self.temporary.mkdir(parents=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        names = (f"shard-{number:05d}-of-{len(plans):05d}.safetensors" for number in range(1, len(plans) + 1))
        return [
            SavePlan(plan.items, storage_data=name, planner_data=plan.planner_data)
            for plan, name in zip(plans, names, strict=True)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[tuple[str, str]]]:
        """This process's file; its name and digest are the result."""
        chunks = {item.index.fqn: item.tensor_data for item in plan.items}
        assert len(chunks) == len(plan.items), "a process holds one part of a tensor"
        kinds = {name: Kind(data.properties.dtype, tuple(data.chunk.sizes)) for name, data in chunks.items()}
        offsets = {name: {"saved_offsets": list(data.chunk.offsets)} for name, data in chunks.items()}
        written: torch.futures.Future[list[tuple[str, str]]] = torch.futures.Future()
        if not chunks:
            written.set_result([])
            return written
        digest = write_tensor_file(
            self.temporary / plan.storage_data,
            kinds,
            read=self.copies.__getitem__,
            metadata={"format": "pt", OFFSETS: json.dumps(offsets)},
        )
        written.set_result([(plan.storage_data, digest)])
        return written

    def finish(self, metadata: Metadata, results: list[list[tuple[str, str]]]) -> None:
        """Say what the files are, then give them their place and drop what is too old."""
        files = dict(sorted(file for of_process in results for file in of_process))
        path = self.temporary / MANIFEST
        path.write_text(json.dumps({**self.manifest, "files": files}, indent=1))
        for flushed in (path, self.temporary):
            _flush(flushed)
        if self.final.exists():
            _drop(self.final)  # damaged, and passed over when this run was taken up
        self.temporary.rename(self.final)
        _flush(self.final.parent)
        LOG.info("Saved checkpoint to %s", self.final.relative_to(self.final.parents[1]))
        self._clear()

    def _clear(self) -> None:
        """Keep the newest ones up to this. Later ones were damaged when this run began: they lose their place only."""
        found = list_checkpoints(self.folder)
        place = found.index(self.final)
        for path in found[:place]:
            path.rename(path.with_name(f".{path.name}.damaged"))
        for path in found[place + self.kept :]:
            try:
                _drop(path)
            except OSError as error:
                LOG.warning("an old checkpoint could not be removed: %s", error)


def load_newest_checkpoint(
    folder: Path, *, config: TrainConfig, model: nn.Module, optimizer: Optimizer
) -> dict[str, Any] | None:
    """Fill model and optimizer from the newest good checkpoint. Returns its iteration and progress; None without one.

    A damaged one is named in a warning and passed over. Raises `ConfigError` where one belongs to another recipe, and
    `CheckpointError` where it lacks a tensor of this model, where one cannot be read now, and where all are damaged:
    a run that has come far is not begun anew without being asked.
    """
    done = int(all_reduce_sum(torch.tensor(_choose(folder) if rank() == 0 else 0)))
    if done == NONE:
        return None
    if done == UNREADABLE:
        raise CheckpointError(f"{folder / 'checkpoints'} cannot be read now; start again when its file system answers")
    if done == DAMAGED:
        raise CheckpointError(f"{folder / 'checkpoints'} holds no good checkpoint; move it away to begin anew")
    path = folder / "checkpoints" / f"{done:06d}"
    manifest = json.loads((path / MANIFEST).read_text())
    written = manifest["fingerprint"], manifest["seed"]
    if written != (config.fingerprint, config.seed):
        raise ConfigError(
            f"{path} is of recipe {written[0]} with seed {written[1]}, this run is of {config.fingerprint} with "
            f"seed {config.seed}; use another run folder"
        )
    with _quiet_alone():
        reader = HuggingFaceStorageReader(str(path))
        try:
            dcp.load(_list_tensors(model, optimizer), storage_reader=reader, no_dist=world_size() == 1)
        except CheckpointException as failure:
            raise _explain(failure, f"{path} does not fit this model") from failure
    LOG.info("Resuming from checkpoint %s", path)
    return manifest


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, newest first."""
    if not (folder / "checkpoints").is_dir():
        return []
    found = [path for path in (folder / "checkpoints").iterdir() if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself. Raises `CheckpointError` where a file is missing, foreign or altered.

    Raises `OSError` where one is there and cannot be read, which is no damage.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, digest in manifest["files"].items():
            if _digest(path / name) != digest:
                raise CheckpointError(f"{path / name} is not as it was written")
        for file in path.glob("*.safetensors"):
            if file.name not in manifest["files"]:
                raise CheckpointError(f"{file} is not one of its files")
        if int(path.name) != manifest["iteration"]:
            raise CheckpointError(f"{path} was renamed: it holds the state after {manifest['iteration']} iterations")
    except CheckpointError:
        raise
    except (AttributeError, FileNotFoundError, KeyError, NotADirectoryError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {type(error).__name__}: {error}") from error
    return manifest


@contextlib.contextmanager
def _quiet_alone() -> Iterator[None]:
    """A run of one process has no process group on purpose; torch warns of it at every save and load."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _list_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """All that a step changes, by name: parameters, centers, and the optimizer's moments and step counts.

    The state is asked for first: that makes FSDP let go of gathered parameters, which have no moments. A frozen teacher
    comes from its own file at every launch.
    """
    state = model.state_dict()
    tensors = {f"model.{name}": tensor for name, tensor in state.items() if not name.startswith("frozen_teacher.")}
    for name, parameter in model.named_parameters():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = tensor
    return tensors


def _choose(folder: Path) -> int:
    """The iterations of the newest good checkpoint; without one, which of `NONE`, `UNREADABLE` and `DAMAGED` it is."""
    found = list_checkpoints(folder)
    for path in found:
        try:
            return int(read_manifest(path)["iteration"])
        except CheckpointError as error:
            LOG.warning("passing over a damaged checkpoint: %s", error)
        except OSError as error:
            LOG.error("a checkpoint cannot be read: %s", error)
            return UNREADABLE
    return DAMAGED if found else NONE


def _explain(failure: CheckpointException, what: str) -> CheckpointError:
    """What went wrong in which process, without the tracebacks that torch adds, and the mend where it is the disk's."""
    causes = {number: error for number, (error, _) in failure.failures.items()}
    said = "; ".join(f"process {number}: {type(error).__name__}: {error}" for number, error in causes.items())
    mend = ""
    if any(isinstance(error, OSError) for error in causes.values()):
        mend = "; make room or mend the folder's permissions and start again, earlier checkpoints are as they were"
    return CheckpointError(f"{what}: {said}{mend}")


def _drop(path: Path) -> None:
    """Remove a checkpoint so that a kill on the way leaves none that looks complete."""
    shutil.rmtree(path.rename(path.with_name(f".{path.name}.dropped.incomplete")))


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
