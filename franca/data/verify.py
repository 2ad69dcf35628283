"""Holds an index against the files that it was made of: a data set's name and root in, what differs out."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from franca.data.datasets import Dataset, ImageArchives, load_dataset
from franca.data.errors import DataError, UnreadableImageError
from franca.data.index import Unit, load_manifest, manifest_path, parse_units
from franca.data.layout import Layout, Split, find_layout
from franca.data.prefetch import prefetch
from franca.data.scan import identify_source, scan_source

CHUNK = 256  # images that a worker decodes at a time


@dataclass(frozen=True)
class Verification:
    """A line each: what was damaged when it was indexed, what differs since, and images that cannot be decoded."""

    manifest: dict[str, object]
    damaged: tuple[str, ...]
    differences: tuple[str, ...]
    unreadable: tuple[str, ...]


def verify_index(
    name: str,
    *,
    root: str,
    split: Split,
    workers: int = 0,
    deep: bool = False,
    advance: Callable[[int, int], None] = lambda images, of: None,
) -> Verification:
    """Compare names, sizes, times of change and the places of each archive's first and last image; `deep` decodes all.

    Raises `DataError` where there is no index.
    """
    path = manifest_path(root, split=split)
    if not path.exists():
        raise DataError(f"{path}: no such index; make it with `franca data prepare {name} --root {root}`")
    dataset = load_dataset(name, root=root, split=split)
    manifest = load_manifest(path)
    units = parse_units((path.parent / manifest["index"] / "units.jsonl").read_text())
    layout = find_layout(name, root=root, split=split)
    differences = tuple(_compare_units(units, dataset, layout=layout))
    damaged = list_damages(units, layout=layout)
    unreadable: dict[int, str] = {}
    if deep:
        chunks = [range(first, min(first + CHUNK, len(dataset))) for first in range(0, len(dataset), CHUNK)]
        found = prefetch(functools.partial(_list_unreadable, dataset), chunks, workers=workers)
        for chunk, lines in zip(chunks, found, strict=True):
            unreadable |= lines
            advance(chunk.stop, len(dataset))
        damaged += _list_lost_units(units, unreadable, layout=layout)
    return Verification(manifest, tuple(damaged), differences, tuple(unreadable.values()))


def list_damages(units: Sequence[Unit], *, layout: Layout) -> list[str]:
    """A line for each archive that is not whole, and for each archive or class that holds no image."""
    lines = []
    for unit in units:
        place = layout.path / unit.name
        if unit.damage:
            lines.append(f"{place}: {unit.damage}; {unit.images:,} images come before that")
        elif not unit.images and (unit.class_name or layout.kind == "archives"):
            lines.append(f"{place}: no image in it")
    return lines


def _list_unreadable(dataset: Dataset, rows: range) -> dict[int, str]:
    """A line for each of these images that cannot be decoded, by its row."""
    lines = {}
    for row in rows:
        try:
            dataset.read(row)
        except UnreadableImageError as error:
            lines[row] = str(error)
    return lines


def _list_lost_units(units: Sequence[Unit], unreadable: Mapping[int, str], *, layout: Layout) -> Iterator[str]:
    """A line for each archive or folder of which no image can be decoded."""
    first = 0
    for unit in units:
        rows = range(first, first + unit.images)
        if rows and all(row in unreadable for row in rows):
            yield f"{layout.path / unit.name}: none of its {unit.images:,} images can be decoded"
        first = rows.stop


def _compare_units(units: Sequence[Unit], dataset: Dataset, *, layout: Layout) -> Iterator[str]:
    """A line for each archive or folder that is not the indexed one any more."""
    known = {(unit.name, unit.class_name): number for number, unit in enumerate(units)}
    for source in layout.sources:
        place = layout.path / source.name
        number = known.pop((source.name, source.class_name), None)
        if number is None:
            yield f"{place}: not in the index"
            continue
        unit = units[number]
        if isinstance(dataset, ImageArchives):
            size, mtime_ns = identify_source(source, layout=layout)
            if size != unit.size:
                yield f"{place}: {size:,} bytes, {unit.size:,} when it was indexed"
            elif mtime_ns != unit.mtime_ns:
                yield f"{place}: changed since it was indexed"
            else:
                yield from _check_places(dataset, number)
        else:
            now, _, _ = scan_source(source, layout=layout)
            if now.digest != unit.digest:
                yield f"{place}: other names or sizes than were indexed ({now.images:,} images, {unit.images:,} then)"
    yield from (f"{layout.path / name}: in the index, but not here" for name, _ in known)


def _check_places(dataset: ImageArchives, number: int) -> Iterator[str]:
    """Whether the first and last image of an archive begin where the index says."""
    begin, end = dataset.index.starts[number : number + 2].tolist()
    for row in sorted({begin, end - 1} if end > begin else ()):
        try:
            dataset.read_bytes(row)
        except UnreadableImageError as error:
            yield str(error)
