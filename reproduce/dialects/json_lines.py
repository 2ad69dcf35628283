"""Lines of JSON in, the numbers of each out; and DINO's and MAE's `log.txt`, one object an epoch."""

import json
from collections.abc import Iterable, Iterator, Mapping

from reproduce.problems import Problem
from reproduce.records import Item, Parsed, Record, collect, shared_name, shorten


def parse_epoch_lines(lines: Iterable[str], *, path: str) -> Parsed:
    """DINO's, MAE's and DeiT's `log.txt`: `{"train_loss": …, "train_lr": …, "epoch": 0}`; its unit is the epoch."""
    return collect(counted_items(lines, count="epoch", path=path), path=path)


def json_object(text: str) -> dict[str, object] | None:
    """The object that a text is in JSON, or None."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def finite_or_not(value: object) -> float | None:
    """A number, infinities and NaN included; None of all else, truth values and what no float can hold too."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def numbers_of(entry: Mapping[str, object]) -> tuple[dict[str, float], list[str]]:
    """The numbers of an object by their keys, and the keys of what is none."""
    values = {shared_name(key): finite_or_not(value) for key, value in entry.items()}
    bad = [key for key, value in values.items() if value is None]
    return {key: value for key, value in values.items() if value is not None}, bad


def counted_items(lines: Iterable[str], *, count: str, path: str) -> Iterator[Item]:
    """A record for each object, at the number that it has under `count`; all its other numbers are metrics."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        entry = json_object(line)
        if entry is None:
            yield Problem(path, number, f"torn or corrupt line: {shorten(line)}")
            # A process that was killed while it wrote leaves half a line, and the next one writes on behind it.
            entry = json_object(line[max(line.rfind('{"'), 0) :])
            if entry is None:
                continue
        place = entry.pop(count, None)
        if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < 10**15:
            yield Problem(path, number, f"no {count} number: {shorten(line)}")
            continue
        values, bad = numbers_of(entry)
        if bad:
            yield Problem(path, number, f"not a number: {shorten(', '.join(bad))}")
        yield Record(number, place, None, values, None, None, 0)
