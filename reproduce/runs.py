"""A resolved run in, its folder out: who it belongs to, how it was declared, launched, and how it stands.

The folder is where harness and trainer meet, so everything here is read from its files and nothing is remembered.
What only a launch needs is imported there: `status` and `list` answer at once.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reproduce.errors import RunError
from reproduce.files import is_locked, write_whole
from reproduce.launch import Job

if TYPE_CHECKING:
    from franca.config import TrainConfig
    from reproduce.resolve import Resolved
    from reproduce.spec import Margins, Spec

LAUNCH, EVALUATOR = "launch.json", "evaluator.json"

State = Literal["running", "finished", "paused", "interrupted", "failed"]


@dataclass(frozen=True)
class RunState:
    """What the trainer last said in `state.json`: `iteration` iterations of `of` are done. `error` is its failure."""

    state: State
    iteration: int
    of: int
    images_per_second: float | None
    error: str | None


def open_run(resolved: "Resolved", *, command: Sequence[str], root: Path) -> Path:
    """Create the run's folder, or check that the one there is the same run; returns its path.

    A new folder is declared before anything is launched: `provenance.json` holds the code's commit and the hashes of
    spec and margins. In an old one only the execution (site, `until_iteration`) may differ, and is left alone
    while it is being trained. Raises `RunError` where the folder belongs to another recipe or seed, or cannot be
    written; nothing is changed then.
    """
    from franca.config import dump_config

    folder, config = resolved.folder, resolved.config
    path = folder / "config.yaml"
    try:
        if path.exists():
            old = _load_run_config(path)
            _check_same_run(old, config, path=path)
            if old != config and not is_alive(folder):
                write_whole(path, dump_config(config))
            if (folder / "checkpoints").is_symlink() and not (folder / "checkpoints").is_dir():
                _raise_lost(folder / "checkpoints")
        else:
            _check_empty(folder)
            folder.mkdir(parents=True, exist_ok=True)
            if resolved.site.scratch:
                _link_checkpoints(folder, scratch=root / Path(resolved.site.scratch).expanduser())
            write_whole(folder / "provenance.json", _declare(resolved, command=command, root=root))
            write_whole(path, dump_config(config))
    except OSError as error:
        raise RunError(f"cannot write the run folder: {error.strerror}", path=folder) from error
    return folder


def record_launch(folder: Path, *, job: Job, site: str) -> None:
    """Note a launch: `launch.json` names the newest job, `provenance.json` all of them."""
    started = _now()
    _write_launch(folder / LAUNCH, job=job, started=started)
    provenance = read_provenance(folder)
    provenance["launches"].append({"time": started, "job": job.job_id, "site": site, "executor": job.executor})
    write_whole(folder / "provenance.json", json.dumps(provenance, indent=1) + "\n")


def record_evaluator(folder: Path, *, job: Job) -> None:
    """Note the job that measures the run's teachers beside its training."""
    _write_launch(folder / EVALUATOR, job=job, started=_now())


def newest_job(folder: Path) -> Job | None:
    """The job that was launched last, or None where there was none or its files were cleared away."""
    return _load_launch(folder, LAUNCH)


def newest_evaluator(folder: Path) -> Job | None:
    """The job that was launched last to measure teachers beside the training, as `newest_job`."""
    return _load_launch(folder, EVALUATOR)


def is_apart(folder: Path) -> bool:
    """Whether the training that was launched last leaves its teachers to be measured by a job beside it."""
    path = folder / "config.yaml"
    return path.is_file() and _load_run_config(path).execution.evaluate == "apart"


def _write_launch(path: Path, *, job: Job, started: str) -> None:
    launch = {
        "executor": job.executor,
        "job_id": job.job_id,
        "submitit_folder": os.path.relpath(job.folder, path.parent.resolve()),
        "pid": int(job.job_id) if job.executor == "local" else None,
        "started": started,
    }
    write_whole(path, json.dumps(launch, indent=1) + "\n")


def _load_launch(folder: Path, name: str) -> Job | None:
    path = folder / name
    if not path.is_file():
        return None
    launch = _read_json(path)
    files = (folder / launch["submitit_folder"]).resolve()
    return Job(launch["executor"], launch["job_id"], files) if files.is_dir() else None


def is_alive(folder: Path) -> bool:
    """Whether a job of this run waits or runs, or a trainer that nobody submitted holds the run's lock.

    The lock is only tried where no job can be about to take it: to try a lock is to hold it for a moment.
    """
    job = newest_job(folder)
    return (job is not None and job.is_running()) or is_locked(folder / "train.lock")


def read_state(folder: Path) -> RunState | None:
    """The trainer's last word on the run, or None where it has not said any."""
    path = folder / "state.json"
    if not path.is_file():
        return None
    found = _read_json(path)
    try:
        error = found["error"]
        said = None if error is None else f"{error['type']}: {error['message']} ({error['where']})"
        return RunState(found["state"], found["iteration"], found["of"], found["images_per_second"], said)
    except (KeyError, TypeError) as error:
        raise RunError(f"not a run's state: {error!r}", path=path) from error


def read_provenance(folder: Path) -> dict[str, Any]:
    """What `open_run` declared, with the launches since."""
    return _read_json(folder / "provenance.json")


def read_evaluation(folder: Path) -> dict[str, Any]:
    """What `franca.evaluate` found: the iteration, the checkpoint's hash, the accuracies and the protocol."""
    return _read_json(folder / "evaluation.json")


def find_runs(root: Path, *, row: str) -> tuple[Path, ...]:
    """The folders of all runs of a row, of whatever version, by name."""
    return tuple(sorted(path.parent for path in root.glob(f"runs/{row}@*/*/config.yaml")))


def spec_sha256(spec: "Spec") -> str:
    """Hash of the row's file as it stands: what was declared, margins, claims and all."""
    return hashlib.sha256(spec.path.read_bytes()).hexdigest()


def margins_sha256(margins: "Margins") -> str:
    """Hash of the margins as canonical JSON; equal margins, equal hashes, wherever they are written."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(margins), sort_keys=True).encode()).hexdigest()


def _declare(resolved: "Resolved", *, command: Sequence[str], root: Path) -> str:
    """The text of a new `provenance.json`."""
    from importlib.metadata import version

    declaration = {
        "command": list(command),
        "git": _describe_code(root),
        "spec_sha256": spec_sha256(resolved.spec),
        "margins_sha256": margins_sha256(resolved.spec.margins),
        "created": _now(),
        "harness_version": version("franca-reproduce"),
        "launches": [],
        "overrides": list(resolved.spec.overrides),
    }
    return json.dumps(declaration, indent=1) + "\n"


def _describe_code(root: Path) -> dict[str, Any]:
    """The commit that is checked out and a hash of what differs from it; all None where git cannot tell."""
    try:
        sha = _git(root, "rev-parse", "HEAD").decode().strip()
        diff = _git(root, "diff", "HEAD", "--no-ext-diff", "--binary")
    except (OSError, subprocess.CalledProcessError):
        return {"sha": None, "dirty": None, "diff_sha256": None}
    return {"sha": sha, "dirty": bool(diff), "diff_sha256": hashlib.sha256(diff).hexdigest() if diff else None}


def _git(root: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=True).stdout


def _check_same_run(old: "TrainConfig", new: "TrainConfig", *, path: Path) -> None:
    for name in ("row", "version", "fingerprint", "seed"):
        if getattr(old, name) != getattr(new, name):
            raise RunError(
                f"this run has {name} {getattr(old, name)}, and {getattr(new, name)} was asked for",
                path=path,
                mend="give the changed recipe a new version, or move this folder away; it was left as it is",
            )


def _check_empty(folder: Path) -> None:
    names = ("checkpoints", "training_metrics.json", "state.json")
    strays = [name for name in names if (folder / name).exists() and not (folder / name).is_symlink()]
    if strays:
        raise RunError(
            f"the folder has no config.yaml, but {strays[0]}: whose run it is cannot be told",
            path=folder,
            mend="put its config.yaml back, or move the folder away",
        )


def _link_checkpoints(folder: Path, *, scratch: Path) -> None:
    """Have a new run's checkpoints lie in a folder of their own below `scratch`, whoever else keeps some there."""
    link = folder / "checkpoints"
    own = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    place = scratch / folder.parent.name / f"{folder.name}-{own}" / "checkpoints"
    if place.is_dir() and any(place.iterdir()):
        raise RunError(
            "checkpoints of a run that lay in the same folder are here", path=place, mend="remove them, or move them"
        )
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        mend = "mend scratch in site.yaml"
        raise RunError(f"the site's scratch cannot be written: {error.strerror}", path=place, mend=mend) from error
    if not link.is_symlink():  # of a launch that was cut off here
        link.symlink_to(place)


def _raise_lost(link: Path) -> None:
    raise RunError(
        f"its checkpoints are gone from {link.readlink()}",
        path=link,
        mend="bring them back; to begin anew, move the run folder away",
    )


def _load_run_config(path: Path) -> "TrainConfig":
    from franca.config import ConfigError, load_config

    try:
        return load_config(path)
    except ConfigError as error:
        raise RunError(str(error), mend="restore the file, or move the run folder away") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"cannot be read: {error}", path=path) from error
    if not isinstance(found, dict):
        raise RunError("a JSON object belongs here", path=path)
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
