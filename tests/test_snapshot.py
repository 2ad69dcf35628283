"""The code of a job: what is copied, and that the copy is what runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import reproduce
from reproduce.snapshot import snapshot_environment, snapshot_path, take_snapshot

PRINT_ORIGIN = "import franca, reproduce.launch; print(franca.__file__, reproduce.launch.__file__)"


def test_snapshot_is_all_that_is_imported(tmp_path: Path) -> None:
    """A copy holds every source file, byte for byte, and nothing compiled."""
    copy = take_snapshot(tmp_path / "code")
    source = Path(reproduce.__path__[0])
    names = {path.relative_to(source) for path in source.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {path.relative_to(copy / "reproduce") for path in (copy / "reproduce").rglob("*") if path.is_file()} == names
    assert all((copy / "reproduce" / name).read_bytes() == (source / name).read_bytes() for name in names)
    assert (copy / "franca" / "train" / "__main__.py").is_file()


def test_equal_code_is_copied_once(tmp_path: Path) -> None:
    """A second snapshot of the same code is the first one; its place is known before it is taken."""
    expected = snapshot_path(tmp_path)
    assert not list(tmp_path.iterdir())
    assert take_snapshot(tmp_path) == take_snapshot(tmp_path) == expected
    assert [path.name for path in tmp_path.iterdir()] == [expected.name]


def test_copy_is_imported_before_the_project(tmp_path: Path) -> None:
    """A job's Python takes the copy, though it starts in the project's own folder and has the project installed."""
    copy = take_snapshot(tmp_path)
    environment = {**os.environ, **snapshot_environment(copy, os.environ)}
    command = [sys.executable, "-c", PRINT_ORIGIN]
    root = Path(reproduce.__path__[0]).parent
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(copy / "franca" / "__init__.py"), str(copy / "reproduce" / "launch.py")]


def test_later_edit_does_not_reach_a_snapshot(tmp_path: Path) -> None:
    """Changed code has another copy, and the first one stays as it was."""
    first = take_snapshot(tmp_path / "code")
    changed = tmp_path / "changed"
    changed.mkdir()
    (first / "franca").rename(changed / "franca")
    (first / "reproduce").rename(changed / "reproduce")
    shutil.rmtree(first)
    with (changed / "franca" / "config.py").open("a") as file:
        file.write("# edited\n")
    script = (
        "import sys; from pathlib import Path; from reproduce.snapshot import take_snapshot\n"
        "print(take_snapshot(Path(sys.argv[1])))"
    )
    environment = {**os.environ, **snapshot_environment(changed, {})}
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "code")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    other = Path(result.stdout.strip())
    assert take_snapshot(tmp_path / "code") == first != other
    assert (other / "franca" / "config.py").read_text().endswith("# edited\n")
    assert not (first / "franca" / "config.py").read_text().endswith("# edited\n")
