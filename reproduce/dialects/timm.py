"""timm's text log and its `summary.csv` in, records and problems out. Columns keep timm's names, but for times."""

import csv
import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from reproduce.labels import numbered
from reproduce.problems import Problem
from reproduce.records import Item, Parsed, Record, collect, shared_name, shorten

# timm train.py: "Train: {epoch} [{batch:>4d}/{batches} ({percent:>3.0f}%)]  Loss: {} ({})  Time: …"
TRAIN = re.compile(r"Train: (\d{1,9}) \[ *(\d{1,12})/(\d{1,12}) \( *\d{1,3}%\)\]")
# "{Test}: [{batch:>4d}/{last}]  Time: {} ({})  Loss: …"; "Test (EMA)" of the averaged weights.
TEST = re.compile(r"(Test(?: \(EMA\))?): \[ *(\d{1,12})/(\d{1,12})\]")
NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|inf|nan)"
FIELD = re.compile(rf"  ([A-Za-z][\w@]{{0,40}}): {{0,20}}({NUMBER})s?(?: \( *({NUMBER})\))?(?=  |,|\s*$)")
RATE = re.compile(rf"Time: *{NUMBER}s, *({NUMBER})/s")
EPOCHS = re.compile(r"Scheduled epochs: (\d{1,9})")
TIMING = {"Time": "iter_time", "Data": "data_time"}
LIST = re.compile(r"\[(.{0,2000})\]")


def parse_timm_text(lines: Iterable[str], *, path: str) -> Parsed:
    """Training lines as records, at iteration epoch · batches + batch; an evaluation joins the line before it.

    Its values are named `Test Loss`, `Test Acc@1`, … and are the means over all of its images.
    """
    return collect(join_evaluations(_text_items(lines, path), path=path), path=path)


def parse_summary(lines: Iterable[str], *, path: str) -> Parsed:
    """A record an epoch, in whatever order the columns are; a header that comes again begins another launch."""
    return collect(_summary_items(lines, path), path=path)


def join_evaluations(items: Iterable[Item], *, path: str) -> Iterator[Item]:
    """Each training record together with the evaluations that follow it, which are records of iteration -1."""
    held: Record | None = None
    for item in items:
        if isinstance(item, Problem):
            yield item
        elif item.iteration >= 0:
            if held is not None:
                yield held
            held = item
        elif held is None:
            yield Problem(path, item.line, "an evaluation before any training line")
        else:
            held = dataclasses.replace(held, values={**held.values, **item.values})
    if held is not None:
        yield held


def _text_items(lines: Iterable[str], path: str) -> Iterator[Item]:
    """Training lines, and evaluations as records of iteration -1."""
    epochs, own_rank = None, None
    launches: Counter[int | None] = Counter()
    for number, rank, line in numbered(lines):
        if match := EPOCHS.search(line):
            epochs = int(match[1])
            launches[rank] += 1
        trains = list(TRAIN.finditer(line)) if "Train: " in line else []
        if trains and own_rank is None:
            own_rank = rank
        if rank != own_rank and own_rank is not None:
            continue
        launch = launches[rank]
        for train, following in itertools.zip_longest(trains, trains[1:]):
            rest = line[train.end() : following.start() if following else len(line)]
            yield _train_item(train, rest, number=number, launch=launch, epochs=epochs, path=path)
        test = TEST.search(line) if not trains and "Test" in line else None
        if test and test[2] == test[3]:
            _, averages = _fields(line[test.end() :])
            values = {shared_name(f"{test[1]} {key}"): averages[key] for key in averages if key not in TIMING.values()}
            if values:
                yield Record(number, -1, None, values, None, None, launch)
            else:
                yield Problem(path, number, f"torn evaluation line: {shorten(line)}")


def _train_item(train: re.Match[str], rest: str, *, number: int, launch: int, epochs: int | None, path: str) -> Item:
    epoch, batch, batches = (int(group) for group in train.groups())
    values, _ = _fields(rest)
    if "Loss" not in values or ("iter_time" in values and "data_time" not in values):
        return Problem(path, number, f"torn training line: …{shorten(rest[-60:])}")
    if rate := RATE.search(rest):
        values["images_per_second"] = float(rate[1])
    total = epochs * batches if epochs and epoch < epochs else None
    return Record(number, epoch * batches + batch, total, values, None, None, launch)


def _fields(rest: str) -> tuple[dict[str, float], dict[str, float]]:
    """The values that a line prints, and the means in brackets."""
    values, averages = {}, {}
    for name, value, average in FIELD.findall(rest):
        name = shared_name(TIMING.get(name, name))
        values[name] = float(value)
        if average:
            averages[name] = float(average)
    return values, averages


def _summary_items(lines: Iterable[str], path: str) -> Iterator[Item]:
    names: list[str] | None = None
    launch = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        cells = _cells(line)
        if cells and cells[0] == "epoch":
            names, launch = [shared_name(cell) for cell in cells], launch + 1
            continue
        if names is None or cells is None or len(cells) != len(names) or not re.fullmatch(r"\d{1,15}", cells[0]):
            yield Problem(path, number, f"no row of the table: {shorten(line)}")
            continue
        found = {name: _cell_number(cell) for name, cell in zip(names[1:], cells[1:], strict=True)}
        bad = [name for name, value in found.items() if value is None]
        if bad:
            yield Problem(path, number, f"not a number: {shorten(', '.join(bad))}")
        values = {name: value for name, value in found.items() if value is not None}
        yield Record(number, int(cells[0]), None, values, None, None, launch)


def _cells(line: str) -> list[str] | None:
    """The cells of one line of a table; None where it is none."""
    try:
        return next(csv.reader([line], strict=True), None)
    except csv.Error:
        return None


def _cell_number(cell: str) -> float | None:
    """A number, or the first of a list: timm writes the learning rates of all groups as one."""
    match = LIST.fullmatch(cell.strip())
    text = match[1].partition(",")[0] if match else cell
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None
