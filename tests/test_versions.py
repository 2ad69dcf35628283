"""Locked versions: no recipe changes under its version, and whatever is no recipe may."""

from pathlib import Path

import pytest
from row_copies import ROW, copy_rows, edit, fail, place

from reproduce.errors import SpecError
from reproduce.spec import load_spec
from reproduce.versions import load_lock, write_lock


def test_changed_recipe_without_a_new_version_is_refused(tmp_path: Path) -> None:
    """A recipe that changed under its version is an error at the version's line that says what to do."""
    project = copy_rows(tmp_path)
    edit(project, f"{ROW}.yaml", "    base_lr: 7.01e-4", "    base_lr: 7.02e-4")
    error = fail(project)
    line = (project / "experiments" / f"{ROW}.yaml").read_text().splitlines().index("version: 2") + 1
    assert place(error, project) == (f"{ROW}.yaml", line)
    assert error.mend is not None
    assert "version: 3" in error.mend
    assert "reproduce lock" in error.mend


def test_changed_recipe_with_a_new_version_is_locked(tmp_path: Path) -> None:
    """A new version is refused until it is locked, loads then, and the old one's fingerprint stays."""
    project = copy_rows(tmp_path)
    before = dict(load_lock(project))
    edit(project, f"{ROW}.yaml", "    base_lr: 7.01e-4", "    base_lr: 7.02e-4")
    edit(project, f"{ROW}.yaml", "version: 2", "version: 3")
    assert fail(project).mend == "reproduce lock"
    assert write_lock(root=project) == (f"{ROW}@3",)
    assert load_spec(ROW, root=project).name == f"{ROW}@3"
    assert before.items() <= load_lock(project).items()


def test_lock_refuses_a_changed_recipe(tmp_path: Path) -> None:
    """Locking is no way around: a version that is locked keeps its recipe."""
    project = copy_rows(tmp_path)
    edit(project, f"{ROW}.yaml", "    base_lr: 7.01e-4", "    base_lr: 7.02e-4")
    before = (project / "experiments" / "versions.lock").read_bytes()
    with pytest.raises(SpecError, match="not the one that was locked"):
        write_lock(root=project)
    assert (project / "experiments" / "versions.lock").read_bytes() == before


def test_comments_margins_and_resources_need_no_new_version(tmp_path: Path) -> None:
    """What does not determine the result may change under a version."""
    project = copy_rows(tmp_path)
    edit(project, f"{ROW}.yaml", "  base_lr: 7.01e-4  #", "  base_lr: 0.000701  # the same number;")
    edit(project, f"{ROW}.yaml", "  knn_points: 0.5", "  knn_points: 0.4")
    edit(project, f"{ROW}.yaml", "  checkpoints_kept: 2", "  checkpoints_kept: 3")
    assert load_spec(ROW, root=project).margins.knn_points == 0.4


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}'])
def test_broken_lock_is_named(text: str, tmp_path: Path) -> None:
    """A lock that is no object of texts is an error of that file."""
    project = copy_rows(tmp_path)
    (project / "experiments" / "versions.lock").write_text(text)
    assert place(fail(project), project)[0] == "versions.lock"
