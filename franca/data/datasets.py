"""Images to train on and to evaluate with: a dataset's name and folder in, images by index out.

Every dataset is read at random, so a run's order depends on its seed alone. `digits` ships with scikit-learn; the
others are folders of image files. A file that does not hold an image raises `UnreadableImageError`: whoever reads
decides what stands in for it and counts it; nothing here makes an image up.
"""

import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Split = Literal["train", "test"]

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
DIGITS_TEST_IMAGES = 360

# Where the images of a split lie under the data root; the first folder that exists is taken. "" is the root itself.
FOLDERS: dict[str, dict[Split, tuple[str, ...]]] = {
    "imagenet1k": {"train": ("train",), "test": ("val",)},
    "imagenet21k": {"train": ("train", "")},
    "laion600m": {"train": ("train", "")},
}
UNLABELED = ("laion600m",)


class DataError(ValueError):
    """Data that is missing or not what it should be; the message names the folder and what belongs in it."""


class UnreadableImageError(DataError):
    """One file that does not hold an image; the message names it."""


@runtime_checkable
class Dataset(Protocol):
    """Images with class numbers, the positions in `class_names`; no names and class 0 for all where none are known."""

    name: str
    class_names: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The RGB image at `index` and its class. Raises `UnreadableImageError`."""


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
class ImageFolder:
    """Image files below a folder, one class per folder directly below it unless the dataset has no labels."""

    name: str
    root: str
    paths: np.ndarray = field(repr=False)  # bytes below root; a list of 13 million strings would take a gigabyte
    labels: NDArray[np.int64] = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    fingerprint: str

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The image at `index` and its class. Raises `UnreadableImageError`."""
        path = os.path.join(self.root, os.fsdecode(self.paths[index]))  # noqa: PTH118 - a hot path
        return read_image(path), int(self.labels[index])


def load_dataset(name: str, *, root: str, split: Split) -> Dataset:
    """Open a dataset by its name in the recipe. Raises `DataError` naming what is missing and where it belongs.

    `root` is the site's folder for it, empty for `digits`. The test split is never part of the train split.
    """
    if name == "digits":
        return _load_digits(split)
    if name not in FOLDERS:
        raise DataError(f"unknown dataset {name}; known: {', '.join(['digits', *FOLDERS])}")
    if split not in FOLDERS[name]:
        raise DataError(f"{name} has no {split} split, it is only trained on; evaluate on imagenet1k")
    return load_folder(_find_folder(name, root=root, split=split), name=name, labeled=name not in UNLABELED)


def load_folder(folder: Path, *, name: str, labeled: bool) -> ImageFolder:
    """Index a folder of images. Classes are the folders directly below it, empty ones too, in alphabetical order.

    The fingerprint covers every file's path and size, not its bytes: those of a large dataset take hours to read.
    """
    class_names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir())) if labeled else ()
    numbers = {class_name: number for number, class_name in enumerate(class_names)}
    paths, labels = [], []
    digest = hashlib.sha256()
    for path, size in _list_images(folder):
        top, separator, _ = path.partition("/")
        if labeled and not separator:
            raise DataError(f"{folder / path}: an image outside a class folder; {_layout(name)}")
        paths.append(os.fsencode(path))
        labels.append(numbers[top] if labeled else 0)
        digest.update(os.fsencode(f"{path}\0{size}\n"))
    if not paths:
        raise DataError(f"{folder}: no images in this folder; {_layout(name)}")
    return ImageFolder(name, str(folder), np.array(paths), np.array(labels), class_names, digest.hexdigest()[:16])


def read_image(path: str) -> Image.Image:
    """The image file at `path` as RGB. Raises `UnreadableImageError`."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    # What Pillow's decoders raise on a broken file (Image.open's documentation, PNG and TIFF plugins).
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(f"{path}: {error}") from error


def _find_folder(name: str, *, root: str, split: Split) -> Path:
    """The folder that holds a split."""
    if not root:
        raise DataError(f"no data root is given for {name}; {_layout(name)}")
    if not Path(root).is_dir():
        raise DataError(f"{root}: the data root of {name} does not exist; {_layout(name)}")
    for below in FOLDERS[name][split]:
        if (folder := Path(root) / below).is_dir():
            return folder
    raise DataError(f"{Path(root) / FOLDERS[name][split][0]}: this folder of {name} does not exist; {_layout(name)}")


def _layout(name: str) -> str:
    """What belongs in a dataset's root, for an error message."""
    if name == "imagenet1k":
        return "the root must hold train/<class>/<image> and val/<class>/<image>"
    if name in UNLABELED:
        return "the root must hold image files, in folders of any depth (tar shards are not supported yet: unpack them)"
    return "the root must hold <class>/<image> or train/<class>/<image> (tar files are not supported yet: unpack them)"


def _list_images(folder: Path) -> Iterator[tuple[str, int]]:
    """Every image below a folder as (relative path with slashes, bytes), in an order that no file system decides."""
    below = [""]
    while below:
        prefix = below.pop()
        try:
            with os.scandir(folder / prefix) as entries:
                children = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{folder / prefix}: this folder cannot be read: {error.strerror}") from error
        for entry in children:
            if entry.is_file() and entry.name.lower().endswith(SUFFIXES):
                yield prefix + entry.name, entry.stat().st_size
        below += [f"{prefix}{entry.name}/" for entry in reversed(children) if entry.is_dir()]


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
