"""Images to train on and to evaluate with: a dataset's name and folder in, images by index out.

Every dataset is read at random, so a run's order depends on its seed alone. `digits` ships with scikit-learn; the
others are image files or tar archives of them, found through an index (`franca data prepare`) or, of files, listed anew
at every start. An image that cannot be read raises `UnreadableImageError`: whoever reads decides what stands in for it
and counts it; nothing here makes an image up.
"""

import functools
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from franca.data.archives import BLOCK, OpenArchives
from franca.data.errors import DataError
from franca.data.errors import UnreadableImageError as UnreadableImageError  # a part of `Dataset`
from franca.data.images import decode_image, read_image
from franca.data.index import Index, load_index, load_manifest, make_index, manifest_path
from franca.data.layout import UNLABELED, Layout, Split, describe_layout, find_folder, find_layout, order_classes
from franca.data.scan import refuse_loose_files, scan_source

DIGITS_TEST_IMAGES = 360
SHARDED = ("laion600m",)  # read shard after shard: too large for a file system to be read here and there


@runtime_checkable
class Dataset(Protocol):
    """Images with class numbers, the positions in `class_names`; no names and class 0 for all where none are known."""

    name: str
    class_names: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The RGB image at `index` and its class. Raises `UnreadableImageError`."""


@runtime_checkable
class Sharded(Protocol):
    """A dataset that is best read shard after shard: the images `shards[i]` to `shards[i + 1]` lie side by side."""

    shards: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Digits:
    """Scanned handwritten digits, 8 x 8 pixels, as gray RGB: the test part of UCI's optdigits, 13 writers."""

    pixels: NDArray[np.uint8] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    fingerprint: str
    name: str = "digits"
    class_names: tuple[str, ...] = tuple("0123456789")

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The digit at `index` and which one it is."""
        return Image.fromarray(self.pixels[index]).convert("RGB"), int(self.labels[index])


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files below a folder, one class per folder directly below it unless the dataset has no labels."""

    name: str
    root: str
    index: Index
    class_names: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def fingerprint(self) -> str:
        return self.index.fingerprint

    @functools.cached_property
    def labels(self) -> NDArray[np.int64]:
        """The class of each unit of the index."""
        numbers = {class_name: number for number, class_name in enumerate(self.class_names)}
        return np.array([numbers.get(class_name, 0) for class_name in self.index.unit_classes], np.int64)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The image at `index` and its class. Raises `UnreadableImageError`."""
        unit = self.index.unit_of(index)
        path = os.path.join(self.root, self.index.unit_names[unit], os.fsdecode(self.index.name_of(index)))  # noqa: PTH118
        return read_image(path), int(self.labels[unit])

    def __reduce__(self) -> Any:
        return type(self), (self.name, self.root, self.index, self.class_names)  # without what is open or cached here


@dataclass(frozen=True, eq=False)
class ImageArchives(ImageFiles):
    """Images in tar archives, one class per archive unless the dataset has no labels; read in place, never unpacked."""

    @functools.cached_property
    def archives(self) -> OpenArchives:
        """The archives that this process has open."""
        return OpenArchives(self.root)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The image at `index` and its class. Raises `UnreadableImageError`."""
        content, name = self.read_bytes(index)
        return decode_image(content, name=name), int(self.labels[self.index.unit_of(index)])

    def read_bytes(self, index: int) -> tuple[bytes, str]:
        """The encoded image at `index` and its name. Raises `UnreadableImageError`."""
        block, size = self.index.entries[index].tolist()
        archive = self.index.unit_names[self.index.unit_of(index)]
        return self.archives.read(archive, offset=block * BLOCK, size=size)


@dataclass(frozen=True, eq=False)
class ImageShards(ImageArchives):
    """Image archives that are best read one after another."""

    @property
    def shards(self) -> NDArray[np.int64]:
        return self.index.starts


def load_dataset(name: str, *, root: str, split: Split) -> Dataset:
    """Open a dataset by its name in the recipe. Raises `DataError` naming what is missing and where it belongs.

    `root` is the site's folder for it, empty for `digits`. The test split is never part of the train split.
    """
    if name == "digits":
        return _load_digits(split)
    folder = find_folder(name, root=root, split=split)
    manifest = manifest_path(root, split=split)
    if not manifest.exists():
        return _list_files(find_layout(name, root=root, split=split))
    content = load_manifest(manifest)
    if (content["dataset"], content["folder"]) != (name, folder):
        raise DataError(
            f"{manifest}: the index of {content['dataset']}, not of {name}; delete it or mend the data root"
        )
    index = load_index(str(manifest))
    class_names = () if name in UNLABELED else order_classes(root, tuple(dict.fromkeys(index.unit_classes)))
    kind = ImageFiles if content["kind"] == "files" else ImageShards if name in SHARDED else ImageArchives
    return kind(name, os.path.join(root, folder), index, class_names)  # noqa: PTH118 - as the user wrote it


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """What a run notes of its data: how much there is, its fingerprint and, of indexed data, its manifest."""
    index = getattr(dataset, "index", None)
    manifest = load_manifest(Path(index.manifest)) if index is not None and index.manifest else None
    return {
        "dataset": dataset.name,
        "images": len(dataset),
        "classes": len(dataset.class_names),
        "fingerprint": dataset.fingerprint,
        **({} if manifest is None else {"manifest": manifest}),
    }


def _list_files(layout: Layout) -> ImageFiles:
    """A dataset of files that has no index: its folders are listed here and now."""
    if layout.kind == "archives":
        raise DataError(
            f"{layout.path}: {len(layout.sources):,} archives without an index; run once "
            f"`franca data prepare {layout.dataset} --root {layout.root}`"
        )
    refuse_loose_files(layout)
    scanned = [scan_source(source, layout=layout) for source in layout.sources]
    if not any(unit.images for unit, _, _ in scanned):
        raise DataError(f"{layout.path}: no images in this folder; {describe_layout(layout.dataset)}")
    begins = np.cumsum([0, *(len(names) for _, _, names in scanned)])
    entries = [part + np.array([begin, 0], np.uint32) for (_, part, _), begin in zip(scanned, begins, strict=False)]
    index = make_index(
        [unit for unit, _, _ in scanned],
        entries=np.concatenate(entries),
        names=np.concatenate([names for _, _, names in scanned]),
    )
    return ImageFiles(layout.dataset, str(layout.path), index, layout.class_names)


def _load_digits(split: Split) -> Digits:
    """1,437 digits to train on, or the 360 kept for testing: those whose pixels have the smallest SHA-256.

    The split follows from the images alone: equal images fall on the same side, and no library's generator decides.
    """
    pixels, labels = _read_digits()
    order = sorted(range(len(pixels)), key=lambda index: hashlib.sha256(pixels[index].tobytes()).digest())
    chosen = np.sort(order[:DIGITS_TEST_IMAGES] if split == "test" else order[DIGITS_TEST_IMAGES:])
    digest = hashlib.sha256(pixels[chosen].tobytes() + labels[chosen].tobytes())
    return Digits(pixels[chosen], labels[chosen], digest.hexdigest()[:16])


@functools.cache
def _read_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All 1,797 digits [n, 8, 8]; their 17 gray levels spread over 0..255."""
    from sklearn.datasets import load_digits  # two seconds of import that only this dataset needs

    bunch = load_digits()
    return np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int64)
