"""A file written tensor by tensor is one that the safetensors library reads, bit for bit, and equal in equal bytes."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from franca.train.tensor_file import TYPES, Kind, write_tensor_file

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
KINDS = st.tuples(st.sampled_from(list(TYPES)), SHAPES)
NAMES = st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__" and name.isprintable())


def make_tensor(kind: Kind, *, seed: int) -> Tensor:
    """Random bytes, so that infinities and the several NaNs occur too."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 2 if kind.dtype == torch.bool else 256, (kind.bytes,), generator=generator)
    return values.to(torch.uint8).view(kind.dtype).reshape(kind.shape)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@given(drawn=st.dictionaries(NAMES, KINDS, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_library_reads_what_was_written(tmp_path: Path, drawn: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    """Every type and shape, scalars and empty tensors too, comes back with its bits; every tensor is aligned."""
    kinds = {name: Kind(*kind) for name, kind in drawn.items()}
    tensors = {name: make_tensor(kind, seed=seed) for seed, (name, kind) in enumerate(kinds.items())}
    path = tmp_path / "file.safetensors"
    digest = write_tensor_file(path, kinds, read=tensors.__getitem__, metadata={"b": "1", "a": "2"})
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in read.items():
        assert Kind(tensor.dtype, tuple(tensor.shape)) == kinds[name]
        assert bits(tensor) == bits(tensors[name])
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"a": "2", "b": "1"}
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert length % 8 == 0
    header = json.loads(path.read_bytes()[8 : 8 + length])
    for name, kind in kinds.items():
        assert header[name]["data_offsets"][0] % kind.dtype.itemsize == 0


def test_order_of_names_and_metadata_does_not_show(tmp_path: Path) -> None:
    """Equal tensors and metadata make equal files, in whatever order they come."""
    kinds = {"a": Kind(torch.float32, (2,)), "b": Kind(torch.int8, (3,)), "c": Kind(torch.float32, (1,))}
    tensors = {name: make_tensor(kind, seed=1) for name, kind in kinds.items()}
    metadata = {"x": "1", "y": "2"}
    for name, turn in (("one", list), ("two", lambda items: list(items)[::-1])):
        reordered = dict(turn(kinds.items()))
        write_tensor_file(tmp_path / name, reordered, read=tensors.__getitem__, metadata=dict(turn(metadata.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_tensors_are_asked_for_one_at_a_time(tmp_path: Path) -> None:
    """What was asked for before is on its way to the disk, and need not be held."""
    asked: list[str] = []

    def read(name: str) -> Tensor:
        asked.append(name)
        return torch.zeros(1000, 1000)

    kinds = {name: Kind(torch.float32, (1000, 1000)) for name in "abc"}
    write_tensor_file(tmp_path / "file", kinds, read=read, metadata={})
    assert asked == ["a", "b", "c"]


def test_part_of_a_larger_tensor_is_written_alone(tmp_path: Path) -> None:
    """A transposed view is written in its own order, without what surrounds it in memory."""
    tensor = torch.arange(12.0).view(3, 4).T[1:3]
    kinds = {"part": Kind(torch.float32, (2, 3))}
    write_tensor_file(tmp_path / "file", kinds, read=lambda _: tensor, metadata={})
    assert load_file(tmp_path / "file")["part"].tolist() == [[1.0, 5.0, 9.0], [2.0, 6.0, 10.0]]


def test_tensor_of_another_shape_is_no_file(tmp_path: Path) -> None:
    """A header that does not describe its tensors is a mistake of the caller."""
    with pytest.raises(AssertionError, match="a"):
        write_tensor_file(
            tmp_path / "file", {"a": Kind(torch.float32, (2,))}, read=lambda _: torch.zeros(3), metadata={}
        )
