"""A copy of the rows that a test may spoil, and what comes of loading them."""

import shutil
from pathlib import Path

import pytest

from reproduce.errors import SpecError
from reproduce.spec import load_spec

ROOT = Path(__file__).parents[1]
ROW = "franca-B-in21k"


def copy_rows(folder: Path) -> Path:
    """Make `folder` a project of its own, with the rows as they are; returns it."""
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    return folder


def edit(project: Path, file: str, old: str, new: str) -> int:
    """Replace a text that stands once in a file below experiments/; returns its line."""
    path = project / "experiments" / file
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}"
    path.write_text(text.replace(old, new))
    return text[: text.index(old)].count("\n") + 1


def fail(project: Path, row: str = ROW, *, overrides: tuple[str, ...] = ()) -> SpecError:
    """The error of loading a row."""
    with pytest.raises(SpecError) as caught:
        load_spec(row, root=project, overrides=overrides)
    return caught.value


def place(error: SpecError, project: Path) -> tuple[str, int | None]:
    """The error's file, relative to experiments/, and its line."""
    assert error.path is not None
    return error.path.relative_to(project / "experiments").as_posix(), error.line
