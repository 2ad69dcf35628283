"""Rows in, `dvc.yaml` out: train, evaluate, judge and report each row, and each only after a change that reaches it.

Training depends on the values that determine its result, never on the files that hold them: a margin, a claim or a
comment must not cost a month of GPUs. A run that is finished answers at once when DVC asks for it again.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from reproduce.compose import compose
from reproduce.spec import RowSummary

HEADER = """\
# Generated from experiments/ by `reproduce pipeline --write`; edit the rows, not this file.
# `dvc repro ROW` trains, evaluates, judges and reports one row. Training depends on parameters of the recipe alone.
"""
ENVIRONMENT = 'PATH="$PATH:$PWD/.venv/bin"'  # for .venv/bin/dvc called from a shell in which .venv is not active
LOGS = ("eval", "log.txt", "training_metrics.json", "state.json", "config.yaml", "environment.json")
RECORDS = ("provenance.json",)
TRAINED = ("checkpoints", *LOGS, *RECORDS)
TRAINING_KEYS = ("recipe", "seed", "version")
JUDGING_CODE = (
    "franca/closed_form.py",
    "franca/laws.py",
    "franca/masking.py",
    "franca/schedules.py",
    "reproduce/bands.py",
    "reproduce/checks.py",
    "reproduce/conclusions.py",
    "reproduce/curves.py",
    "reproduce/dialects",
    "reproduce/json_text.py",
    "reproduce/labels.py",
    "reproduce/layers",
    "reproduce/lineage.py",
    "reproduce/log_head.py",
    "reproduce/logs.py",
    "reproduce/problems.py",
    "reproduce/records.py",
    "reproduce/verdict.py",
)
REPORTING_CODE = (
    "reproduce/audit.py",
    "reproduce/axes.py",
    "reproduce/figures",
    "reproduce/quantities.py",
    "reproduce/report",
)

Stage = dict[str, Any]


def render_pipeline(rows: Sequence[RowSummary], *, root: Path) -> str:
    """The text of `dvc.yaml` for these rows. Raises `SpecError` where one of them is not valid."""
    stages: dict[str, Stage] = {}
    for row in rows:
        stages |= make_stages(row, root=root)
    return HEADER + yaml.safe_dump({"stages": stages}, sort_keys=False, width=120)


def make_stages(row: RowSummary, *, root: Path) -> dict[str, Stage]:
    """The stages of one row; the last bears the row's name, so that `dvc repro ROW` does them all."""
    composed = compose(row.row, root=root)
    path = _relative(composed.path, root=root)
    groups = {_relative(document.path, root=root): package for package, document in composed.documents[:-1]}
    run = f"runs/{row.row}@{row.version}/main"
    logs = [f"{run}/{name}" for name in (*LOGS, "evaluation.json")]
    records = [f"{run}/{name}" for name in RECORDS]
    log = composed.mapping["published_log"]
    references = [_without_pattern(file) for file in log["local"]]
    return {
        **(_make_fetch(row, path=path, files=log["local"]) if log["state"] == "published" else {}),
        f"{row.row}-train": {
            "desc": f"Train {row.title}, or go on where it was cut off",
            "cmd": _command("train", row.row),
            "params": [
                {path: list(TRAINING_KEYS)},
                *({file: None} for file, package in groups.items() if package.split(".")[0] == "recipe"),
            ],
            "outs": [{f"{run}/{name}": {"cache": False, "persist": True}} for name in TRAINED],
        },
        f"{row.row}-evaluate": {
            "desc": "k-NN of the newest teacher",
            "cmd": _command("evaluate", row.row),
            "deps": [f"{run}/eval", "franca/evaluate"],
            "metrics": [{f"{run}/evaluation.json": {"cache": False}}],
        },
        f"{row.row}-judge": {
            "desc": "Hold the run's log against the published one",
            "cmd": _command("judge", row.row, "--exit-zero"),
            "deps": [path, *groups, *logs, *references, *JUDGING_CODE],
            "outs": [{f"reports/{row.row}.json": {"cache": False}}],
        },
        row.row: {
            "desc": "Write the report",
            "cmd": _command("report", row.row),
            "deps": [f"reports/{row.row}.json", *logs, *records, *references, *REPORTING_CODE],
            "outs": [{f"reports/{row.row}.{kind}": {"cache": False}} for kind in ("html", "svg")],
        },
    }


def _make_fetch(row: RowSummary, *, path: str, files: Sequence[str]) -> dict[str, Stage]:
    """A stage, not a DVC import: with an import in the project, even `dvc status` needs the network."""
    return {
        f"{row.row}-fetch": {
            "desc": "Download the published log and verify it",
            "cmd": _command("fetch", row.row),
            "params": [{path: ["published_log"]}],
            "outs": [{file: {"cache": False, "persist": True}} for file in files],
        }
    }


def _relative(path: Path, *, root: Path) -> str:
    return path.resolve().relative_to(root).as_posix()


def _without_pattern(file: str) -> str:
    """The folder in which a pattern looks, for DVC depends on names alone; a plain name as it is."""
    parts = PurePosixPath(file).parts
    plain = itertools.takewhile(lambda part: not any(character in part for character in "*?["), parts)
    return PurePosixPath(*plain).as_posix()


def _command(*words: str) -> str:
    return " ".join((ENVIRONMENT, "reproduce", *words))
