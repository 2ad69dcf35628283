"""A row's released weights in, their file out: downloaded or taken from disk, hashed, put together and unpacked.

Files lie in `weights/ROW/` of the project. A download that was cut off goes on where it stopped. Archives come from
strangers: of one, a single weights file is taken, under a name of ours; nothing else in it is ever written.
"""

import hashlib
import http.client
import io
import json
import re
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reproduce.errors import SpecError, WeightsFileError
from reproduce.files import short_path, write_whole
from reproduce.spec import Spec, Weights

TIMEOUT_S = 60
PIECE_BYTES = 2**20
PART = re.compile(r"(?P<archive>.+?\.tar\.gz)(\.part_?[a-z0-9]+)?")
SUFFIXES = (".pth", ".pt", ".safetensors")
DAMAGES = (tarfile.TarError, EOFError, zlib.error, OSError)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Release:
    """The files that together hold one model: one, or the parts of an archive in their order."""

    row: str
    files: tuple[Weights, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple((file.url or "").rpartition("/")[2] for file in self.files)

    @property
    def archive(self) -> str | None:
        """The archive's name where the model lies in one, e.g. `model.tar.gz` of `model.tar.gz.part_aa`."""
        match = PART.fullmatch(self.names[0])
        return match["archive"] if match else None

    @property
    def grid_px(self) -> int | None:
        return self.files[0].grid_px

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is wrong with the files by their sources, with the notes; empty where they are simply published."""
        wrong = (file for file in self.files if file.status != "published")
        return tuple(dict.fromkeys(f"{file.status}{f': {file.note}' if file.note else ''}" for file in wrong))


@dataclass(frozen=True)
class ReleasedFile:
    """One file as it lies here. `known` says whether its hash was stated beforehand, or is only recorded."""

    name: str
    url: str | None
    path: Path
    sha256: str
    known: bool


def list_releases(spec: Spec) -> tuple[Release, ...]:
    """The row's released models, those that are simply published first, else in the spec's order."""
    groups: dict[str, list[Weights]] = {}
    for file in spec.weights:
        if file.url is not None:
            match = PART.fullmatch(file.url)
            groups.setdefault(match["archive"] if match else file.url, []).append(file)
    releases = [Release(spec.row, tuple(sorted(files, key=lambda file: file.url or ""))) for files in groups.values()]
    return tuple(sorted(releases, key=lambda release: bool(release.doubts)))


def choose_release(spec: Spec, *, px: int | None) -> Release:
    """The first release for images of `px` pixels; of any size where none is asked for, 224 before others.

    Raises `SpecError` where the row has none.
    """
    releases = list_releases(spec)
    if not releases:
        raise SpecError("no weights of this row were released", path=spec.path, mend="train it: reproduce run")
    fitting = [release for release in releases if px is None or release.grid_px == px]
    if not fitting:
        sizes = ", ".join(sorted({str(release.grid_px) for release in releases}))
        raise SpecError(f"no weights for {px} px were released", path=spec.path, mend=f"released sizes: {sizes} px")
    return min(fitting, key=lambda release: (bool(release.doubts), release.grid_px != 224))


def get_files(release: Release, *, root: Path, given: Sequence[Path], say: Say) -> tuple[ReleasedFile, ...]:
    """The release's files: those `given`, in the order of its parts, else downloaded, unless they are here already.

    Raises `WeightsFileError` on a download that fails, a file that is absent, or one of another hash than stated or
    recorded when it first came.
    """
    if given and len(given) != len(release.files):
        names = ", ".join(release.names)
        raise WeightsFileError(f"{len(given)} files for {len(release.files)}", mend=f"--file for each of {names}")
    found = []
    for index, (file, name) in enumerate(zip(release.files, release.names, strict=True)):
        path = given[index] if given else root / "weights" / release.row / name
        if given and not path.is_file():
            raise WeightsFileError("no such file", path=path, mend="give the path of a file that is here")
        if not path.is_file():
            assert file.url is not None
            download(file.url, path, say=say)
        found.append(ReleasedFile(name, file.url, path, _verify(file, path), file.sha256 is not None))
    return tuple(found)


def download(url: str, target: Path, *, say: Say) -> None:
    """Fetch a file, going on with what is here of it; it appears whole. Raises `WeightsFileError`."""
    part, tag = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.etag")
    target.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.is_file() and tag.is_file() else 0
    headers = {"Range": f"bytes={have}-", "If-Range": tag.read_text()} if have else {}
    mend = f"the same command goes on; without a network, bring the file here and give it with --file {target.name}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as answer:
            goes_on = getattr(answer, "status", None) == http.HTTPStatus.PARTIAL_CONTENT
            have = have if goes_on else 0
            tag.write_text(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "unknown")
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length else None
            with part.open("ab" if goes_on else "wb") as file:
                for done in _copy(answer, file, start=have):
                    if total and done * 10 // total > max(done - PIECE_BYTES, 0) * 10 // total:
                        say(f"{target.name}: {done / 2**20:,.0f} of {total / 2**20:,.0f} MB")
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise WeightsFileError(f"{url} cannot be downloaded: {error}", mend=mend) from error
    if total is not None and part.stat().st_size != total:
        raise WeightsFileError(
            f"{url}: the connection ended after {part.stat().st_size:,} of {total:,} bytes", mend=mend
        )
    part.replace(target)
    tag.unlink()


def unpack(release: Release, files: Sequence[ReleasedFile], *, folder: Path, say: Say) -> Path:
    """The model's weights file: the one file itself, or the only one in the archive that the files make together.

    An archive's lands in `folder`, once. Raises `WeightsFileError` on a damaged archive and on one that holds no or
    several weights files.
    """
    if release.archive is None:
        return files[0].path
    marker = folder / f"{release.archive}.unpacked.json"
    hashes = [file.sha256 for file in files]
    if marker.is_file():
        record = json.loads(marker.read_text())
        if record["parts"] == hashes and (folder / record["file"]).is_file():
            return folder / str(record["file"])
    say(f"{release.archive}: unpacking")
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{release.archive}.draft"
    try:
        suffix = _extract_only(files, draft, name=release.archive)
        target = folder / (release.archive.removesuffix(".tar.gz") + suffix)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    write_whole(marker, json.dumps({"parts": hashes, "file": target.name}) + "\n")
    return target


def _extract_only(files: Sequence[ReleasedFile], draft: Path, *, name: str) -> str:
    """Write the only weights file of an archive to `draft`; returns its suffix. Names in the archive are not used."""
    suffix = None
    mend = "delete its parts and fetch them again, or give others with --file"
    try:
        with (
            Joined([file.path for file in files]) as raw,
            tarfile.open(fileobj=io.BufferedReader(raw), mode="r|gz") as tar,
        ):
            for member in tar:
                if not member.isfile() or Path(member.name).suffix not in SUFFIXES:
                    continue
                if suffix is not None:
                    raise WeightsFileError("holds several weights files, one belongs in it", path=name, mend=mend)
                suffix = Path(member.name).suffix
                free = shutil.disk_usage(draft.parent).free
                if member.size > free:
                    needs = f"{member.size / 2**30:,.1f} GB are needed and {free / 2**30:,.1f} GB are free"
                    raise WeightsFileError(f"does not fit on the disk: {needs}", path=draft.parent, mend="make room")
                content = tar.extractfile(member)
                assert content is not None
                with draft.open("wb") as file:
                    shutil.copyfileobj(content, file, PIECE_BYTES)
    except DAMAGES as error:
        raise WeightsFileError(f"damaged, or no archive: {error}", path=name, mend=mend) from error
    if suffix is None:
        raise WeightsFileError("holds no weights file", path=name, mend=mend)
    return suffix


class Joined(io.RawIOBase):
    """Files read one after another as one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = iter([path.open("rb") for path in paths])
        self._file = next(self._files, None)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while self._file is not None:
            count = self._file.readinto(buffer)
            if count:
                return count
            self._file.close()
            self._file = next(self._files, None)
        return 0

    def close(self) -> None:
        for file in (self._file, *self._files):
            if file is not None:
                file.close()
        self._file = None
        super().close()


def _verify(file: Weights, path: Path) -> str:
    """The file's SHA-256, which must be the one stated in the spec, else the one recorded when it first came."""
    with path.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    record = path.with_name(f"{path.name}.sha256")
    expected = file.sha256 or (record.read_text().split()[0] if record.is_file() else None)
    if expected is None:
        try:
            write_whole(record, f"{found}  {path.name}\n")
        except OSError:  # a file that was given may lie where nothing can be written; the verdict names its hash
            return found
    elif expected != found:
        stated = "stated by the row" if file.sha256 else f"recorded in {short_path(record)}"
        mend = f"delete {short_path(path)} and fetch it again"
        raise WeightsFileError(f"its SHA-256 is {found}, not {expected}, {stated}", path=path, mend=mend)
    return found


def _copy(source: io.BufferedIOBase, target: io.BufferedIOBase, *, start: int) -> Iterator[int]:
    """Copy piece by piece; after each, how many bytes there are."""
    while piece := source.read(PIECE_BYTES):
        target.write(piece)
        start += len(piece)
        yield start
