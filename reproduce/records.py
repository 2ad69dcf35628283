"""What the lines of a log become: records and problems as they are found in, the records that are kept out.

A log of any length is held in bounded memory: beyond `KEPT` records every second one is left out, evenly over the run,
and again as often as it takes. Where launches meet nothing is left out, and means over iterations are put together.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from reproduce.problems import Problem, capped

KEPT = 1 << 17  # records: 1.3 M iterations at a line in ten, some 250 MB
MEANS = "mean_"  # our own keys: means over the iterations since the line before

Unit = Literal["iteration", "epoch", "sample", "step", "evaluation", "cell"]  # a cell is of `reproduce.axes`


@dataclass(frozen=True, slots=True)
class Record:
    """One line of numbers. `launch` counts the process starts that the log announced before this line.

    iteration: the place in the run, in the unit of the log's dialect. `values` holds what the line prints per metric;
    `averages` the means since process start that DINOv2's text adds.
    """

    line: int
    iteration: int
    total: int | None
    values: Mapping[str, float]
    averages: Mapping[str, float] | None
    time: str | None
    launch: int


Item = Record | Problem
Parsed = tuple[tuple[Record, ...], tuple[Problem, ...]]


def collect(items: Iterable[Item], *, path: str, limit: int = KEPT) -> Parsed:
    """Records and problems apart, no more than `limit` records and a capped number of problems."""
    kept: list[tuple[int, Record]] = []
    counts = [0]
    problems = capped(_keep(items, kept, counts, limit=limit))
    if counts[0] > len(kept):
        thinned = Problem(path, None, f"{counts[0]:,} records: of every few one is kept, {len(kept):,} in all")
        problems = (*problems, thinned)
    return tuple(record for _, record in kept), problems


def shorten(text: str) -> str:
    """The start of a text on one line, what cannot be printed replaced."""
    printable = "".join(character if character.isprintable() else "�" for character in text[:100])
    return printable + ("…" if len(text) > 100 else "")


@functools.lru_cache(maxsize=4096)
def shared_name(name: str) -> str:
    """One object for all of a name's occurrences, of as many names as any program gives to columns."""
    return name


def _keep(items: Iterable[Item], kept: list[tuple[int, Record]], counts: list[int], *, limit: int) -> Iterator[Problem]:
    """Fill `kept` with (ordinal, record), ordinal -1 where launches meet; yield the problems."""
    stride = 1
    for item in items:
        if isinstance(item, Problem):
            yield item
            continue
        ordinal = counts[0]
        counts[0] += 1
        if not kept or _starts_anew(kept[-1][1], item):
            if kept:
                kept[-1] = (-1, kept[-1][1])
            ordinal = -1
        elif _is_spare(kept[-1][0], stride):
            _, dropped = kept.pop()
            item = _absorb(dropped, item, since=kept[-1][1].iteration)
        kept.append((ordinal, item))
        if len(kept) >= limit:
            stride *= 2
            _thin(kept, stride)
            if len(kept) > limit * 3 // 4:  # launches meet everywhere: no training run does that
                kept[:-1] = kept[:-1:2]


def _thin(kept: list[tuple[int, Record]], stride: int) -> None:
    """Leave out what the stride does not keep, but for the last, whose successor is not known yet."""
    end, dropped = 0, None
    for place, (ordinal, found) in enumerate(kept):
        record = found
        if dropped is not None:
            record = _absorb(dropped, record, since=kept[end - 1][1].iteration)
        spare = _is_spare(ordinal, stride) and place < len(kept) - 1
        dropped = record if spare else None
        if not spare:
            kept[end] = (ordinal, record)
            end += 1
    del kept[end:]


def _is_spare(ordinal: int, stride: int) -> bool:
    return ordinal >= 0 and ordinal % stride > 0


def _starts_anew(before: Record, after: Record) -> bool:
    return after.iteration <= before.iteration or after.launch != before.launch


def _absorb(dropped: Record, record: Record, *, since: int) -> Record:
    """`record` with its means over the iterations of `dropped` too, which follow iteration `since`."""
    names = [name for name in record.values if name.startswith(MEANS) and name in dropped.values]
    if not names:
        return record
    first, second = dropped.iteration - since, record.iteration - dropped.iteration
    means = {name: (first * dropped.values[name] + second * record.values[name]) / (first + second) for name in names}
    return replace(record, values={**record.values, **means})
