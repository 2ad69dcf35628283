"""The code that runs here in, a copy of it in a run folder out: what is edited later does not reach a job that waits.

A job's Python finds the copy before anything that is installed, also when the cluster starts the job again.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGES = ("franca", "reproduce")
ORIGIN = "git.txt"
CODE = "code"  # the folder of the copies in a run folder
LEFT_OUT = ("__pycache__", "*.pyc")
DIGITS = 12


def take_snapshot(folder: Path) -> Path:
    """Copy trainer and harness into `folder/<hash>`; equal code is there once. Returns the copy's absolute path."""
    target = snapshot_path(folder)
    if not target.is_dir():
        draft = target.with_name(f".{target.name}.{os.getpid()}.draft")
        for name, path in _files():
            copy = draft / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        (draft / ORIGIN).write_text(_describe_origin() + "\n")
        try:
            draft.rename(target)
        except OSError:  # another harness was faster
            shutil.rmtree(draft)
            if not target.is_dir():
                raise
    return target


def snapshot_path(folder: Path) -> Path:
    """Where in `folder` the copy of the code as it is now lies, or would lie."""
    digest = hashlib.sha256()
    for name, path in _files():
        digest.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return folder.resolve() / digest.hexdigest()[:DIGITS]


def snapshot_environment(snapshot: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables with which Python imports the copy: neither the working directory nor an install comes first."""
    path = os.pathsep.join(filter(None, (str(snapshot), environment.get("PYTHONPATH"))))
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": path}


def _describe_origin() -> str:
    """The commit of the checkout that the code is in, in the words of DINOv2's log, as the trainer prints them."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        result = subprocess.run(command, check=False, capture_output=True, text=True)
        return result.stdout.strip() if result.returncode == 0 else ""

    if shutil.which("git") is None or not (sha := git("rev-parse", "HEAD")):
        return "sha: N/A, status: clean, branch: N/A"
    status = "has uncommitted changes" if git("status", "--porcelain") else "clean"
    return f"sha: {sha}, status: {status}, branch: {git('rev-parse', '--abbrev-ref', 'HEAD')}"


def _files() -> Iterator[tuple[Path, Path]]:
    """(name below the copy, file) of everything that belongs to the packages, sorted."""
    for package in PACKAGES:
        found = importlib.util.find_spec(package)
        assert found is not None
        assert found.submodule_search_locations
        root = Path(found.submodule_search_locations[0])
        for path in sorted(root.rglob("*")):
            if path.is_file() and not any(path.match(pattern) for pattern in LEFT_OUT):
                yield Path(root.name) / path.relative_to(root), path
