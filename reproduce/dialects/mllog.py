"""MLPerf's `:::MLLOG` lines in, records, the unit they count in, and the submission's hyperparameters out.

An event is a JSON object with `key`, `value`, `time_ms` and `metadata`; of those of metrics, the metadata says where in
the run they are. Events at one place are one record. https://github.com/mlcommons/logging
"""

import datetime
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from reproduce.dialects.json_lines import finite_or_not, json_object, numbers_of
from reproduce.labels import numbered
from reproduce.log_head import Head
from reproduce.problems import Problem, capped
from reproduce.records import Item, Parsed, Record, Unit, collect, shared_name, shorten

SIGN = ":::MLLOG "
PLACES: dict[str, Unit] = {  # the keys of metadata that say where a metric was taken, the finest first
    "samples_count": "sample",
    "sample_count": "sample",
    "step_num": "step",
    "step": "step",
    "iteration": "iteration",
    "epoch_num": "epoch",
    "epoch": "epoch",
}


def parse_mllog(lines: Iterable[str], *, path: str) -> Parsed:
    """Metrics as records at the place that their metadata gives, in whole epochs where that is an epoch."""
    return collect(_joined(_items(lines, path)), path=path)


def find_mllog_unit(lines: Iterable[str]) -> Unit:
    """What the records of a log count in: the place of its first metric."""
    for _, _, event in _events(lines):
        place = _place(event) if event is not None and _numbers(event) else None
        if place is not None:
            return PLACES[place]
    return "step"


def parse_hyperparameters(lines: Iterable[str], *, path: str) -> tuple[tuple[Head, ...], tuple[Problem, ...]]:
    """The events of a submission before it runs, key by key, as one head; a value that changes is a problem."""
    config: dict[str, Any] = {}
    problems = []
    first = None
    for number, _, event in _events(lines):
        if event is None:
            continue
        if event.get("key") == "run_start":
            break
        key, value = event.get("key"), event.get("value")
        if not isinstance(key, str) or event.get("event_type") != "POINT_IN_TIME" or value is None:
            continue
        first = first or number
        if key in config and config[key] != value and key != "seed":  # each worker logs its own seed
            problems.append(Problem(path, number, f"{shorten(key)} was {shorten(str(config[key]))} before"))
        config.setdefault(key, value)
    return ((Head(config, first),) if config else ()), capped(problems)


def _events(lines: Iterable[str]) -> Iterator[tuple[int, int | None, dict[str, Any] | None]]:
    """Line number, rank and event of every line that has the sign; None for one that cannot be read."""
    for number, rank, line in numbered(lines):
        place = line.find(SIGN)
        if place >= 0:
            yield number, rank, json_object(line[place + len(SIGN) :])


def _items(lines: Iterable[str], path: str) -> Iterator[Item]:
    own_rank, unit = None, None
    launches: Counter[int | None] = Counter()
    for number, rank, event in _events(lines):
        if event is None:
            yield Problem(path, number, "torn or corrupt event")
            continue
        key, metadata = event.get("key"), event.get("metadata")
        if key == "run_start":
            launches[rank] += 1
        if key == "run_stop" and isinstance(metadata, Mapping) and metadata.get("status") not in (None, "success"):
            yield Problem(path, number, f"the run stopped: {shorten(str(metadata.get('status')))}")
        values, place = _numbers(event), _place(event)
        if not values or place is None or (unit is not None and PLACES[place] != unit):
            continue
        own_rank, unit = rank if own_rank is None else own_rank, PLACES[place]
        at = finite_or_not(event["metadata"][place])
        if rank != own_rank:
            continue
        if at is None or not 0 <= at < 10**15:
            yield Problem(path, number, f"{place} is no place in a run: {shorten(str(event['metadata'][place]))}")
            continue
        yield Record(number, int(at), None, values, None, _time(event.get("time_ms")), launches[rank])


def _numbers(event: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an event: one by its key, or those of a mapping; none of an interval or a hyperparameter."""
    key, value = event.get("key"), event.get("value")
    if event.get("event_type") != "POINT_IN_TIME" or not isinstance(key, str):
        return {}
    if isinstance(value, Mapping):
        return numbers_of({str(name): item for name, item in value.items()})[0]
    number = finite_or_not(value)
    return {} if number is None else {shared_name(key): number}


def _place(event: Mapping[str, Any]) -> str | None:
    metadata = event.get("metadata")
    return next((key for key in PLACES if key in metadata), None) if isinstance(metadata, Mapping) else None


def _time(milliseconds: object) -> str | None:
    number = finite_or_not(milliseconds)
    if number is None or not 0 <= number < 4e15:
        return None
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(milliseconds=number)
    return moment.isoformat(timespec="seconds")


def _joined(items: Iterable[Item]) -> Iterator[Item]:
    """Consecutive records of one place as one."""
    held: Record | None = None
    for item in items:
        if isinstance(item, Problem):
            yield item
            continue
        if held is not None and (held.iteration, held.launch) == (item.iteration, item.launch):
            values = {**held.values, **item.values}
            held = Record(held.line, held.iteration, None, values, None, held.time, held.launch)
            continue
        if held is not None:
            yield held
        held = item
    if held is not None:
        yield held
