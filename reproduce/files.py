"""Files as a run folder needs them: appearing whole, read from the end, locked by a living process, named shortly."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reproduce.quantities import printable


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file that a reader, or a crash, finds either as it was or complete."""
    data = content.encode() if isinstance(content, str) else content
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read_tail(path: Path, *, size: int) -> str:
    """The last `size` bytes of a file as text, from the first whole line in them on."""
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - size - 1))
        data = file.read()
    if length > size:
        data = data[data.find(b"\n") + 1 :]
    return data.decode(errors="replace")


def is_locked(path: Path) -> bool:
    """Whether a living process holds an flock on `path`; a missing file is not locked."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def held(path: Path) -> Iterator[None]:
    """An exclusive lock on `path`, waited for: two harnesses that start at once must not start two jobs."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def unwritable(folder: Path) -> str | None:
    """Why a folder cannot be written in, or not be made; None where it can. Nothing is left there."""
    try:
        if not folder.exists():
            return unwritable(folder.parent)
        tempfile.TemporaryDirectory(dir=folder).cleanup()
    except OSError as error:
        return error.strerror
    return None


def short_path(path: Path) -> str:
    """A path as it can be typed here, relative below the working directory; what cannot be printed is replaced."""
    return printable(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
