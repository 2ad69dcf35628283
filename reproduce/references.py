"""A row's published log in, the histories that its runs are held against out: fetched once, verified by git's hash."""

import hashlib
import http.client
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from reproduce.errors import LogError
from reproduce.files import write_whole
from reproduce.lineage import History, load_history
from reproduce.spec import PublishedLog

GITHUB = "https://raw.githubusercontent.com"
TIMEOUT_S = 60


def load_references(log: PublishedLog, *, root: Path) -> tuple[History, ...]:
    """The histories of a row's reference logs that are here; none where it was never published or not fetched yet.

    Raises `LogError` where a file is not the one that was published.
    """
    here = [path for paths in log.here(root).values() for path in paths]
    for path in here:
        if path.is_file():
            _check_hash(path.read_bytes(), log=log, where=str(path))
    return tuple(load_history(path) for path in here)


def fetch_reference(log: PublishedLog, *, root: Path, host: str = GITHUB) -> Path:
    """Download a published log at its pinned commit, verify it, and return its path; one that is here is verified.

    Raises `LogError` where there is nothing to fetch, the download fails, or the file is not the one published.
    """
    if log.state != "published" or log.commit is None or len(log.local) != 1:
        raise LogError(f"the row's log is {log.state}: there is nothing to fetch")
    path = root / log.local[0]
    if not path.exists():
        url = f"{host}/{urllib.parse.quote(f'{log.repository}/{log.commit}/{log.path}')}"
        data = _download(url, mend=f"download it by hand and put it at {path}")
        _check_hash(data, log=log, where=url)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    _check_hash(path.read_bytes(), log=log, where=str(path))
    return path


def _download(url: str, *, mend: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            data: bytes = answer.read()
            return data
    except urllib.error.HTTPError as error:
        with error:
            raise LogError(f"{url} cannot be downloaded: {error}", mend=mend) from error
    except (OSError, http.client.HTTPException) as error:
        raise LogError(f"{url} cannot be downloaded: {error}", mend=mend) from error


def _check_hash(data: bytes, *, log: PublishedLog, where: str) -> None:
    """Compare with the hash that `git ls-tree` shows for the published file, where the row states it."""
    found = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    if log.blob_sha1 not in (None, found):
        raise LogError(
            f"{where} is not the published log: its git hash is {found}, not {log.blob_sha1}",
            mend="fetch the file at the commit that the row names, with its line ends as they are",
        )
