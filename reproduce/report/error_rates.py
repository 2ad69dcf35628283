"""What `benchmarks/verdicts.py` counted in, the error rates of verdicts as a report tells them out: rows of text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduce.errors import ReproduceError
from reproduce.quantities import NONE, plural

MEASURED = Path(__file__).parent / "rates"  # a file for each row on which rates were measured


@dataclass(frozen=True)
class AlarmRow:
    """Unchanged runs: how many of them a check failed on, and the exact 95 % interval of that share."""

    who: str
    runs: int
    alarms: int
    interval: str


@dataclass(frozen=True)
class FaultRow:
    """Runs with one planted fault. `shares` of the run that were needed until it was found, `checks` that found it.

    alone: in how many verdicts it was found where there was one reference run.
    """

    fault: str
    runs: int
    found: int
    by_half: int
    shares: str
    checks: str
    alone: str


@dataclass(frozen=True)
class ErrorRates:
    """What was measured on `row`. `not_run` are faults that were planned; `missed` counts runs whose fault was not
    found. Of their `results`, k-NN and losses, `below` had a true effect that their verdict said it could not see."""

    row: str
    alarms: tuple[AlarmRow, ...]
    faults: tuple[FaultRow, ...]
    not_run: tuple[str, ...]
    missed: int
    results: int
    below: int

    @property
    def found(self) -> str:
        """How many of the runs with a fault were found out."""
        runs, found = (sum(getattr(row, name) for row in self.faults) for name in ("runs", "found"))
        return f"{found} of {plural(runs, 'run')} with a planted fault"


def load_error_rates(folder: Path = MEASURED) -> tuple[ErrorRates, ...]:
    """The rates of every row that they were measured on. Raises `ReproduceError` where a file is none of them."""
    return tuple(_load(path) for path in sorted(folder.glob("*.json")))


def _load(path: Path) -> ErrorRates:
    try:
        content = json.loads(path.read_text())
        faults = [(name, row) for name, row in content["faults"].items() if row["runs"]]
        pairs, missed = content["one reference"], content["missed"]
        alarms = content["alarms"] | {"new seeds against one published, then the next": pairs["alarms"]}
        return ErrorRates(
            row=path.stem,
            alarms=tuple(_alarm_row(name, row) for name, row in alarms.items() if row["runs"]),
            faults=tuple(_fault_row(name, row, alone=pairs["faults"][name]) for name, row in faults),
            not_run=tuple(name for name, row in content["faults"].items() if not row["runs"]),
            missed=int(missed["runs"]),
            results=int(missed["results"]),
            below=int(missed["below"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReproduceError(
            f"not the counts of verdicts: {error!r}", path=path, mend="write it by python benchmarks/verdicts.py"
        ) from error


def _alarm_row(who: str, row: Mapping[str, Any]) -> AlarmRow:
    low, high = row["interval"]
    return AlarmRow(who, int(row["runs"]), int(row["alarms"]), f"{100 * low:.0f} to {100 * high:.0f} %")


def _fault_row(fault: str, row: Mapping[str, Any], *, alone: Sequence[int]) -> FaultRow:
    needed = sorted(share for share in row["shares"] if share is not None)
    ends = dict.fromkeys(f"{100 * share:.0f}" for share in (needed[:1] + needed[-1:]))
    shares = f"{' to '.join(ends)} %" if needed else NONE
    return FaultRow(
        fault=fault,
        runs=int(row["runs"]),
        found=int(row["detected"]),
        by_half=int(row["by half"]),
        shares=shares,
        checks=", ".join(row["checks"]) or NONE,
        alone="{} of {}".format(*alone),
    )
