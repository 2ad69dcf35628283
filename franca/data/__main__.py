"""`franca data prepare|index|verify NAME --root FOLDER`: a published data set on a disk in, its index and manifest out.

`index` finds every image; `prepare` also holds the counts against the published ones and says how data that are not
there are fetched; `verify` holds an index against the files. Exit codes: 0 as published, or as indexed; 1 not so, or
something is damaged, all of which is printed; 2 a mistake in the command or a folder that will not do, said in one
line; 130 stopped by Ctrl-C, to be started again.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from franca.data.errors import DataError, MissingDataError
from franca.data.index import manifest_path, parse_units
from franca.data.journal import build_index
from franca.data.layout import FOLDERS, Split, find_layout
from franca.data.sources import describe_source
from franca.data.verify import list_damages, verify_index

SHOWN = 20  # lines of each kind; --json has all
FINDINGS = ("damaged", "differences", "unreadable")  # any of them makes exit code 1


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; returns the exit code."""
    options = _parse(arguments)
    splits: tuple[Split, ...] = (options.split,) if options.split else tuple(FOLDERS[options.name])
    try:
        found = [COMMANDS[options.command](options, split) for split in splits]
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        if options.command == "prepare" and isinstance(error, MissingDataError):
            print(describe_source(options.name, root=options.root), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one was", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for result in found:
            print(render_result(result))
    return int(any(result[what] for result in found for what in FINDINGS))


def render_result(result: dict[str, Any]) -> str:
    """What was found of a split, to read."""
    manifest = result["manifest"]
    lines = [
        f"{manifest['dataset']} {manifest['split']}: {manifest['images']:,} images, {manifest['classes']:,} classes, "
        f"{manifest['units']:,} {'archives' if manifest['kind'] == 'archives' else 'folders'}, "
        f"fingerprint {manifest['fingerprint']}"
    ]
    if manifest["skipped"]:
        lines.append(f"  {manifest['skipped']:,} members are no images to train on: {result['index']}/skipped.txt")
    lines += [f"  {line}" for line in result["notes"]]
    for what in FINDINGS:
        lines += [f"  {what.removesuffix('s'):<10}  {line}" for line in result[what][:SHOWN]]
        if len(result[what]) > SHOWN:
            lines.append(f"  {'':<10}  and {len(result[what]) - SHOWN:,} more")
    counts = ", ".join(f"{len(result[what]):,} {what}" for what in FINDINGS if result[what])
    return "\n".join([*lines, f"  {counts}"] if counts else lines)


def compare_published(manifest: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(notes, differences) between what is here and what was published. Links die, so LAION's count is only noted."""
    published = manifest["published"]
    notes, differences = [], []
    for what in ("images", "classes") if published else ():
        here, of = manifest[what], published[what]
        if here != of and manifest["dataset"] == "laion600m":
            notes.append(f"{here:,} {what} of {of:,} that were published ({here / of:.1%})")
        elif here != of:
            differences.append(f"{here:,} {what}, {of:,} were published: {abs(here - of):,} {_sign(here - of)}")
        else:
            notes.append(f"{here:,} {what}, as published")
    return notes, differences


def _index(options: argparse.Namespace, split: Split) -> dict[str, Any]:
    """Build an index, or find that it is up to date."""
    layout = find_layout(options.name, root=options.root, split=split)
    with _progress(f"{options.name} {split}", total=len(layout.sources)) as advance:
        manifest = build_index(layout, threads=options.threads, deep=options.deep, advance=advance)
    folder = manifest_path(options.root, split=split).parent / manifest["index"]
    damaged = list_damages(parse_units((folder / "units.jsonl").read_text()), layout=layout)
    return {
        "manifest": manifest,
        "index": str(folder),
        "notes": [],
        "damaged": damaged,
        "differences": [],
        "unreadable": [],
    }


def _prepare(options: argparse.Namespace, split: Split) -> dict[str, Any]:
    """Build an index and hold its counts against the published ones."""
    result = _index(options, split)
    notes, differences = compare_published(result["manifest"])
    return {**result, "notes": notes, "differences": differences}


def _verify(options: argparse.Namespace, split: Split) -> dict[str, Any]:
    """Hold an index against the files."""
    with _progress(f"{options.name} {split}", total=None) as advance:
        found = verify_index(
            options.name, root=options.root, split=split, workers=options.threads, deep=options.deep, advance=advance
        )
    folder = manifest_path(options.root, split=split).parent / str(found.manifest["index"])
    return {"index": str(folder), "notes": [], **dataclasses.asdict(found)}


COMMANDS = {"prepare": _prepare, "index": _index, "verify": _verify}


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="franca data", description="index and check the images of a published row")
    parser.add_argument("command", choices=COMMANDS, help="what to do")
    parser.add_argument("name", choices=FOLDERS, metavar="NAME", help=f"data set: {', '.join(FOLDERS)}")
    parser.add_argument("--root", required=True, help="folder that holds it, the site's data root")
    parser.add_argument("--split", choices=("train", "test"), help="one of its splits (default: all)")
    parser.add_argument("--deep", action="store_true", help="read every byte; with verify, decode every image")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, with all lines")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--threads", type=int, default=cores, help="archives read, or workers, at once (default: cores)"
    )
    options = parser.parse_args(arguments)
    options.root = options.root and str(Path(options.root))  # without a slash at its end, which messages add
    if options.split and options.split not in FOLDERS[options.name]:
        parser.error(f"{options.name} has no {options.split} split")
    if options.threads < 1:
        parser.error(f"--threads: {options.threads} is not at least 1")
    return options


@contextmanager
def _progress(title: str, *, total: int | None) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; the function that moves it takes (done, images found) or (done, of all)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    columns = (*columns, TimeRemainingColumn(), TextColumn("{task.fields[said]}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total, said="")

        def advance(done: int, images: int) -> None:
            if total is None:
                progress.update(task, completed=done, total=images)
            else:
                progress.update(task, completed=done, said=f"{images:,} images")

        yield advance


def _sign(more: int) -> str:
    return "too many" if more > 0 else "missing"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
