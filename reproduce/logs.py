"""A training log in, its records and its problems out, whatever the dialect and whatever is broken in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """One iteration line. `launch` counts the process starts that the log announces before this line.

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
class Problem:
    """Something in a file that could not be taken as it stands. `line` is None where the whole file is meant."""

    path: str
    line: int | None
    message: str

    def __str__(self) -> str:
        place = self.path if self.line is None else f"{self.path}:{self.line}"
        return f"{place}: {self.message}"


@dataclass(frozen=True)
class Head:
    """What a text log says about its run before the first iteration; of several launches the newest one.

    `scaled_lr` is (base, new) of the line "sqrt scaling learning rate". `config` is the YAML dumped there.
    """

    config: Mapping[str, Any] | None = None
    config_line: int | None = None
    git_sha: str | None = None
    scaled_lr: tuple[float, float] | None = None


@dataclass(frozen=True)
class ParsedLog:
    path: Path
    dialect: str
    records: tuple[Record, ...]
    problems: tuple[Problem, ...]
    head: Head
