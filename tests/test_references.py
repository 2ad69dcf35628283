"""Published logs come from a real server and are verified by the hash that git gives them."""

import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reproduce.errors import LogError
from reproduce.references import fetch_reference, load_references
from reproduce.spec import PublishedLog

LINE = (
    "I20260308 08:02:33 116690 franca helpers.py:102] Training  [   0/100]  eta: 0:10:00  lr: 0.0000 (0.0000)  "
    "total_loss: 14.8144 (14.8144)  time: 5.363747  data: 3.722965  max mem: 1234\n"
)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test says what matters."""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    """A server of tmp_path/served, with the file of one commit."""
    file = tmp_path / "served" / "owner" / "repo" / "c0ffee" / "logs" / "a.txt"
    file.parent.mkdir(parents=True)
    file.write_text(LINE)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=tmp_path / "served")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def published(text: str = LINE, *, path: str = "logs/a.txt") -> PublishedLog:
    sha1 = subprocess.run(["git", "hash-object", "--stdin"], input=text.encode(), capture_output=True, check=True)
    return PublishedLog("published", "owner/repo", "c0ffee", path, sha1.stdout.decode().strip(), ("log/a.txt",), None)


def test_log_is_fetched_once_and_judged_by(host: str, tmp_path: Path) -> None:
    """The file that was published is written, read as a history, and not downloaded again."""
    path = fetch_reference(published(), root=tmp_path, host=host)
    assert path.read_text() == LINE
    (history,) = load_references(published(), root=tmp_path)
    assert history.done == 1
    assert fetch_reference(published(), root=tmp_path, host="http://127.0.0.1:1") == path


def test_other_content_is_refused(host: str, tmp_path: Path) -> None:
    """A server that answers with another file is not believed, and nothing is written."""
    with pytest.raises(LogError, match="is not the published log"):
        fetch_reference(published(LINE + LINE), root=tmp_path, host=host)
    assert not (tmp_path / "log").exists()


def test_changed_copy_is_refused(tmp_path: Path) -> None:
    """A reference that was edited here is no reference."""
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "a.txt").write_text(LINE.replace("14.8144", "14.8145"))
    with pytest.raises(LogError, match="is not the published log"):
        load_references(published(), root=tmp_path)


@pytest.mark.parametrize("path", ["logs/missing.txt", "logs/missing folder/a.txt"])
def test_failed_download_says_what_to_do(host: str, tmp_path: Path, path: str) -> None:
    """Without the file on the server the message names the address and where to put the file by hand."""
    with pytest.raises(LogError, match="cannot be downloaded") as error:
        fetch_reference(published(path=path), root=tmp_path, host=host)
    assert str(tmp_path / "log" / "a.txt") in str(error.value)


def test_log_that_was_never_published(tmp_path: Path) -> None:
    """A row whose log does not exist has no references, and nothing to fetch."""
    log = PublishedLog("never published", "owner/repo", None, "logs/b.txt", None, (), None)
    assert load_references(log, root=tmp_path) == ()
    with pytest.raises(LogError, match="never published"):
        fetch_reference(log, root=tmp_path)
