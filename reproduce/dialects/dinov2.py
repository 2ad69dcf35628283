"""DINOv2's text and JSON lines in, and those of its descendants Franca and DINOv3; records and problems out."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from reproduce.dialects.json_lines import counted_items
from reproduce.labels import numbered
from reproduce.problems import Problem
from reproduce.records import Item, Parsed, Record, collect, shared_name, shorten

# dinov2 logging/helpers.py: "{header}  [{i}/{n}]  eta: {eta}  {meters}  time: {}  data: {}", "  max mem: {}" on CUDA.
ITERATION = re.compile(r"Training {1,2}\[ *(\d{1,15})/(\d{1,15})\] {1,2}eta: ")
FIELD = re.compile(
    r"  ([A-Za-z_]\w*(?: \w+)*): (NUMBER)(?: \((NUMBER)\))?(?=  |\s*$)".replace(
        "NUMBER", r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|inf|nan)"
    )
)
TIMING = {"time": "iter_time", "data": "data_time", "max mem": "max_memory_mb"}  # the names that JSON lines use
STAMP = re.compile(r"[DIWEFC](\d{4})(\d\d)(\d\d) (\d\d:\d\d:\d\d) ")
HYDRA = re.compile(r"\[(\d{4})-(\d\d)-(\d\d) (\d\d:\d\d:\d\d),\d{3}\]\[")  # hydra.job_logging
ERROR = re.compile(
    r"(?:[EFC]\d{8} \d\d:\d\d:\d\d \d+ \S+ \S+:\d+\] |submitit ERROR \([^()]*\) - "
    r"|\[[^\[\]]+\]\[[^\[\]]+\]\[ERROR\] - )(.*)"
)
DIED = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\b.*")
LAUNCH = "Starting training from iteration"
NAN = ("NaN detected", "NaN loss detected")  # dinov2 train.py, dinov3 train.py


def parse_dinov2_text(lines: Iterable[str], *, path: str) -> Parsed:
    """Iteration lines of a text log; every other line is passed over, but for errors and tracebacks.

    Where a launcher put the lines of several ranks into one file, those of the rank that logs first are taken.
    """
    return collect(_text_items(lines, path), path=path)


def parse_json_lines(lines: Iterable[str], *, path: str) -> Parsed:
    """`training_metrics.json`: one object a line, every number of it a metric."""
    return collect(counted_items(lines, count="iteration", path=path), path=path)


def _text_items(lines: Iterable[str], path: str) -> Iterator[Item]:
    traceback_line, own_rank, others = None, None, 0
    launches: Counter[int | None] = Counter()
    for number, rank, line in numbered(lines):
        if LAUNCH in line:
            launches[rank] += 1
        matches = list(ITERATION.finditer(line)) if "Training" in line else []
        if matches and own_rank is None:
            own_rank = rank
        if matches and rank != own_rank:
            others += len(matches)
            continue
        for match, following in itertools.zip_longest(matches, matches[1:]):
            end = following.start() if following else len(line)
            yield from _iteration_items(line, match, end, number=number, launch=launches[rank], path=path)
        if matches:
            traceback_line = None
        elif line.startswith("Traceback (most recent call last)"):
            traceback_line = number
        elif traceback_line and DIED.match(line):
            yield Problem(path, traceback_line, f"the process died: {shorten(line)}")
            traceback_line = None
        elif error := ERROR.match(line):
            yield Problem(path, number, f"an error was logged: {shorten(error[1])}")
        elif any(sign in line for sign in NAN):
            yield Problem(path, number, "NaN detected, by the trainer")
    if others:
        yield Problem(path, None, f"{others:,} iteration lines of other ranks than {own_rank} are left out")


def _iteration_items(
    line: str, match: re.Match[str], end: int, *, number: int, launch: int, path: str
) -> Iterator[Item]:
    """The record of one iteration line, and a problem for each field that cannot be read."""
    rest = line[match.end() : end]
    values, averages = {}, {}
    found = FIELD.findall(rest)
    for name, value, average in found:
        name = shared_name(TIMING.get(name, name))
        values[name] = float(value)
        if average:
            averages[name] = float(average)
    if "data_time" not in values or values.keys() <= set(TIMING.values()):
        # `time` and `data` close every line: without them it was cut, and its last number may lack digits.
        yield Problem(path, number, f"torn iteration line: …{shorten(rest[-60:])}")
        return
    if len(found) < rest.rstrip().count("  "):
        readable = {field[0] for field in found}
        bad = [field for field in rest.split("  ")[1:] if field.partition(":")[0] not in readable and field.strip()]
        yield Problem(path, number, f"unreadable field: {shorten(', '.join(bad) or 'printed twice')}")
    stamp = STAMP.match(line) or HYDRA.match(line)
    time = f"{stamp[1]}-{stamp[2]}-{stamp[3]}T{stamp[4]}" if stamp else None
    yield Record(number, int(match[1]), int(match[2]), values, averages or None, time, launch)
