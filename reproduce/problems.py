"""What could not be taken from a file as it stands: one line each, with its place."""

from collections.abc import Iterable
from dataclasses import dataclass

SHOWN = 50  # of the problems of one file; a corrupt file has as many as it has lines


@dataclass(frozen=True)
class Problem:
    """Something in a file that could not be taken as it stands. `line` is None where the whole file is meant."""

    path: str
    line: int | None
    message: str

    def __str__(self) -> str:
        place = self.path if self.line is None else f"{self.path}:{self.line}"
        return f"{place}: {self.message}"


def capped(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """The first `SHOWN` problems and, where there are more, one that counts the rest."""
    shown: list[Problem] = []
    more = 0
    for problem in problems:
        if len(shown) < SHOWN:
            shown.append(problem)
        else:
            more += 1
    if more:
        shown.append(Problem(shown[0].path, None, f"{more:,} more problems after line {shown[-1].line}"))
    return tuple(shown)
