"""Files that appear whole, tails that start with a whole line, locks that die with their holder."""

import subprocess
import sys
from pathlib import Path

import pytest

from reproduce.files import is_locked, read_tail, unwritable, write_whole


def test_is_locked_sees_the_lock_of_another_process(tmp_path: Path) -> None:
    """A lock is seen while its holder lives and is gone the moment it is killed."""
    path = tmp_path / "lock"
    assert not is_locked(path)
    script = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert is_locked(path)
        holder.kill()
    assert not is_locked(path)


def test_folder_that_can_be_made_is_told_from_one_that_cannot(tmp_path: Path) -> None:
    """The nearest folder above that is there says it; nothing is made, nor left behind."""
    (tmp_path / "file").touch()
    assert unwritable(tmp_path / "new" / "folder") is None
    assert unwritable(tmp_path / "file") == "Not a directory"
    assert unwritable(tmp_path / "file" / "folder") == "Not a directory"
    assert unwritable(Path("/proc/nowhere"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("size", "expected"), [(2, ""), (3, "de\n"), (6, "de\n"), (7, "abc\nde\n"), (100, "abc\nde\n")]
)
def test_tail_starts_with_a_whole_line(tmp_path: Path, size: int, expected: str) -> None:
    """The tail of a file never begins in the middle of a line."""
    path = tmp_path / "log"
    path.write_text("abc\nde\n")
    assert read_tail(path, size=size) == expected


def test_write_replaces_a_file_at_once(tmp_path: Path) -> None:
    """A file that is open for reading keeps its old text; a new reader finds the new one, and no draft is left."""
    path = tmp_path / "state.json"
    write_whole(path, "old")
    with path.open() as file:
        write_whole(path, "new")
        assert file.read() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """Text that cannot be encoded leaves the file as it was and no draft beside it."""
    path = tmp_path / "state.json"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
