"""A run folder in, what a reader needs to trust and repeat the run out: code, machine, data, hashes of the logs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduce.lineage import History

RECORDS = ("provenance.json", "environment.json", "evaluation.json")


@dataclass(frozen=True)
class LogFile:
    """A log that the verdict rests on. `whose` is "mine" or the reference run's name."""

    whose: str
    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Provenance:
    """The run folder's own records, empty mappings where a file is absent; `problems` names those that are damaged.

    launch: provenance.json, written by the harness. environment: environment.json, written by the trainer.
    evaluation: evaluation.json, the final evaluation.
    """

    launch: Mapping[str, Any]
    environment: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    logs: tuple[LogFile, ...]
    problems: tuple[str, ...]


def load_provenance(mine: History, *, references: Sequence[History] = ()) -> Provenance:
    """Read the records beside the run's log, and hash its log and those of the reference runs."""
    found = [_read_record(mine.path / name) if mine.path.is_dir() else ({}, None) for name in RECORDS]
    launch, environment, evaluation = (record for record, _ in found)
    runs = [("mine", mine), *((run.name, run) for run in references)]
    logs = tuple(hash_log(whose, path=run.log_path) for whose, run in runs if run.log_path is not None)
    return Provenance(launch, environment, evaluation, logs, tuple(problem for _, problem in found if problem))


def hash_log(whose: str, *, path: Path) -> LogFile:
    """The size and the SHA-256 of a log as it is now."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return LogFile(whose, str(path), path.stat().st_size, digest)


def _read_record(path: Path) -> tuple[Mapping[str, Any], str | None]:
    """The JSON object in a file, empty where the file is absent; and what is wrong with it, if anything."""
    if not path.is_file():
        return {}, None
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return {}, f"{path}: not readable as JSON: {error}"
    if not isinstance(record, dict):
        return {}, f"{path}: an object belongs here, not {type(record).__name__}"
    return record, None
