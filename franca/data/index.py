"""A data set's index: where every image lies, in arrays that all processes of a machine share; files in, lookups out.

Below `<root>/.franca-index` a split has a manifest, `train.json`, and the folder that it names:

    units.jsonl   one line per archive or folder: name, class, images, size, mtime_ns, digest, skipped, damage
    entries.npy   uint32 [images, 2], 8 bytes an image: in an archive the content's 512-byte block and its bytes; in a
                  folder where its name begins in names.bin, and its bytes
    names.bin     the names of a folder's files, each ended by a zero byte; empty for archives
    skipped.txt   what is no image to train on, a line each with its reason; damaged archives first

Both arrays are memory-mapped: a worker holds only the pages that it reads, once for all processes of the machine.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from franca.data.errors import DataError

FOLDER = ".franca-index"
FORMAT = 1

Entries = NDArray[np.uint32]
Bytes = NDArray[np.uint8]

NO_NAMES = np.empty(0, np.uint8)


@dataclass(frozen=True)
class Unit:
    """An archive or a folder of files, as its line in the index has it. `digest` is that of names and sizes.

    `skipped` are members that are no images to train on, `damage` is what is wrong with an archive as a whole.
    """

    name: str
    class_name: str
    size: int
    mtime_ns: int
    images: int
    names_bytes: int
    digest: str
    skipped: tuple[str, ...] = ()
    sha256: str = ""
    damage: str = ""


@dataclass(frozen=True, eq=False)
class Index:
    """Where the images are: rows `starts[u]` to `starts[u + 1]` of `entries` [n, 2] lie in unit u.

    `manifest` is that of a stored index and empty for one that was made in memory, whose arrays then travel to workers
    through shared memory.
    """

    unit_names: tuple[str, ...] = field(repr=False)
    unit_classes: tuple[str, ...] = field(repr=False)
    starts: NDArray[np.int64] = field(repr=False)
    entries: Entries = field(repr=False)
    names: Bytes = field(repr=False)
    fingerprint: str
    manifest: str = ""

    def __len__(self) -> int:
        return int(self.starts[-1])

    def unit_of(self, row: int) -> int:
        """The unit that a row lies in."""
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def name_of(self, row: int) -> bytes:
        """The name of a folder's file."""
        begin = int(self.entries[row, 0])
        end = int(self.entries[row + 1, 0]) if row + 1 < len(self.entries) else len(self.names)
        return self.names[begin : end - 1].tobytes()

    def __reduce__(self) -> Any:
        if self.manifest:
            return load_index, (self.manifest,)
        return _receive, (self.unit_names, self.unit_classes, *self._shared, self.fingerprint)

    @functools.cached_property
    def _shared(self) -> tuple[torch.Tensor, ...]:
        """The arrays as tensors: what starts a worker moves them into shared memory once, for all workers."""
        return tuple(torch.from_numpy(array) for array in (self.starts, self.entries.view(np.int32), self.names))


def make_index(units: Sequence[Unit], *, entries: Entries, names: Bytes, manifest: str = "") -> Index:
    """An index of its parts."""
    return Index(
        unit_names=tuple(unit.name for unit in units),
        unit_classes=tuple(unit.class_name for unit in units),
        starts=np.cumsum([0, *(unit.images for unit in units)], dtype=np.int64),
        entries=entries,
        names=names,
        fingerprint=combine_digests(unit.digest for unit in units),
        manifest=manifest,
    )


def load_index(manifest: str) -> Index:
    """Open a stored index by its manifest. Raises `DataError` where a part is missing or not what it should be."""
    content = load_manifest(Path(manifest))
    folder = Path(manifest).parent / content["index"]
    try:
        units = parse_units((folder / "units.jsonl").read_text())
        entries = np.load(folder / "entries.npy", mmap_mode="r")
        names = np.memmap(folder / "names.bin", mode="r") if (folder / "names.bin").stat().st_size else NO_NAMES
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder}: this index cannot be read: {error}; {_mend(content)}") from error
    index = make_index(units, entries=entries, names=names, manifest=manifest)
    if len(index) != len(entries) or index.fingerprint != content["fingerprint"]:
        raise DataError(f"{folder}: the parts of this index do not belong together; {_mend(content)}")
    return index


def load_manifest(path: Path) -> dict[str, Any]:
    """What a manifest says. Raises `DataError`."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: this manifest cannot be read: {error}; delete it and prepare the data again"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: not a manifest of format {FORMAT}; delete it and prepare the data again")
    return content


def manifest_path(root: str, *, split: str) -> Path:
    """Where the manifest of a split lies."""
    return Path(root) / FOLDER / f"{split}.json"


def parse_units(text: str) -> list[Unit]:
    """The lines of `units.jsonl`. Raises `ValueError` or `TypeError` on a line that is none."""
    return [parse_unit(line) for line in text.splitlines()]


def parse_unit(line: str) -> Unit:
    """One line of `units.jsonl`. Raises `ValueError` or `TypeError`."""
    content = json.loads(line)
    return Unit(**{**content, "skipped": tuple(content["skipped"])})


def combine_digests(digests: Iterable[str]) -> str:
    """16 hex digits for the digests of all units, in order."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]


def _receive(
    unit_names: tuple[str, ...],
    unit_classes: tuple[str, ...],
    starts: torch.Tensor,
    entries: torch.Tensor,
    names: torch.Tensor,
    fingerprint: str,
) -> Index:
    """An index that came from another process."""
    return Index(unit_names, unit_classes, starts.numpy(), entries.numpy().view(np.uint32), names.numpy(), fingerprint)


def _mend(content: dict[str, Any]) -> str:
    return f"run `franca data prepare {content.get('dataset', '')}` again"
