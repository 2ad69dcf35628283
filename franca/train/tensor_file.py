"""One safetensors file, written tensor by tensor: names, types and shapes in; the file and its SHA-256 out.

The safetensors library takes every tensor at once, holds the interpreter meanwhile, and orders metadata at random.
Here one tensor is in hand at a time, other threads go on, and equal tensors and metadata give equal bytes.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# The format's names (https://github.com/huggingface/safetensors#format).
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Kind:
    """What a file's header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensor_file(
    path: Path, kinds: Mapping[str, Kind], *, read: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> str:
    """Write what `read` returns for every name, flush it to disk, and return the SHA-256 of the file.

    `read` is called once a name, when the tensor's turn has come. Raises `OSError` where the disk will not take it.
    """
    names = _order(kinds)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in _parts(names, kinds, read=read, metadata=metadata):
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _order(kinds: Mapping[str, Kind]) -> list[str]:
    """Wide types first: each tensor begins at a multiple of its type's width, as a reader's memory map needs."""
    return sorted(kinds, key=lambda name: (-kinds[name].dtype.itemsize, name))


def _parts(
    names: list[str], kinds: Mapping[str, Kind], *, read: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """The file's bytes: the header's length, the header, and the tensors in its order."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        begin, end = end, end + kinds[name].bytes
        shape = list(kinds[name].shape)
        header[name] = {"dtype": TYPES[kinds[name].dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    yield len(text).to_bytes(8, "little")
    yield text
    for name in names:
        tensor = read(name).detach().cpu()
        assert Kind(tensor.dtype, tuple(tensor.shape)) == kinds[name], name
        yield tensor.contiguous().flatten().view(torch.uint8).numpy().data
