"""DINOv2's `results_eval_knn.json` and `results_eval_linear.json` in, records and problems out.

Neither is one JSON value. The first has one key a line, and the keys again for each evaluation that was run again; the
second a line `iter: 1249` before each object.
"""

import re
from collections.abc import Iterable, Iterator

from reproduce.dialects.json_lines import finite_or_not, json_object
from reproduce.problems import Problem
from reproduce.records import Item, Parsed, Record, collect, shared_name, shorten

KNN_KEY = re.compile(r"\('full', (\d{1,9})\) Top 1")
ITERATION = re.compile(r"iter: (\d{1,15})\s*")


def parse_knn_lines(lines: Iterable[str], *, path: str) -> Parsed:
    """A record an evaluation, counted from 0, with top-1 in percent under the keys of the file."""
    return collect(_knn_items(lines, path), path=path)


def parse_linear_lines(lines: Iterable[str], *, path: str) -> Parsed:
    """A record an iteration of the probe's training, with the `accuracy` of its best classifier, between 0 and 1.

    Keys of other data sets, as DINOv2 adds for its shifted test sets, are values of the record too.
    """
    return collect(_linear_items(lines, path), path=path)


def knn_accuracies(line: str) -> tuple[dict[str, float], list[str]] | None:
    """The top-1 accuracies of one line by their keys, and what is wrong with others; None where it is no object."""
    entry = json_object(line)
    if entry is None:
        return None
    found, wrong = {}, []
    for key, value in entry.items():
        accuracy = finite_or_not(value)
        if not KNN_KEY.fullmatch(key):
            continue
        if accuracy is None or not 0.0 <= accuracy <= 100.0:
            wrong.append(f"{key}: {shorten(str(value))} is not a percentage")
        else:
            found[shared_name(key)] = accuracy
    return found, wrong


def _knn_items(lines: Iterable[str], path: str) -> Iterator[Item]:
    values: dict[str, float] = {}
    first, evaluation = 1, 0
    for number, line in enumerate(lines, 1):
        read = knn_accuracies(line) if line.strip() else ({}, [])
        if read is None:
            yield Problem(path, number, f"not a JSON object: {shorten(line)}")
            continue
        found, wrong = read
        yield from (Problem(path, number, message) for message in wrong)
        if values.keys() & found.keys():
            yield Record(first, evaluation, None, values, None, None, 0)
            values, evaluation = {}, evaluation + 1
        first = number if not values else first
        values = {**values, **found}
    if values:
        yield Record(first, evaluation, None, values, None, None, 0)


def _linear_items(lines: Iterable[str], path: str) -> Iterator[Item]:
    iteration: int | None = None
    launch, before = 0, -1
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if match := ITERATION.fullmatch(line):
            iteration = int(match[1])
            continue
        entry = json_object(line)
        if entry is None or iteration is None:
            wrong = "not a JSON object" if entry is None else "an object without an `iter:` line before it"
            yield Problem(path, number, f"{wrong}: {shorten(line)}")
            continue
        values = _linear_values(entry)
        if not values:
            yield Problem(path, number, f"no accuracy: {shorten(line)}")
            continue
        launch, before = launch + (iteration <= before), iteration
        yield Record(number, iteration, None, values, None, None, launch)
        iteration = None


def _linear_values(entry: dict[str, object]) -> dict[str, float]:
    """The accuracies of an object: of its best classifier, and of whatever else it names a number for."""
    values = {}
    for key, value in entry.items():
        accuracy = finite_or_not(value.get("accuracy") if isinstance(value, dict) else value)
        if accuracy is not None:
            values[shared_name("accuracy" if key == "best_classifier" else key)] = accuracy
    return values
