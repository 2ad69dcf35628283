"""One source of images, an archive or a folder, in; its part of the index out."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from franca.data.archives import BLOCK, scan_archive
from franca.data.errors import DataError, read_or_refuse
from franca.data.images import SUFFIXES
from franca.data.index import NO_NAMES, Bytes, Entries, Unit
from franca.data.layout import LABELS, UNLABELED, Layout, Source, describe_layout

ENTRY_MAX = (1 << 32) - 1
Scanned = tuple[Unit, Entries, Bytes]


@read_or_refuse()
def scan_source(source: Source, *, layout: Layout, deep: bool = False) -> Scanned:
    """The images of a source: its line in the index, their entries and, of files, their names.

    A file's entry holds where its name begins in the names of this source. With `deep` every byte is read, for the
    SHA-256 of the contents.
    """
    if layout.kind == "archives":
        return _scan_archive(source, layout=layout, deep=deep)
    return _scan_files(source, layout=layout, deep=deep)


def identify_source(source: Source, *, layout: Layout) -> tuple[int, int]:
    """Bytes and time of change in ns: while they stay, so does an archive. A folder has no size of its own."""
    try:
        found = (layout.path / source.name).stat()
    except OSError as error:
        raise DataError(f"{layout.path / source.name}: cannot be read: {error.strerror}") from error
    return (found.st_size if layout.kind == "archives" else 0), found.st_mtime_ns


def _scan_archive(source: Source, *, layout: Layout, deep: bool) -> Scanned:
    path = layout.path / source.name
    size, mtime_ns = identify_source(source, layout=layout)  # before it is read: what changes meanwhile shows later
    members, skipped, damage = scan_archive(str(path))
    if any(member.offset // BLOCK > ENTRY_MAX for member in members):
        raise DataError(f"{path}: an archive of more than two terabytes; split it")
    entries = np.array([(member.offset // BLOCK, member.size) for member in members], np.uint32).reshape(-1, 2)
    digest = hashlib.sha256("".join(f"{member.name}\0{member.size}\n" for member in members).encode())
    unit = Unit(
        name=source.name,
        class_name=source.class_name,
        size=size,
        mtime_ns=mtime_ns,
        images=len(members),
        names_bytes=0,
        digest=_finish(digest, source),
        skipped=tuple(f"{source.name}/{line}" for line in skipped),
        damage=damage,
        sha256=_hash_files([path]) if deep else "",
    )
    return unit, entries, NO_NAMES


def _scan_files(source: Source, *, layout: Layout, deep: bool) -> Scanned:
    folder = layout.path / source.name
    _, mtime_ns = identify_source(source, layout=layout)
    found, begins, names = [], [], bytearray()
    digest = hashlib.sha256()
    for path, size in _list_files(source, folder=folder):
        begins.append((len(names), min(size, ENTRY_MAX)))
        names += os.fsencode(path) + b"\0"
        found.append(folder / path)
        digest.update(os.fsencode(f"{path}\0{size}\n"))
    unit = Unit(
        name=source.name,
        class_name=source.class_name,
        size=0,
        mtime_ns=mtime_ns,
        images=len(begins),
        names_bytes=len(names),
        digest=_finish(digest, source),
        sha256=_hash_files(found) if deep else "",
    )
    return unit, np.array(begins, np.uint32).reshape(-1, 2), np.frombuffer(bytes(names), np.uint8)


def _list_files(source: Source, *, folder: Path) -> Iterator[tuple[str, int]]:
    """The image files of a source as (path below it with slashes, bytes), in an order that no file system decides."""
    for name in source.files:
        try:
            yield name, (folder / name).stat().st_size
        except OSError as error:
            raise DataError(f"{folder / name}: in {LABELS}, but not here: {error.strerror}") from error
    below = [] if source.files else [""]
    while below:
        prefix = below.pop()
        try:
            with os.scandir(folder / prefix) as entries:
                children = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{folder / prefix}: this folder cannot be read: {error.strerror}") from error
        for entry in children:
            if entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                yield prefix + entry.name, entry.stat().st_size
        if source.name:
            below += [f"{prefix}{entry.name}/" for entry in reversed(children) if entry.is_dir()]


def _finish(digest: "hashlib._Hash", source: Source) -> str:
    """The digest of a source's names and sizes together with what the source itself is called."""
    digest.update(os.fsencode(f"{source.name}\0{source.class_name}\n"))
    return digest.hexdigest()[:16]


def _hash_files(paths: list[Path]) -> str:
    """The SHA-256 of all bytes of some files, one after another."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


@read_or_refuse()
def refuse_loose_files(layout: Layout) -> None:
    """Raise `DataError` where image files lie outside the class folders."""
    if layout.dataset not in UNLABELED and not any(source.files for source in layout.sources):
        for path, _ in _list_files(Source(""), folder=layout.path):
            raise DataError(f"{layout.path / path}: an image outside a class folder; {describe_layout(layout.dataset)}")
