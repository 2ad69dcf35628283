"""What DINO, iBOT, MAE and DeiT print in, records and problems out: lines of DETR's MetricLogger, epoch by epoch."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from reproduce.dialects.dinov2 import FIELD, TIMING
from reproduce.dialects.timm import join_evaluations
from reproduce.labels import numbered
from reproduce.problems import Problem
from reproduce.records import Item, Parsed, Record, collect, shared_name, shorten

# dino utils.py: "{header}  [{i}/{n}]  eta: {eta}  {meters}  time: {}  data: {}", "  max mem: {}" on CUDA; its header is
# "Epoch: [{epoch}/{epochs}]", that of mae engine_pretrain.py "Epoch: [{epoch}]".
EPOCH = re.compile(r"Epoch: \[(\d{1,9})(?:/(\d{1,9}))?\] {1,2}\[ *(\d{1,12})/(\d{1,12})\] {1,2}eta: ")
LAUNCH = re.compile(r"Starting \w{1,20} training|Start training for (\d{1,9}) epochs")
# deit and mae engine_finetune.py, after each evaluation
ACCURACY = re.compile(r"\* Acc@1 (\d{1,3}\.\d{1,9}) Acc@5 (\d{1,3}\.\d{1,9})(?: loss (\d{1,9}\.\d{1,9}))?\s*$")
EVALUATED = ("Test Acc@1", "Test Acc@5", "Test loss")


def parse_metric_logger(lines: Iterable[str], *, path: str) -> Parsed:
    """Training lines as records, at iteration epoch · batches + batch; an evaluation joins the line before it.

    The means in brackets begin anew with every epoch, so they are no means since process start and are left out.
    """
    return collect(join_evaluations(_items(lines, path), path=path), path=path)


def _items(lines: Iterable[str], path: str) -> Iterator[Item]:
    """Training lines, and evaluations as records of iteration -1, of the rank that logs first."""
    epochs, own_rank = None, None
    launches: Counter[int | None] = Counter()
    for number, rank, line in numbered(lines):
        if found := LAUNCH.search(line):
            launches[rank] += 1
            epochs = int(found[1]) if found[1] else epochs
        matches = list(EPOCH.finditer(line)) if "Epoch: [" in line else []
        if matches and own_rank is None:
            own_rank = rank
        if rank != own_rank:
            continue
        for match, following in itertools.zip_longest(matches, matches[1:]):
            rest = line[match.end() : following.start() if following else len(line)]
            yield from _line_items(match, rest, number=number, launch=launches[rank], epochs=epochs, path=path)
        if evaluated := ACCURACY.search(line):
            values = {name: float(text) for name, text in zip(EVALUATED, evaluated.groups(), strict=True) if text}
            yield Record(number, -1, None, values, None, None, launches[rank])


def _line_items(
    match: re.Match[str], rest: str, *, number: int, launch: int, epochs: int | None, path: str
) -> Iterator[Item]:
    """The record of one training line, and a problem for what of it cannot be read."""
    found = FIELD.findall(rest)
    values = {shared_name(TIMING.get(name, name)): float(value) for name, value, _ in found}
    if "data_time" not in values or values.keys() <= set(TIMING.values()):
        yield Problem(path, number, f"torn training line: …{shorten(rest[-60:])}")
        return
    if len(found) < rest.rstrip().count("  "):
        yield Problem(path, number, f"unreadable field: {shorten(rest)}")
    epoch, batch, batches = int(match[1]), int(match[3]), int(match[4])
    planned = int(match[2]) if match[2] else epochs
    total = planned * batches if planned and epoch < planned else None
    yield Record(number, epoch * batches + batch, total, values, None, None, launch)
