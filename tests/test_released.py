"""Released weights are downloaded, taken up again, verified, put together and unpacked without trusting anything."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from released_rows import cut, digits, make_project, pack

from reproduce.errors import SpecError, WeightsFileError
from reproduce.released import (
    Joined,
    ReleasedFile,
    choose_release,
    download,
    get_files,
    list_releases,
    unpack,
)
from reproduce.spec import load_spec

DATA = bytes(range(256)) * 40_000  # 10 MB


class Server(BaseHTTPRequestHandler):
    """Serves `DATA` with ranges, once cut off in the middle; notes what was asked of it."""

    cut_at: int | None = None
    etag = "one"
    ranges = True
    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        type(self).asked.append(wanted)
        if self.path == "/absent":
            self.send_error(404)
            return
        start = 0
        if wanted and self.ranges and self.headers.get("If-Range") == self.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(DATA) - start))
        self.send_header("ETag", self.etag)
        self.end_headers()
        end = self.cut_at or len(DATA)
        type(self).cut_at = None
        self.wfile.write(DATA[start:end])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(**settings: object) -> Iterator[tuple[str, type[Server]]]:
    """A server on the loopback, and its class."""
    handler = type("Handler", (Server,), {"asked": [], **settings})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ignore(_: str) -> None:
    pass


def test_download_appears_whole_and_tells_its_progress(tmp_path: Path) -> None:
    """Nothing but the file is left, and every tenth of it was told."""
    said: list[str] = []
    with serving() as (url, _):
        download(f"{url}/model.pth", tmp_path / "weights" / "model.pth", say=said.append)
    assert (tmp_path / "weights" / "model.pth").read_bytes() == DATA
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["model.pth"]
    assert 5 <= len(said) <= 10
    assert all(line.startswith("model.pth: ") and line.endswith(" of 10 MB") for line in said)


@pytest.mark.parametrize(
    ("settings", "etag", "goes_on"),
    [({}, "one", True), ({"ranges": False}, "one", False), ({}, "two", False)],
    ids=["ranges", "no ranges", "another file"],
)
def test_download_that_was_cut_off_goes_on(
    settings: dict[str, object], etag: str, goes_on: bool, tmp_path: Path
) -> None:
    """Where the server still has the same file, only the rest is asked for; else it begins anew, and never mixes."""
    target = tmp_path / "model.pth"
    with serving(**settings, cut_at=3_000_000) as (url, handler):
        with pytest.raises(WeightsFileError, match=r"3,000,000 of 10,240,000 bytes|cannot be downloaded"):
            download(f"{url}/model.pth", target, say=ignore)
        assert not target.exists()
        handler.etag = etag
        download(f"{url}/model.pth", target, say=ignore)
        assert handler.asked == [None, "bytes=3000000-"]
    assert target.read_bytes() == DATA


def test_files_of_the_disk_are_downloads_too(tmp_path: Path) -> None:
    """`file://` addresses work like any other."""
    (tmp_path / "there.pth").write_bytes(DATA)
    download((tmp_path / "there.pth").as_uri(), tmp_path / "here.pth", say=ignore)
    assert (tmp_path / "here.pth").read_bytes() == DATA


def test_download_that_fails_says_how_to_go_on(tmp_path: Path) -> None:
    """An absent file, an absent server: one message with the address, and the mend without a network."""
    with serving() as (url, _), pytest.raises(WeightsFileError, match="404") as caught:
        download(f"{url}/absent", tmp_path / "model.pth", say=ignore)
    assert caught.value.mend is not None
    assert "--file model.pth" in caught.value.mend
    with pytest.raises(WeightsFileError, match="refused"):
        download("http://127.0.0.1:9/model.pth", tmp_path / "model.pth", say=ignore)
    assert not (tmp_path / "model.pth").exists()


def test_releases_are_single_files_or_archives_in_parts() -> None:
    """Three parts are one model; those that sources doubt come last, and 224 px before other sizes."""
    giant = load_spec("franca-G-laion600m")
    (release,) = list_releases(giant)
    assert release.names == tuple(f"franca_vitg14_Laion600M_chunked.tar.gz.part_a{letter}" for letter in "abc")
    assert (release.archive, release.grid_px, release.doubts) == ("franca_vitg14_Laion600M_chunked.tar.gz", 224, ())
    large = choose_release(load_spec("franca-L-laion600m"), px=518)
    assert large.names == ("franca_vitl14_Laion_518.pth",)
    assert choose_release(load_spec("franca-L-laion600m"), px=None).grid_px == 224
    assert choose_release(load_spec("franca-L-in21k"), px=None).doubts
    with pytest.raises(SpecError, match="no weights for 300 px"):
        choose_release(giant, px=300)
    with pytest.raises(SpecError, match="no weights of this row were released"):
        choose_release(load_spec("digits"), px=None)


def make_release(tmp_path: Path, *, content: bytes = b"weights", sha256: str | None = None):
    file = tmp_path / "there" / "model.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    stated = {"sha256": sha256} if sha256 else {}
    project = make_project(tmp_path / "project", weights=[{"url": file.as_uri(), "grid_px": 224, **stated}], metrics={})
    return project, choose_release(digits(project), px=None)


def test_hash_that_is_stated_must_be_the_files(tmp_path: Path) -> None:
    """A file of another hash is not used, however it came; the right one is marked as known."""
    right = hashlib.sha256(b"weights").hexdigest()
    project, release = make_release(tmp_path / "right", sha256=right)
    (file,) = get_files(release, root=project, given=(), say=ignore)
    assert (file.sha256, file.known) == (right, True)
    project, release = make_release(tmp_path / "wrong", sha256="0" * 64)
    with pytest.raises(WeightsFileError, match=f"its SHA-256 is {right}, not 0000.*stated by the row"):
        get_files(release, root=project, given=(), say=ignore)


def test_hash_that_nobody_stated_is_recorded(tmp_path: Path) -> None:
    """The first file's hash is kept beside it, and a file that changed since is refused; it is fetched once."""
    project, release = make_release(tmp_path)
    (first,) = get_files(release, root=project, given=(), say=ignore)
    assert not first.known
    assert first.path.with_name("model.pth.sha256").read_text() == f"{first.sha256}  model.pth\n"
    (tmp_path / "there" / "model.pth").unlink()
    assert get_files(release, root=project, given=(), say=ignore) == (first,)
    first.path.write_bytes(b"others")
    with pytest.raises(WeightsFileError, match=r"recorded in .*model\.pth\.sha256") as caught:
        get_files(release, root=project, given=(), say=ignore)
    assert caught.value.mend is not None


def test_given_files_stand_in_for_downloads(tmp_path: Path) -> None:
    """One for each part, in their order; a missing one and a wrong number are told."""
    project, release = make_release(tmp_path)
    mine = tmp_path / "mine.pth"
    with pytest.raises(WeightsFileError, match="no such file"):
        get_files(release, root=project, given=[mine], say=ignore)
    mine.write_bytes(b"mine")
    (file,) = get_files(release, root=project, given=[mine], say=ignore)
    assert (file.path, file.name) == (mine, "model.pth")
    with pytest.raises(WeightsFileError, match="2 files for 1"):
        get_files(release, root=project, given=[mine, mine], say=ignore)


def as_release(paths: list[Path], tmp_path: Path):
    """The release whose parts these are, and its files."""
    weights = [{"url": path.as_uri(), "grid_px": 224} for path in paths]
    release = choose_release(digits(make_project(tmp_path / "project", weights=weights, metrics={})), px=None)
    files = [
        ReleasedFile(path.name, None, path, hashlib.sha256(path.read_bytes()).hexdigest(), False) for path in paths
    ]
    return release, files


@pytest.mark.parametrize("parts", [1, 3])
def test_parts_become_the_weights_file_that_they_hold(parts: int, tmp_path: Path) -> None:
    """Whatever else and under whatever name: the one weights file arrives, under the archive's own name, once."""
    members = {"x/README.txt": b"hello", "deep/er/model.pth": DATA[:100_000], "../../../escaped.txt": b"out"}
    release, files = as_release(pack(members, parts=parts, folder=tmp_path), tmp_path)
    folder = tmp_path / "a" / "weights"
    file = unpack(release, files, folder=folder, say=ignore)
    assert file == folder / "model.pth"
    assert file.read_bytes() == DATA[:100_000]
    assert sorted(path.name for path in folder.iterdir()) == ["model.pth", "model.tar.gz.unpacked.json"]
    assert not list(tmp_path.rglob("escaped*"))
    before = file.stat().st_mtime_ns
    assert unpack(release, files, folder=folder, say=ignore).stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["../../evil.pth", "/tmp/evil.pth", "a/../../evil.pth"])
def test_members_never_escape(name: str, tmp_path: Path) -> None:
    """A weights file that is named to lie elsewhere lands where it belongs, under our name."""
    release, files = as_release(pack({name: b"data"}, parts=2, folder=tmp_path), tmp_path)
    file = unpack(release, files, folder=tmp_path / "a" / "b", say=ignore)
    assert file == tmp_path / "a" / "b" / "model.pth"
    assert not list(tmp_path.rglob("evil*"))
    assert not Path("/tmp/evil.pth").exists()


def test_links_and_devices_are_not_followed(tmp_path: Path) -> None:
    """A link that is named like weights is no weights file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("model.pth")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    release, files = as_release(cut(buffer.getvalue(), parts=1, folder=tmp_path, name="model.tar.gz"), tmp_path)
    with pytest.raises(WeightsFileError, match="holds no weights file"):
        unpack(release, files, folder=tmp_path / "out", say=ignore)
    assert not list((tmp_path / "out").iterdir())


def test_damaged_archives_are_told_and_leave_nothing(tmp_path: Path) -> None:
    """Half an archive, other bytes, parts in the wrong order, two weights files."""
    whole = pack({"model.pth": DATA}, parts=2, folder=tmp_path)
    two = pack({"a.pth": b"a", "b.pth": b"b"}, parts=1, folder=tmp_path, name="two.tar.gz")
    noise = cut(b"no archive" * 100, parts=1, folder=tmp_path, name="noise.tar.gz")
    cases = [(whole[:1], "damaged"), (noise, "damaged"), (two, "several weights files")]
    for number, (paths, said) in enumerate(cases):
        release, files = as_release(paths, tmp_path / str(number))
        with pytest.raises(WeightsFileError, match=said):
            unpack(release, files, folder=tmp_path / str(number) / "out", say=ignore)
        assert not list((tmp_path / str(number) / "out").iterdir())
    release, files = as_release(whole, tmp_path / "order")
    with pytest.raises(WeightsFileError, match="damaged"):
        unpack(release, files[::-1], folder=tmp_path / "order" / "out", say=ignore)


def test_joined_files_read_as_one(tmp_path: Path) -> None:
    """In pieces of any size, over empty files too."""
    paths = []
    for number, data in enumerate((b"abc", b"", b"defg", b"")):
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(data)
    for size in (1, 2, 5, 100):
        with Joined(paths) as joined:
            assert b"".join(iter(lambda: joined.read(size), b"")) == b"abcdefg"  # noqa: B023
