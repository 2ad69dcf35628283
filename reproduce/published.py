"""Logs that others are judged against: a finished run in, the part of it that a reader needs out."""

import json
import shutil
import tempfile
from pathlib import Path

from reproduce.errors import RunError

LOG_FILES = ("config.yaml", "log.txt", "training_metrics.json", "environment.json", "provenance.json", "state.json")
OPTIONAL_FILES = ("evaluation.json",)


def publish_log(run: Path, target: Path) -> tuple[Path, ...]:
    """Copy the log, configuration and evaluations of a finished run to `target`, whole or not at all; no weights.

    Returns the paths written. Raises `RunError` where the run is not finished or `target` exists: a published log is
    never replaced.
    """
    state = run / "state.json"
    missing = [name for name in LOG_FILES if not (run / name).is_file()]
    if missing:
        raise RunError(f"not a run folder: {', '.join(missing)} missing", path=run)
    if json.loads(state.read_text())["state"] != "finished":
        raise RunError("the run is not finished", path=state, mend="let it finish: reproduce train continues it")
    if target.exists():
        raise RunError("a log is published here already", path=target, mend="choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as draft_name:
        draft = Path(draft_name) / "log"
        results = sorted(run.glob("eval/*/results_eval_*.json"))
        extras = [run / name for name in OPTIONAL_FILES if (run / name).is_file()]
        for source in [run / name for name in LOG_FILES] + extras + results:
            copy = draft / source.relative_to(run)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
        draft.replace(target)
    return tuple(sorted(path for path in target.rglob("*") if path.is_file()))
