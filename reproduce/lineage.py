"""Records of one run in, its lineage out: the launches put together, the last branch wins; and the run's history."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reproduce.log_head import Head
from reproduce.logs import Record
from reproduce.problems import Problem

LaunchKind = Literal["start", "resume", "restart", "gap"]


@dataclass(frozen=True)
class Launch:
    """One start of the process, by the lines and iterations that it logged.

    start: the first. resume: goes on at or before the last iteration. restart: from 0 again. gap: lines are missing.
    """

    first_line: int
    last_line: int
    start: int
    end: int
    kind: LaunchKind


@dataclass(frozen=True)
class Lineage:
    """`records` rise in iteration, one per iteration; `ghosts` are those that a later launch overwrote."""

    launches: tuple[Launch, ...]
    records: tuple[Record, ...]
    ghosts: tuple[Record, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class History:
    """What one run left behind. `name` is how reports call it.

    lineage: from training_metrics.json where there is one, else from log.txt. `log_path` is the file that its line
    numbers refer to.
    text: the lineage of log.txt where both files exist (for its averages), else None.
    knn: iterations done -> k -> top-1 accuracy in percent.
    config: config.yaml of the run (`franca.config.TrainConfig` as a mapping) or None; `head` is what a log said.
    total: the iterations of the whole recipe, where known.
    """

    name: str
    path: Path
    log_path: Path | None
    dialect: str
    lineage: Lineage
    text: Lineage | None
    knn: Mapping[int, Mapping[int, float]]
    config: Mapping[str, Any] | None
    head: Head
    seed: int | None
    total: int | None
    problems: tuple[Problem, ...]

    @property
    def done(self) -> int:
        """Iterations done, by the log."""
        return self.lineage.records[-1].iteration + 1 if self.lineage.records else 0
