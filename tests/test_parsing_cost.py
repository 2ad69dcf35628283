"""What parsing costs grows with the log and no faster: calls that are counted, regular expressions on hostile lines."""

import sys
import time
from collections.abc import Callable

import pytest
from test_dialects import EVERY_LINE, SAMPLES
from test_logs import LINE, PREFIX

from reproduce.lineage import make_lineage
from reproduce.logs import DIALECTS, HEADS, find_dialect

HOSTILE = {
    "spaces": lambda size: LINE + " " * size,
    "spaces before a letter": lambda size: LINE + "  a: 1" + " " * size + "x",
    "names": lambda size: LINE[:140] + "  a" + " a" * (size // 2),
    "fields": lambda size: LINE[:140] + "  a: 1" * (size // 6),
    "iterations": lambda size: "Training  [1/9]  eta: " * (size // 22),
    "brackets": lambda size: "[" * size,
    "digits": lambda size: "Train: 1 [ " + "1" * size,
    "train": lambda size: "Train: 1 [" * (size // 10),
    "tests": lambda size: "Test: [ 1/1]  " + "Loss: 1 ( " * (size // 10),
    "colors": lambda size: "\x1b[1;" * (size // 4),
    "label": lambda size: "[1," * (size // 3),
    "stamp": lambda size: "[2026-01-01 12:00:00,123][" + "[" * size,
    "submitit": lambda size: "submitit ERROR (" * (size // 16),
    "quotes": lambda size: 'epoch,"' + '""' * (size // 2),
    "objects": lambda size: '{"epoch": ' * (size // 10),
    "events": lambda size: ":::MLLOG {" * (size // 10),
    "error": lambda size: "E20260308 08:02:33 1 " + "a:" * (size // 2),
}


def count_calls(work: Callable[[], object]) -> int:
    """How many functions, Python's and C's, some work calls."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def parse_all(dialect: str, lines: list[str]) -> None:
    records, _ = DIALECTS[dialect](lines, path="log")
    make_lineage(records, path="log")
    if dialect in HEADS:
        HEADS[dialect](lines, path="log")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("lines", ["its own", "of every dialect", "launches"])
def test_calls_grow_with_the_lines(dialect: str, lines: str) -> None:
    """Four times the lines take four times the calls, whatever the lines are."""
    config = [PREFIX + "a:", "  b: 1", "c:", "  d: 2", LINE]
    block = {"its own": SAMPLES[dialect], "of every dialect": EVERY_LINE, "launches": config}[lines]
    few, many = (count_calls(lambda size=size: parse_all(dialect, block * size)) for size in (100, 400))
    assert many < 4.5 * few


@pytest.mark.parametrize("dialect", DIALECTS)
def test_time_grows_with_the_line(dialect: str) -> None:
    """A line sixteen times as long takes no hundred times the time: no expression backtracks without end."""
    for name, make_line in HOSTILE.items():
        short, long = (min(_seconds(dialect, make_line(size)) for _ in range(3)) for size in (20_000, 320_000))
        assert long < 100 * max(short, 2e-4), name


def _seconds(dialect: str, line: str) -> float:
    start = time.process_time()
    find_dialect([line])
    parse_all(dialect, [line])
    return time.process_time() - start
