"""How each data set lies on a disk, and how much of it was published: a name and a root in, what to index out."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from franca.data.errors import DataError, MissingDataError, read_or_refuse

Split = Literal["train", "test"]
Kind = Literal["archives", "files"]

# Where the images of a split lie under the data root; the first folder that exists is taken. "" is the root itself.
FOLDERS: dict[str, dict[Split, tuple[str, ...]]] = {
    "imagenet1k": {"train": ("train",), "test": ("val",)},
    "imagenet21k": {"train": ("train", "winter21_whole", "")},
    "laion600m": {"train": ("train", "")},
    "folder": {"train": ("",)},
}
ARCHIVED = ("imagenet21k", "laion600m")  # as tar archives, or unpacked
UNLABELED = ("laion600m", "folder")

# (images, classes) of a split: ILSVRC 2012; ImageNet's winter 2021 release; table 6 of Franca's paper.
PUBLISHED: dict[str, dict[Split, tuple[int, int]]] = {
    "imagenet1k": {"train": (1_281_167, 1_000), "test": (50_000, 1_000)},
    "imagenet21k": {"train": (13_153_500, 19_167)},
    "laion600m": {"train": (599_187_600, 0)},
}
LABELS = "labels.txt"


@dataclass(frozen=True)
class Source:
    """An archive, or a folder of image files and its subfolders; `files` where only these of the folder belong to it.

    `name` is its path below the layout's folder, empty for that folder itself without its subfolders.
    """

    name: str
    class_name: str = ""
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A split on the disk: `folder` is a path below the root. `class_names` holds empty classes too."""

    dataset: str
    root: str
    split: Split
    kind: Kind
    folder: str
    sources: tuple[Source, ...]
    class_names: tuple[str, ...]

    @property
    def path(self) -> Path:
        return Path(self.root) / self.folder


@read_or_refuse()
def find_layout(name: str, *, root: str, split: Split) -> Layout:
    """Look where the images of a split lie. Raises `DataError` naming what is missing and what belongs there."""
    folder = find_folder(name, root=root, split=split)
    path = Path(root) / folder
    if name in ARCHIVED and (archives := _list_archives(path, deep=name in UNLABELED)):
        names = tuple(Path(archive).stem for archive in archives) if name not in UNLABELED else ("",) * len(archives)
        sources = tuple(Source(archive, of) for archive, of in zip(archives, names, strict=True))
        return Layout(name, root, split, "archives", folder, sources, () if name in UNLABELED else names)
    folders = sorted(entry.name for entry in _scan(path) if entry.is_dir() and not entry.name.startswith("."))
    if name in UNLABELED:
        return Layout(name, root, split, "files", folder, (Source(""), *map(Source, folders)), ())
    if not folders and (path / LABELS).is_file():
        sources = _parse_image_labels(path / LABELS)
    else:
        sources = tuple(Source(below, below) for below in folders)
    classes = tuple(sorted({source.class_name for source in sources}))
    return Layout(name, root, split, "files", folder, sources, order_classes(root, classes))


@read_or_refuse()
def find_folder(name: str, *, root: str, split: Split) -> str:
    """The folder below the root that holds a split. Raises `DataError`."""
    if name not in FOLDERS:
        raise DataError(f"unknown dataset {name}; known: {', '.join(['digits', *FOLDERS])}")
    if split not in FOLDERS[name]:
        raise DataError(f"{name} has no {split} split, it is only trained on; evaluate on imagenet1k")
    if not root:
        raise DataError(f"no data root is given for {name}; {describe_layout(name)}")
    if Path(root).is_file():
        raise DataError(f"{root}: this is a file; name the folder that holds {name}")
    if not Path(root).is_dir():
        raise MissingDataError(f"{root}: the data root of {name} does not exist; {describe_layout(name)}")
    for below in FOLDERS[name][split]:
        if (Path(root) / below).is_dir():
            return below
    wanted = Path(root) / FOLDERS[name][split][0]
    raise MissingDataError(f"{wanted}: this folder of {name} does not exist; {describe_layout(name)}")


def describe_layout(name: str) -> str:
    """What belongs in a data set's root, for an error message."""
    return {
        "imagenet1k": "the root must hold train/<class>/<image> and val/<class>/<image>, or val/<image> and a "
        "val/labels.txt of lines `<image> <class>`",
        "imagenet21k": "the root must hold <class>.tar, or <class>/<image>, also below train/ or winter21_whole/",
        "laion600m": "the root must hold the tar shards of img2dataset's webdataset format, or image files",
        "folder": "the root must hold image files, in folders of any depth",
    }[name]


def order_classes(root: str, class_names: tuple[str, ...]) -> tuple[str, ...]:
    """Class names in the order of the root's `labels.txt`, if it has one: lines `<class>,<words>`, as DINOv2 keeps it.

    Raises `DataError` on a class that the file lacks.
    """
    path = Path(root) / LABELS
    if not path.is_file():
        return class_names
    listed = [line.partition(",")[0].strip() for line in path.read_text().splitlines() if line.strip()]
    unique = dict.fromkeys(listed)
    for class_name in class_names:
        if class_name not in unique:
            raise DataError(f"{path}: the class {class_name} is missing in this file; complete it or delete it")
    return tuple(unique)


def _parse_image_labels(path: Path) -> tuple[Source, ...]:
    """The images of a folder without class folders, by class: lines `<image> <class>` or `<image>,<class>`."""
    images: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        fields = line.replace(",", " ").split()
        if not fields:
            continue
        if len(fields) != 2 or "/" in fields[0]:
            raise DataError(f"{path}:{number}: not `<image> <class>`: {line!r}")
        images.setdefault(fields[1], []).append(fields[0])
    return tuple(Source("", of, tuple(sorted(names))) for of, names in sorted(images.items()))


def _list_archives(folder: Path, *, deep: bool) -> list[str]:
    """The tar archives in a folder, with `deep` also in those directly below it, by name."""
    found: list[str] = []
    for entry in _scan(folder):
        if entry.is_file() and entry.name.endswith(".tar"):
            found.append(entry.name)
        elif deep and entry.is_dir() and not entry.name.startswith("."):
            below = _scan(Path(entry.path))
            found += [f"{entry.name}/{item.name}" for item in below if item.is_file() and item.name.endswith(".tar")]
    return sorted(found)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"{folder}: this folder cannot be read: {error.strerror}") from error
