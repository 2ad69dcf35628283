"""Builds a stored index: a layout in, its manifest out. A kill at any moment loses the unit at work and no other.

What is known so far lies in `<split>.partial`: after each unit its entries and names are appended, then its line in
`units.jsonl`, which makes it count. The finished folder is named after its fingerprint, and only then does the manifest
name it, so that a reader sees the old index or the new one.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from franca.data.errors import DataError, MissingDataError
from franca.data.index import (
    FORMAT,
    Bytes,
    Entries,
    Unit,
    combine_digests,
    load_manifest,
    manifest_path,
    parse_unit,
    parse_units,
)
from franca.data.layout import PUBLISHED, Layout, describe_layout
from franca.data.scan import ENTRY_MAX, identify_source, refuse_loose_files, scan_source

HEADER = 128  # bytes of an .npy header of two dimensions, whatever the number of rows
ROW = 8  # bytes of an entry

Advance = Callable[[int, int], None]  # (units that are done, images in them)


def build_index(
    layout: Layout, *, threads: int, deep: bool = False, advance: Advance = lambda units, images: None
) -> dict[str, Any]:
    """Index a split, or what is missing or changed of it, and return its manifest.

    An archive whose size and time of change are those of the last time is not read again. Raises `DataError` where
    there is nothing to index, or another process is indexing.
    """
    refuse_loose_files(layout)
    manifest = manifest_path(layout.root, split=layout.split)
    with _locked(manifest.parent):
        if manifest.exists() and (other := load_manifest(manifest)["dataset"]) != layout.dataset:
            raise DataError(f"{manifest}: this root is indexed as {other}; give {layout.dataset} a root of its own")
        partial = manifest.with_suffix(".partial")
        known = _newest_index(manifest) if layout.kind == "archives" else None  # files change without a trace
        if known and not partial.exists():
            units = parse_units((known / "units.jsonl").read_text())
            if manifest.exists() and count_current(units, layout=layout, deep=deep) == len(layout.sources):
                return load_manifest(manifest)
            shutil.copytree(known, partial)
        units = resume_journal(partial, layout=layout, deep=deep)
        images = sum(unit.images for unit in units)
        advance(len(units), images)
        pool = ThreadPoolExecutor(threads)  # waiting for a file system is most of the work
        try:
            scan = functools.partial(scan_source, layout=layout, deep=deep)
            for unit, entries, names in pool.map(scan, layout.sources[len(units) :]):
                append_unit(partial, unit, entries=entries, names=names)
                units.append(unit)
                images += unit.images
                advance(len(units), images)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        if not images:
            raise MissingDataError(f"{layout.path}: no images in this folder; {describe_layout(layout.dataset)}")
        return _finish(partial, units=units, layout=layout, manifest=manifest)


def resume_journal(partial: Path, *, layout: Layout, deep: bool) -> list[Unit]:
    """The units of an unfinished index that still hold; what follows them is cut off. Makes what is not there yet."""
    partial.mkdir(parents=True, exist_ok=True)
    for name in ("units.jsonl", "entries.npy", "names.bin"):
        (partial / name).touch()
    sizes = {name: (partial / name).stat().st_size for name in ("entries.npy", "names.bin")}
    units: list[Unit] = []
    ends = [(0, HEADER, 0)]  # of the three files, after each unit
    with (partial / "units.jsonl").open("rb") as file:
        for line in file:
            try:
                unit = parse_unit(line.decode())
            except (ValueError, TypeError):
                break  # a torn line
            lines, entries, names = ends[-1]
            end = lines + len(line), entries + unit.images * ROW, names + unit.names_bytes
            if not line.endswith(b"\n") or end[1] > sizes["entries.npy"] or end[2] > sizes["names.bin"]:
                break
            units.append(unit)
            ends.append(end)
    kept = count_current(units, layout=layout, deep=deep)
    for name, length in zip(("units.jsonl", "entries.npy", "names.bin"), ends[kept], strict=True):
        os.truncate(partial / name, length)
    return units[:kept]


def count_current(units: Sequence[Unit], *, layout: Layout, deep: bool) -> int:
    """How many units, from the first on, are the layout's sources as they are now."""
    for number, (unit, source) in enumerate(zip(units, layout.sources, strict=False)):
        if (unit.name, unit.class_name) != (source.name, source.class_name) or (deep and not unit.sha256):
            return number
        if (unit.size, unit.mtime_ns) != identify_source(source, layout=layout):
            return number
    return min(len(units), len(layout.sources))


def append_unit(partial: Path, unit: Unit, *, entries: Entries, names: Bytes) -> None:
    """Add a unit's part to the journal, its line last."""
    begin = (partial / "names.bin").stat().st_size
    if begin + len(names) > ENTRY_MAX:
        raise DataError(f"{unit.name}: the names of all files are four gigabytes long; pack them into tar archives")
    if len(names):
        entries = entries + np.array([begin, 0], np.uint32)
    for name, content in (
        ("entries.npy", entries.tobytes()),
        ("names.bin", names.tobytes()),
        ("units.jsonl", json.dumps(dataclasses.asdict(unit)).encode() + b"\n"),
    ):
        with (partial / name).open("ab") as file:
            file.write(content)


def compare_counts(layout: Layout, *, images: int, classes: int) -> dict[str, int]:
    """What was published of a split and how much more of it is here; empty where nothing was published."""
    published = PUBLISHED.get(layout.dataset, {}).get(layout.split)
    if published is None:
        return {}
    return {
        "images": published[0],
        "classes": published[1],
        "images_more": images - published[0],
        "classes_more": classes - published[1],
    }


def _finish(partial: Path, *, units: list[Unit], layout: Layout, manifest: Path) -> dict[str, Any]:
    """Turn the journal into an index and let the manifest name it."""
    images = sum(unit.images for unit in units)
    _write_header(partial / "entries.npy", rows=images)
    skipped = [line for unit in units for line in unit.skipped]
    damaged = [f"{unit.name}: {unit.damage}" for unit in units if unit.damage]
    (partial / "skipped.txt").write_text("".join(f"{line}\n" for line in [*damaged, *skipped]))
    for path in partial.iterdir():
        with path.open("rb") as written:
            os.fsync(written.fileno())
    fingerprint = combine_digests(unit.digest for unit in units)
    folder = manifest.with_name(f"{layout.split}-{fingerprint}")
    classes = len({unit.class_name for unit in units if unit.images and unit.class_name})
    content = {
        "format": FORMAT,
        "dataset": layout.dataset,
        "split": layout.split,
        "kind": layout.kind,
        "folder": layout.folder,
        "index": folder.name,
        "images": images,
        "classes": classes,
        "units": len(units),
        "bytes": sum(unit.size for unit in units),
        "fingerprint": fingerprint,
        "sha256": combine_digests(unit.sha256 for unit in units) if all(unit.sha256 for unit in units) else "",
        "skipped": len(skipped),
        "damaged": len(damaged),
        "published": compare_counts(layout, images=images, classes=classes),
    }
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    whole = manifest.with_suffix(".json.new")
    whole.write_text(json.dumps(content, indent=1) + "\n")
    whole.replace(manifest)
    for other in manifest.parent.glob(f"{layout.split}-*"):
        if other != folder:
            shutil.rmtree(other)
    return content


def _write_header(path: Path, *, rows: int) -> None:
    """Say what the entries that were appended are."""
    with path.open("r+b") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<u4", "fortran_order": False, "shape": (rows, 2)})
        assert file.tell() == HEADER


def _newest_index(manifest: Path) -> Path | None:
    """The finished index of a split; the newest one where a kill came before its manifest."""
    if manifest.exists() and (folder := manifest.parent / load_manifest(manifest)["index"]).is_dir():
        return folder
    found = manifest.parent.glob(f"{manifest.stem}-*")
    return max(found, key=lambda folder: folder.stat().st_mtime_ns, default=None)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Be the only one that builds an index below this folder."""
    try:
        folder.mkdir(exist_ok=True)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise DataError(
            f"{folder}: the index cannot be written here: {error.strerror}; where the data must stay read-only, make "
            f"a folder of links to them and give that as the root"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another process is indexing these data; wait for it") from None
        yield
