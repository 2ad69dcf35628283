"""A training log in, its records and its problems out, whatever the dialect and whatever is broken in it.

Two dialects, told apart by content: DINOv2's text lines (Franca's too) and DINOv2's JSON lines. Files are streamed; a
damaged line becomes a `Problem` with its number, never an exception.
"""

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from reproduce.errors import LogError
from reproduce.log_head import Head, parse_heads
from reproduce.problems import Problem, capped

LINE_BYTES = 1 << 20  # a longer line is no log line: its tail is skipped, so that rubbish cannot fill the memory

# dinov2 logging/helpers.py: "{header}  [{i}/{n}]  eta: {eta}  {meters}  time: {}  data: {}", "  max mem: {}" on CUDA.
ITERATION = re.compile(r"Training {1,2}\[ *(\d{1,15})/(\d{1,15})\] {1,2}eta: ")
FIELD = re.compile(
    r"  ([A-Za-z_]\w*(?: \w+)*): (NUMBER)(?: \((NUMBER)\))?(?=  |\s*$)".replace(
        "NUMBER", r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|inf|nan)"
    )
)
TIMING = {"time": "iter_time", "data": "data_time", "max mem": "max_memory_mb"}  # the names that JSON lines use
STAMP = re.compile(r"[DIWEFC](\d{4})(\d\d)(\d\d) (\d\d:\d\d:\d\d) ")
ERROR = re.compile(r"[EFC]\d{8} \d\d:\d\d:\d\d \d+ \S+ \S+:\d+\] (.*)")
DIED = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\b.*")
LAUNCH = "Starting training from iteration"
KNN_KEY = re.compile(r"\('full', (\d{1,9})\) Top 1")


@dataclass(frozen=True)
class Record:
    """One iteration line. `launch` counts the process starts that the log announced before this line.

    `values` holds what the line prints per metric; `averages` the means since process start that text logs add.
    """

    line: int
    iteration: int
    total: int | None
    values: Mapping[str, float]
    averages: Mapping[str, float] | None
    time: str | None
    launch: int


@dataclass(frozen=True)
class ParsedLog:
    """A log taken apart. `dialect` is a key of `DIALECTS`, or "unknown" with no records and one problem saying why."""

    path: Path
    dialect: str
    records: tuple[Record, ...]
    problems: tuple[Problem, ...]
    heads: tuple[Head, ...]


Parsed = tuple[tuple[Record, ...], tuple[Problem, ...]]


def parse_log(path: Path) -> ParsedLog:
    """Parse a log of either dialect. Raises `LogError` only where the file cannot be read."""
    dialect = find_dialect(read_lines(path))
    if dialect == "unknown":
        return ParsedLog(path, dialect, (), (Problem(str(path), None, _describe(path)),), ())
    records, problems = DIALECTS[dialect](read_lines(path), path=str(path))
    heads, doubts = parse_heads(read_lines(path), path=str(path)) if dialect == "dinov2-text" else ((), ())
    return ParsedLog(path, dialect, records, (*problems, *doubts), heads)


def find_dialect(lines: Iterable[str]) -> str:
    """The dialect of the first line that belongs to one, else "unknown"."""
    for line in lines:
        if STAMP.match(line) or ITERATION.search(line):
            return "dinov2-text"
        if line.startswith("{") and '"iteration"' in line:
            return "dinov2-json"
    return "unknown"


def parse_dinov2_text(lines: Iterable[str], *, path: str) -> Parsed:
    """Iteration lines of DINOv2's text log; every other line is passed over, but for errors and tracebacks."""
    return _collect(_text_items(lines, path))


def parse_json_lines(lines: Iterable[str], *, path: str) -> Parsed:
    """DINOv2's `training_metrics.json`: one object a line, every number of it a metric."""
    return _collect(_json_items(lines, path))


DIALECTS: dict[str, Callable[..., Parsed]] = {"dinov2-text": parse_dinov2_text, "dinov2-json": parse_json_lines}


def parse_knn(path: Path) -> tuple[dict[int, float], tuple[Problem, ...]]:
    """DINOv2's `results_eval_knn.json`: k → top-1 in percent. Evaluations that were run again repeat: the last wins."""
    accuracies: dict[int, float] = {}
    problems = []
    for number, line in enumerate(read_lines(path), 1):
        entry = _json_object(line) if line.strip() else {}
        if entry is None:
            problems.append(Problem(str(path), number, f"not a JSON object: {_shorten(line)}"))
            continue
        for key, value in entry.items():
            match = KNN_KEY.fullmatch(key)
            accuracy = _number(value)
            if match and (accuracy is None or not 0.0 <= accuracy <= 100.0):
                problems.append(Problem(str(path), number, f"{key}: {_shorten(str(value))} is not a percentage"))
            elif match and accuracy is not None:
                accuracies[int(match[1])] = accuracy
    return accuracies, capped(problems)


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a file without their ends, undecodable bytes replaced. Raises `LogError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            while piece := file.readline(LINE_BYTES):
                yield piece.decode("utf-8", errors="replace").rstrip("\r\n")
                while piece and not piece.endswith(b"\n") and len(piece) == LINE_BYTES:
                    piece = file.readline(LINE_BYTES)
    except OSError as error:
        raise LogError(f"cannot be read: {error.strerror or error}", path=path) from error


def _text_items(lines: Iterable[str], path: str) -> Iterator[Record | Problem]:
    launch, traceback_line = 0, None
    for number, line in enumerate(lines, 1):
        if LAUNCH in line:
            launch += 1
        matches = list(ITERATION.finditer(line)) if "Training" in line else []
        for match, following in itertools.zip_longest(matches, matches[1:]):
            end = following.start() if following else len(line)
            yield from _iteration_items(line, match, end, number=number, launch=launch, path=path)
        if matches:
            traceback_line = None
        elif line.startswith("Traceback (most recent call last)"):
            traceback_line = number
        elif traceback_line and DIED.match(line):
            yield Problem(path, traceback_line, f"the process died: {_shorten(line)}")
            traceback_line = None
        elif error := ERROR.match(line):
            yield Problem(path, number, f"an error was logged: {_shorten(error[1])}")
        elif "NaN detected" in line:
            yield Problem(path, number, "NaN detected, by the trainer")


def _iteration_items(
    line: str, match: re.Match[str], end: int, *, number: int, launch: int, path: str
) -> Iterator[Record | Problem]:
    """The record of one iteration line, and a problem for each field that cannot be read."""
    rest = line[match.end() : end]
    values, averages = {}, {}
    found = FIELD.findall(rest)
    for name, value, average in found:
        name = sys.intern(TIMING.get(name, name))
        values[name] = float(value)
        if average:
            averages[name] = float(average)
    if "data_time" not in values or values.keys() <= set(TIMING.values()):
        # `time` and `data` close every line: without them it was cut, and its last number may lack digits.
        yield Problem(path, number, f"torn iteration line: …{_shorten(rest[-60:])}")
        return
    if len(found) < rest.rstrip().count("  "):
        readable = {field[0] for field in found}
        bad = [field for field in rest.split("  ")[1:] if field.partition(":")[0] not in readable and field.strip()]
        yield Problem(path, number, f"unreadable field: {_shorten(', '.join(bad) or 'printed twice')}")
    stamp = STAMP.match(line)
    time = f"{stamp[1]}-{stamp[2]}-{stamp[3]}T{stamp[4]}" if stamp else None
    yield Record(number, int(match[1]), int(match[2]), values, averages or None, time, launch)


def _json_items(lines: Iterable[str], path: str) -> Iterator[Record | Problem]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        entry = _json_object(line)
        if entry is None:
            yield Problem(path, number, f"torn or corrupt line: {_shorten(line)}")
            # A process that was killed while it wrote leaves half a line, and the next one writes on behind it.
            entry = _json_object(line[max(line.rfind('{"iteration"'), 0) :])
            if entry is None:
                continue
        iteration = entry.pop("iteration", None)
        if not isinstance(iteration, int) or isinstance(iteration, bool) or not 0 <= iteration < 10**15:
            yield Problem(path, number, f"no iteration number: {_shorten(line)}")
            continue
        values = {sys.intern(key): _number(value) for key, value in entry.items()}
        bad = [key for key, value in values.items() if value is None]
        if bad:
            yield Problem(path, number, f"not a number: {_shorten(', '.join(bad))}")
        numbers = {key: value for key, value in values.items() if value is not None}
        yield Record(number, iteration, None, numbers, None, None, 0)


def _json_object(text: str) -> dict[str, object] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _collect(items: Iterable[Record | Problem]) -> Parsed:
    records: list[Record] = []

    def problems() -> Iterator[Problem]:
        for item in items:
            if isinstance(item, Record):
                records.append(item)
            else:
                yield item

    found = capped(problems())
    return tuple(records), found


def _describe(path: Path) -> str:
    """What a file of no known dialect looks like, and what would be read."""
    looks = "an empty file"
    with path.open("rb") as file:
        start = file.read(1 << 18)
    lines = start.decode("utf-8", errors="replace").split("\n")
    for looks_like, test in LOOKS.items():
        if start and test(start, lines):
            looks = looks_like
            break
    return (
        f"not a training log that can be read: it looks like {looks}. Read are DINOv2's and Franca's text lines "
        '("… Training  [  10/625000]  eta: …") and JSON lines ({"iteration": 10, "total_loss": …})'
    )


LOOKS: dict[str, Callable[[bytes, list[str]], bool]] = {
    "gzip data (unpack it first)": lambda start, lines: start.startswith(b"\x1f\x8b"),
    "a zip archive or a PyTorch checkpoint": lambda start, lines: start.startswith(b"PK\x03\x04"),
    "binary data": lambda start, lines: b"\x00" in start or start.count(b"\xff\xfd") > 0,
    "a git LFS pointer (fetch the file: git lfs pull)": lambda start, lines: start.startswith(
        b"version https://git-lfs"
    ),
    "a web page": lambda start, lines: start.lstrip()[:1] == b"<",
    "timm's text log": lambda start, lines: "Train: 0 [" in start.decode("utf-8", errors="replace"),
    "a k-NN result file": lambda start, lines: lines[0].startswith("{\"('full'"),
    "a linear-probe result file": lambda start, lines: lines[0].startswith("iter: "),
    "JSON without iterations": lambda start, lines: start.lstrip()[:1] in (b"{", b"["),
    "a table of comma-separated values": lambda start, lines: lines[0].count(",") > 1 and "." not in lines[0],
    "text of another kind": lambda start, lines: True,
}


def _shorten(text: str) -> str:
    printable = "".join(character if character.isprintable() else "�" for character in text[:100])
    return printable + ("…" if len(text) > 100 else "")
