"""Run folders: declared once, never mixed up, read as they are."""

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import make_resolved

from franca.config import load_config
from reproduce.errors import RunError
from reproduce.launch import submit
from reproduce.runs import (
    RunState,
    find_runs,
    is_alive,
    margins_sha256,
    newest_job,
    open_run,
    read_provenance,
    read_state,
    record_launch,
)

COMMAND = ("reproduce", "train", "digits")


def test_new_run_is_declared_before_it_is_launched(tmp_path: Path) -> None:
    """A new folder holds the configuration, and says by which command and spec, and at what margins, it was made."""
    resolved = make_resolved(tmp_path / "runs/digits@1/main")
    folder = open_run(resolved, command=COMMAND, root=tmp_path)
    assert load_config(folder / "config.yaml") == resolved.config
    declared = read_provenance(folder)
    assert declared["command"] == list(COMMAND)
    assert declared["spec_sha256"] == hashlib.sha256(resolved.spec.path.read_bytes()).hexdigest()
    assert declared["margins_sha256"] == margins_sha256(resolved.spec.margins)
    assert declared["launches"] == []
    assert find_runs(tmp_path, row="digits") == (folder,)


def test_declaration_names_the_code(tmp_path: Path) -> None:
    """The commit is recorded, whether the code differs from it, and a hash that changes with the difference."""

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "code.py").write_text("a = 1\n")
    git("add", "code.py")
    git("commit", "--quiet", "-m", "code")
    found = []
    for text in ("a = 1\n", "a = 2\n", "a = 3\n"):
        (tmp_path / "code.py").write_text(text)
        folder = open_run(make_resolved(tmp_path / f"runs/digits@1/{len(found)}"), command=COMMAND, root=tmp_path)
        found.append(read_provenance(folder)["git"])
    assert {state["sha"] for state in found} == {git("rev-parse", "HEAD")}
    assert [state["dirty"] for state in found] == [False, True, True]
    assert found[0]["diff_sha256"] is None
    assert found[1]["diff_sha256"] != found[2]["diff_sha256"]


def test_project_without_git_is_declared_all_the_same(tmp_path: Path) -> None:
    """Outside a git checkout nothing is claimed of the code."""
    folder = open_run(make_resolved(tmp_path / "run"), command=COMMAND, root=tmp_path)
    assert read_provenance(folder)["git"] == {"sha": None, "dirty": None, "diff_sha256": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"seed": 3}, "has seed 0, and 3"), ({"recipe": {"optim": {"base_lr": 0.1}}}, "has fingerprint")],
)
def test_other_run_is_never_continued(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    """Another recipe or seed under the same name is refused, and the folder stays byte for byte as it was."""
    folder = open_run(make_resolved(tmp_path / "run"), command=COMMAND, root=tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(RunError, match=message):
        open_run(make_resolved(folder, **changes), command=COMMAND, root=tmp_path)  # type: ignore[arg-type]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_longer_prefix_keeps_the_declaration(tmp_path: Path) -> None:
    """Asking for more iterations changes the execution alone; the declaration is that of the first launch."""
    folder = open_run(make_resolved(tmp_path / "run", until_iteration=10), command=COMMAND, root=tmp_path)
    declared = read_provenance(folder)
    open_run(make_resolved(folder, until_iteration=20), command=("other",), root=tmp_path)
    assert load_config(folder / "config.yaml").execution.until_iteration == 20
    assert read_provenance(folder) == declared


def test_configuration_of_a_living_run_is_left_alone(tmp_path: Path) -> None:
    """While a trainer holds the lock, asking for another length does not change the file that it has read."""
    folder = open_run(make_resolved(tmp_path / "run", until_iteration=10), command=COMMAND, root=tmp_path)
    with (folder / "train.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert is_alive(folder)
        open_run(make_resolved(folder, until_iteration=20), command=COMMAND, root=tmp_path)
        assert load_config(folder / "config.yaml").execution.until_iteration == 10
    assert not is_alive(folder)


def test_folder_of_unknown_origin_is_refused(tmp_path: Path) -> None:
    """Checkpoints without a configuration are nobody's; nothing is written beside them."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(RunError, match=r"no config\.yaml, but checkpoints"):
        open_run(make_resolved(tmp_path / "run"), command=COMMAND, root=tmp_path)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]


def test_damaged_configuration_is_reported(tmp_path: Path) -> None:
    """A configuration with a mistyped key is reported with its file and the key that was meant."""
    folder = open_run(make_resolved(tmp_path / "run"), command=COMMAND, root=tmp_path)
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("seed:", "sed:"))
    with pytest.raises(RunError, match="did you mean seed"):
        open_run(make_resolved(folder), command=COMMAND, root=tmp_path)


def test_unwritable_folder_is_reported(tmp_path: Path) -> None:
    """A run folder that cannot be made is reported with its path and the reason."""
    (tmp_path / "runs").touch()
    with pytest.raises(RunError, match="cannot write the run folder: Not a directory"):
        open_run(make_resolved(tmp_path / "runs" / "main"), command=COMMAND, root=tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_protected_folder_is_reported(tmp_path: Path) -> None:
    """A folder without permission is reported as such."""
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="Permission denied"):
        open_run(make_resolved(tmp_path / "main"), command=COMMAND, root=tmp_path)


def test_launches_are_remembered(tmp_path: Path) -> None:
    """Every launch is noted, the newest job is found again, and a moved folder still finds it."""
    folder = open_run(make_resolved(tmp_path / "run"), command=COMMAND, root=tmp_path)
    assert newest_job(folder) is None
    for _ in range(2):
        job = submit([sys.executable, "-c", ""], folder=folder / "submitit", executor="local", parameters={})
        record_launch(folder, job=job, site="local")
    assert newest_job(folder) == job
    assert [launch["executor"] for launch in read_provenance(folder)["launches"]] == ["local", "local"]
    while is_alive(folder):
        pass
    moved = folder.rename(tmp_path / "moved")
    found = newest_job(moved)
    assert found is not None
    assert found == dataclasses.replace(job, folder=moved / "submitit" / "0002")
    assert found.exit_code() == 0
    shutil.rmtree(moved / "submitit")
    assert newest_job(moved) is None
    assert not is_alive(moved)


def test_state_of_a_failed_run(tmp_path: Path) -> None:
    """The trainer's error is one line: its kind, its message and its place."""
    assert read_state(tmp_path) is None
    error = {"type": "NonFiniteError", "message": "total_loss is nan", "where": "loop.py:120"}
    state = {"state": "failed", "iteration": 7, "of": 40, "images_per_second": 99.5, "error": error}
    (tmp_path / "state.json").write_text(json.dumps(state))
    expected = RunState("failed", 7, 40, 99.5, "NonFiniteError: total_loss is nan (loop.py:120)")
    assert read_state(tmp_path) == expected


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"state": "failed", "error": 3}'])
def test_damaged_state_is_reported(tmp_path: Path, text: str) -> None:
    """A state file that is torn or of another form is an error with its path, not a traceback."""
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(RunError, match=r"state\.json"):
        read_state(tmp_path)


def test_checkpoints_of_a_new_run_may_lie_elsewhere(tmp_path: Path) -> None:
    """On a site with a scratch folder a run's checkpoints lie there, apart from those of a run of the same name."""
    resolved = make_resolved(tmp_path / "project/runs/digits@1/main")
    site = dataclasses.replace(resolved.site, scratch=str(tmp_path / "scratch"))
    resolved = dataclasses.replace(resolved, site=site)
    other = dataclasses.replace(resolved, folder=tmp_path / "other/runs/digits@1/main")
    for run in (resolved, other, resolved):
        folder = open_run(run, command=COMMAND, root=tmp_path)
        (folder / "checkpoints" / "000020").mkdir(exist_ok=True)
    places = [run.folder.joinpath("checkpoints").resolve() for run in (resolved, other)]
    assert places[0] != places[1]
    assert all(place.is_relative_to(tmp_path / "scratch/digits@1") for place in places)
    assert sorted(path.name for path in resolved.folder.iterdir()) == ["checkpoints", "config.yaml", "provenance.json"]
    shutil.rmtree(places[0])
    with pytest.raises(RunError, match="its checkpoints are gone from") as error:
        open_run(resolved, command=COMMAND, root=tmp_path)
    assert "bring them back" in str(error.value.mend)


def test_checkpoints_of_a_removed_run_are_no_new_ones(tmp_path: Path) -> None:
    """What a removed run left in the scratch folder is not taken for a new run's."""
    resolved = make_resolved(tmp_path / "runs/digits@1/main")
    site = dataclasses.replace(resolved.site, scratch=str(tmp_path / "scratch"))
    resolved = dataclasses.replace(resolved, site=site)
    (open_run(resolved, command=COMMAND, root=tmp_path) / "checkpoints" / "000020").mkdir()
    shutil.rmtree(resolved.folder)
    with pytest.raises(RunError, match="of a run that lay in the same folder"):
        open_run(resolved, command=COMMAND, root=tmp_path)
