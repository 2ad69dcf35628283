"""Rows in, `dvc.yaml` out: train, evaluate, judge and report each row, and each only after a change that reaches it.

Training depends on the values that determine its result, never on the files that hold them: a margin, a claim or a
comment must not cost a month of GPUs. A run that is finished answers at once when DVC asks for it again.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from reproduce.errors import SpecError
from reproduce.spec import RowSummary

HEADER = """\
# Generated from experiments/ by `reproduce pipeline --write`; edit the rows, not this file.
# `dvc repro ROW` trains, evaluates, judges and reports one row. Training depends on parameters of the recipe alone.
"""
ENVIRONMENT = 'PATH="$PATH:$PWD/.venv/bin"'  # for .venv/bin/dvc called from a shell in which .venv is not active
TRAINED = ("checkpoints", "eval", "log.txt", "training_metrics.json", "state.json", "environment.json")
LOGS = ("eval", "log.txt", "training_metrics.json", "state.json")
TRAINING_KEYS = ("recipe", "seed", "version")
DESCRIPTIVE_GROUPS = ("claims",)  # what a row says, not what it runs
JUDGING_CODE = (
    "reproduce/checks.py",
    "reproduce/curves.py",
    "reproduce/lineage.py",
    "reproduce/log_head.py",
    "reproduce/logs.py",
    "reproduce/problems.py",
    "reproduce/verdict.py",
)
REPORTING_CODE = ("reproduce/figures", "reproduce/report")

Stage = dict[str, Any]


def render_pipeline(rows: Sequence[RowSummary], *, root: Path) -> str:
    """The text of `dvc.yaml` for these rows. Raises `SpecError` where a config group that a row names is absent."""
    stages: dict[str, Stage] = {}
    for row in rows:
        stages |= make_stages(row, root=root)
    return HEADER + yaml.safe_dump({"stages": stages}, sort_keys=False, width=120)


def make_stages(row: RowSummary, *, root: Path) -> dict[str, Stage]:
    """The stages of one row; the last bears the row's name, so that `dvc repro ROW` does them all."""
    path = row.path.relative_to(root)
    groups = list(dict.fromkeys(_find_groups(row.path, root=root)))
    run = f"runs/{row.row}@{row.version}/main"
    logs = [f"{run}/{name}" for name in LOGS]
    log = yaml.safe_load(row.path.read_text())["published_log"]
    references = list(log["local"])
    training = [group for group in groups if Path(group).parts[1] not in DESCRIPTIVE_GROUPS]
    return {
        **(_make_fetch(row, path=path, local=references) if log["state"] == "published" else {}),
        f"{row.row}-train": {
            "desc": f"Train {row.title}; what is there is continued",
            "cmd": _command("train", row.row),
            "params": [{str(path): list(TRAINING_KEYS)}, *({group: None} for group in training)],
            "outs": [{f"{run}/{name}": {"cache": False, "persist": True}} for name in TRAINED],
        },
        f"{row.row}-evaluate": {
            "desc": "k-NN of the newest checkpoint",
            "cmd": _command("evaluate", row.row),
            "deps": [f"{run}/checkpoints", "franca/evaluate"],
            "metrics": [{f"{run}/evaluation.json": {"cache": False}}],
        },
        f"{row.row}-judge": {
            "desc": "Hold the run's log against the published one",
            "cmd": _command("judge", row.row, "--exit-zero"),
            "deps": [str(path), *groups, *logs, f"{run}/evaluation.json", *references, *JUDGING_CODE],
            "outs": [{f"reports/{row.row}.json": {"cache": False}}],
        },
        row.row: {
            "desc": "Write the report",
            "cmd": _command("report", row.row),
            "deps": [f"reports/{row.row}.json", *logs, *references, *REPORTING_CODE],
            "outs": [{f"reports/{row.row}.{kind}": {"cache": False}} for kind in ("html", "svg")],
        },
    }


def _make_fetch(row: RowSummary, *, path: Path, local: list[str]) -> dict[str, Stage]:
    """A stage, not a DVC import: with an import in the project, even `dvc status` needs the network."""
    return {
        f"{row.row}-fetch": {
            "desc": "Download the published log and verify it",
            "cmd": _command("fetch", row.row),
            "params": [{str(path): ["published_log"]}],
            "outs": [{file: {"cache": False, "persist": True}} for file in local],
        }
    }


def _command(*words: str) -> str:
    return " ".join((ENVIRONMENT, "reproduce", *words))


def _find_groups(path: Path, *, root: Path) -> Iterator[str]:
    """The files that Hydra composes a file from, itself left out, by their paths inside the project."""
    for entry in (yaml.safe_load(path.read_text()) or {}).get("defaults", ()):
        if entry == "_self_":
            continue
        for group, names in entry.items() if isinstance(entry, dict) else ((None, entry),):
            folder = path.parent if group is None else root / "experiments" / group.partition("@")[0]
            for name in [names] if isinstance(names, str) else names:
                file = folder / f"{name}.yaml"
                if not file.is_file():
                    raise SpecError(f"no config group {file.relative_to(root)}", path=path)
                yield from _find_groups(file, root=root)
                yield file.relative_to(root).as_posix()
