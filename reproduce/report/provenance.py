"""A run folder in, what a reader needs to trust and repeat the run out: code, machine, data, hashes of the logs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduce.lineage import History

SCRIPT_LENGTH = 20_000  # characters
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
    evaluation: evaluation.json, the final evaluation. script: what sbatch was given last, empty without a cluster.
    """

    launch: Mapping[str, Any]
    environment: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    logs: tuple[LogFile, ...]
    problems: tuple[str, ...]
    script: str = ""


def load_provenance(mine: History, *, references: Sequence[History] = ()) -> Provenance:
    """Read the records beside the run's log, and hash its log and those of the reference runs."""
    found = [_read_record(mine.path / name) if mine.path.is_dir() else ({}, None) for name in RECORDS]
    launch, environment, evaluation = (record for record, _ in found)
    runs = [("mine", mine), *((run.name, run) for run in references)]
    logs = tuple(hash_log(whose, path=run.log_path) for whose, run in runs if run.log_path is not None)
    problems = tuple(problem for _, problem in found if problem)
    return Provenance(launch, environment, evaluation, logs, problems, _read_script(mine.path))


def hash_log(whose: str, *, path: Path) -> LogFile:
    """The size and the SHA-256 of a log as it is now."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return LogFile(whose, str(path), path.stat().st_size, digest)


def _read_script(folder: Path) -> str:
    """The script of the newest job, as submitit keeps it in the job's folder."""
    scripts = sorted(folder.glob("submitit/*/*_submission.sh"))
    return scripts[-1].read_text(errors="replace")[:SCRIPT_LENGTH] if scripts else ""


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
