"""`franca consolidate RUN_FOLDER`: a checkpoint's shards in; one safetensors file of its teacher, student or both out.

The names are those of the bare networks (`backbone.blocks.0.…`, `dino_head.…`, `ibot_head.…`); of both, each after
`teacher.` or `student.`. Nothing is computed and no process group is made: one tensor at a time is in memory.

Exit codes: 0 written; 2 a folder, checkpoint or disk that will not do, said in one line.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from franca.config import ConfigError, TrainConfig, load_config
from franca.train.checkpoint import OFFSETS, CheckpointError, list_checkpoints, read_manifest
from franca.train.tensor_file import TYPES, Kind, write_tensor_file

NETWORKS = {"teacher": ("teacher",), "student": ("student",), "both": ("student", "teacher")}
DTYPES = {name: dtype for dtype, name in TYPES.items()}


@dataclass(frozen=True)
class Consolidated:
    """A written file, and what it is of."""

    file: str
    sha256: str
    bytes: int
    tensors: int
    parameters: int
    checkpoint: str
    network: str
    row: str
    version: int
    fingerprint: str
    seed: int
    iteration: int


@dataclass(frozen=True)
class Chunk:
    """A part of a tensor: the open file that holds it, and which of the tensor's indices, dimension by dimension."""

    file: Any
    place: tuple[slice, ...]


@dataclass(frozen=True)
class Sharded:
    """A tensor of a checkpoint, in parts; `name` is its name there."""

    name: str
    dtype: torch.dtype
    chunks: list[Chunk]

    @property
    def kind(self) -> Kind:
        """Of the whole tensor, which ends where the last of its parts does."""
        ends = ([axis.stop for axis in chunk.place] for chunk in self.chunks)
        return Kind(self.dtype, tuple(map(max, zip(*ends, strict=True))))


def main(arguments: Sequence[str]) -> int:
    """Consolidate the run folder named on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="franca consolidate", description="one weights file of a run's checkpoint")
    parser.add_argument("run_folder", type=Path, help="folder that holds the run's config.yaml and checkpoints")
    parser.add_argument("--network", choices=NETWORKS, default="teacher", help="default: teacher")
    parser.add_argument(
        "--checkpoint", type=int, metavar="N", help="iterations of the checkpoint (default: the newest)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: RUN_FOLDER/NETWORK_N.safetensors")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    options = parser.parse_args(arguments)
    try:
        path = choose_checkpoint(options.run_folder, iterations=options.checkpoint)
        out = options.out or options.run_folder / f"{options.network}_{path.name}.safetensors"
        written = consolidate(path, network=options.network, out=out, report=_show if sys.stderr.isatty() else None)
    except (CheckpointError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(asdict(written), indent=2) if options.json else render_line(written))
    return 0


def choose_checkpoint(folder: Path, *, iterations: int | None = None) -> Path:
    """A run's newest checkpoint, or that after `iterations`. Raises `CheckpointError` where there is none."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; name a run's, like runs/ROW@VERSION/main")
    found = list_checkpoints(folder)
    if not found:
        raise CheckpointError(f"{folder / 'checkpoints'}: no checkpoint; a run saves one as it trains and at its end")
    if iterations is None:
        return found[0]
    for path in found:
        if int(path.name) == iterations:
            return path
    raise CheckpointError(
        f"{folder}: no checkpoint after {iterations} iterations; there are {', '.join(path.name for path in found)}"
    )


def consolidate(
    path: Path, *, network: str, out: Path, report: Callable[[int, int], None] | None = None
) -> Consolidated:
    """Write `network` ("teacher", "student" or "both") of the checkpoint `path` to `out`, whole or not at all.

    Equal weights of equal runs give equal bytes. `report` is told the bytes that are written and that there are.
    Raises `CheckpointError` on a checkpoint that is damaged or lacks a part and where the disk will not take the file,
    `ConfigError` where the run's configuration is missing or of another recipe.
    """
    manifest, config = _read_manifest(path), _load_config(path)
    if config.fingerprint != manifest["fingerprint"]:
        raise ConfigError(f"{path} is of recipe {manifest['fingerprint']}, but its config.yaml of {config.fingerprint}")
    origin = {
        "network": network,
        "row": config.row,
        "version": config.version,
        "fingerprint": config.fingerprint,
        "seed": manifest["seed"],
        "iteration": manifest["iteration"],
    }
    metadata = {"format": "pt", **{key: str(value) for key, value in origin.items()}}
    with open_shards(path, files=manifest["files"]) as shards:
        tensors = select_networks(shards, networks=NETWORKS[network])
        kinds = {name: tensor.kind for name, tensor in tensors.items()}
        try:
            digest = _write(out, tensors, metadata=metadata, report=report or _stay_silent)
        except OSError as error:
            raise CheckpointError(f"{out} could not be written: {error}; make room, or name another file") from error
    return Consolidated(
        file=str(out),
        sha256=digest,
        bytes=out.stat().st_size,
        tensors=len(kinds),
        parameters=sum(kind.bytes // kind.dtype.itemsize for kind in kinds.values()),
        checkpoint=str(path),
        **origin,
    )


@contextmanager
def open_shards(path: Path, *, files: Iterable[str]) -> Iterator[dict[str, Sharded]]:
    """Every tensor of a checkpoint by its name there, with its parts; they can be read while the block lasts."""
    with ExitStack() as stack:
        shards: dict[str, Sharded] = {}
        for name in sorted(files):
            file = stack.enter_context(safe_open(path / name, framework="pt"))
            offsets = json.loads(file.metadata()[OFFSETS])
            for key in file.keys():  # noqa: SIM118 - not a dictionary
                part = file.get_slice(key)
                begins, lengths = offsets[key]["saved_offsets"], part.get_shape()
                place = tuple(slice(begin, begin + length) for begin, length in zip(begins, lengths, strict=True))
                tensor = shards.setdefault(key, Sharded(key, DTYPES[part.get_dtype()], []))
                tensor.chunks.append(Chunk(file, place))
        yield shards


def select_networks(shards: dict[str, Sharded], *, networks: Sequence[str]) -> dict[str, Sharded]:
    """The tensors of the networks by their names in the bare module, after the network's own where there are two."""
    selected = {}
    for network in networks:
        before, after = f"model.{network}.", f"{network}." if len(networks) > 1 else ""
        for name, tensor in shards.items():
            if name.startswith(before):
                selected[after + name.removeprefix(before)] = tensor
    return selected


def read_whole(tensor: Sharded) -> Tensor:
    """A tensor put together from its parts. Raises `CheckpointError` where they leave some of it out."""
    whole = torch.empty(tensor.kind.shape, dtype=tensor.kind.dtype)
    filled = 0
    for chunk in tensor.chunks:
        part = chunk.file.get_tensor(tensor.name)
        whole[chunk.place].copy_(part)
        filled += part.numel()
    if filled != whole.numel():
        raise CheckpointError(f"{tensor.name}: its parts hold {filled} of {whole.numel()} values")
    return whole


def render_line(written: Consolidated) -> str:
    """What was written, to read."""
    return (
        f"{written.file}: {written.network} of {written.row}@{written.version} after {written.iteration:,} iterations, "
        f"{written.tensors} tensors, {written.parameters:,} values, {written.bytes / 1e6:,.1f} MB"
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself. Raises `CheckpointError`, with what may be done, where it cannot be used."""
    try:
        return read_manifest(path)
    except (CheckpointError, OSError) as error:
        others = [int(other.name) for other in list_checkpoints(path.parents[1]) if other != path]
        earlier = [iterations for iterations in others if iterations < int(path.name)]
        mend = (
            f"consolidate {'an earlier' if earlier else 'another'} one with --checkpoint {max(earlier or others)}"
            if others
            else "there is no other one: train the run again"
        )
        raise CheckpointError(f"{error}; {mend}") from error


def _load_config(path: Path) -> TrainConfig:
    """The configuration of the run that a checkpoint lies in."""
    source = path.parents[1] / "config.yaml"
    if not source.is_file():
        raise ConfigError(f"{source}: no such file; a run folder holds one")
    return load_config(source)


def _write(
    out: Path, tensors: dict[str, Sharded], *, metadata: dict[str, str], report: Callable[[int, int], None]
) -> str:
    """Write under another name, then rename; the file's digest."""
    kinds = {name: tensor.kind for name, tensor in tensors.items()}
    whole, written = sum(kind.bytes for kind in kinds.values()), 0

    def read(name: str) -> Tensor:
        nonlocal written
        report(written, whole)
        written += kinds[name].bytes
        return read_whole(tensors[name])

    temporary = out.with_name(f".{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        digest = write_tensor_file(temporary, kinds, read=read, metadata=metadata)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    report(whole, whole)
    return digest


def _show(written: int, whole: int) -> None:
    """The progress, in a line of the terminal that is written over."""
    end = "\n" if written == whole else ""
    print(f"\r{written / 1e6:,.0f} of {whole / 1e6:,.0f} MB", end=end, file=sys.stderr, flush=True)


def _stay_silent(written: int, whole: int) -> None:
    """Nobody is there to see."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
