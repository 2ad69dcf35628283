"""Tar archives of images: an archive in, where its images lie in it out; then bytes by place, nothing ever unpacked.

Names in an archive are only for people: no path is made of them, so one that climbs out of a folder leads nowhere.
"""

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from franca.data.errors import UnreadableImageError
from franca.data.images import BYTES_MAX, SUFFIXES, printable

Read = Callable[[int, int], bytes]  # (size, offset): fewer bytes at the end of the file

BLOCK = 512  # POSIX pax: what headers and contents are padded to
EXTENSION_MAX = 1 << 20  # bytes of a long name or of pax records; more is no name
REGULAR, WITHOUT_CONTENT, PAX, LONG_NAMES, DIRECTORY, SPARSE = b"07\0", b"123456", b"xg", b"LK", b"5", b"S"
KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a pipe",
    SPARSE: "a sparse file",
}
COMPANIONS = (".txt", ".json")  # of an image in img2dataset's shards
# A length in decimal digits, a space, a key and "="; the length counts all of it, its value and the final newline.
PAX_RECORD = re.compile(rb"(\d{1,19}) ([^=]*)=")
PAX_SIZE = re.compile(rb"\d{1,19}")  # of 64 bits
OPEN_FILES = 128  # per worker; a process may usually hold 1,024


@dataclass(frozen=True)
class Member:
    """An image in an archive: its content begins at byte `offset` and has `size` bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Header:
    """One header block; `name` and `size` are what it says itself, extensions may say otherwise."""

    name: bytes
    size: int
    kind: bytes
    extended: bool


def scan_archive(path: str) -> tuple[list[Member], list[str], str]:
    """The images of a tar archive in its order, a line for every other member, and what is wrong with the archive.

    Understands ustar, GNU and pax. Plain directory entries are passed over in silence. Of two members of one name the
    later counts, as unpacking would have it. A torn or damaged archive gives the members before the damage, one that
    cannot be read none; the last text is empty for one that is whole.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return [], [], f"cannot be opened: {error.strerror}"
    try:
        return _scan(lambda size, offset: os.pread(descriptor, size, offset), os.fstat(descriptor).st_size)
    except OSError as error:
        return [], [], f"cannot be read: {error.strerror}"
    finally:
        os.close(descriptor)


def parse_header(block: bytes) -> Header | None:
    """A header block of 512 bytes; None where the checksum says that it is none."""
    try:
        written = _parse_number(block[148:156])
        size = _parse_number(block[124:136])
    except (ValueError, IndexError):
        return None
    if len(block) != BLOCK or written != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        return None
    name, kind = block[:100].split(b"\0")[0], block[156:157]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].split(b"\0")[0]):
        name = prefix + b"/" + name
    return Header(name, size, kind, extended=kind == SPARSE and block[482] != 0)


class OpenArchives:
    """Reads members of many archives below a folder, the last `OPEN_FILES` of which stay open. One per process."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.descriptors: OrderedDict[str, int] = OrderedDict()

    def read(self, archive: str, *, offset: int, size: int) -> tuple[bytes, str]:
        """A member's bytes and its name for messages. Raises `UnreadableImageError` where it is not there any more."""
        place = f"{self.root}/{archive}"
        try:
            content = os.pread(self._open(archive), BLOCK + size, offset - BLOCK)
        except OSError as error:
            raise UnreadableImageError(f"{place}, byte {offset}: {error.strerror}") from error
        header = parse_header(content[:BLOCK])
        if header is None:
            raise UnreadableImageError(f"{place}, byte {offset}: no member here; the archive is not the indexed one")
        name = f"{place}/{printable(header.name)}"
        if len(content) != BLOCK + size:
            raise UnreadableImageError(f"{name}: the archive ends after {len(content) - BLOCK} of its {size} bytes")
        return content[BLOCK:], name

    def _open(self, archive: str) -> int:
        descriptor = self.descriptors.pop(archive, None)
        if descriptor is None:
            if len(self.descriptors) >= OPEN_FILES:
                os.close(self.descriptors.popitem(last=False)[1])
            descriptor = os.open(f"{self.root}/{archive}", os.O_RDONLY | os.O_CLOEXEC)
        self.descriptors[archive] = descriptor
        return descriptor

    def __del__(self) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)


def _scan(read: Read, length: int) -> tuple[list[Member], list[str], str]:
    """`scan_archive` of `length` bytes that `read(size, offset)` gives."""
    members: dict[str, Member] = {}
    problems: list[str] = []
    damage = ""
    try:
        for member, kind in _walk(read, length):
            problem = _describe_problem(member, kind)
            if problem:
                problems.append(f"{member.name}: {problem}")
            elif kind in REGULAR and member.name.lower().endswith(SUFFIXES):
                if member.name in members:
                    problems.append(f"{member.name}: twice in the archive, the earlier one is left out")
                    del members[member.name]
                members[member.name] = member
    except _DamagedArchive as error:
        damage = str(error)
    return list(members.values()), problems, damage


def _describe_problem(member: Member, kind: bytes) -> str:
    """Why a member is no image to train on; empty for images, directories and what img2dataset puts beside an image."""
    name = member.name
    if kind == DIRECTORY or name.endswith("/"):
        return ""
    if kind not in REGULAR:
        return KINDS.get(kind, f"a member of the unknown kind {kind!r}")
    if name.startswith("/") or ".." in name.split("/"):
        return "a name that leads out of the archive's folder"
    if not name.lower().endswith(SUFFIXES):
        return "" if name.endswith(COMPANIONS) else "not an image by its name"
    if not 0 < member.size < BYTES_MAX:
        return f"{member.size:,} bytes" if member.size else "an empty file"
    return ""


def _walk(read: Read, length: int) -> Iterator[tuple[Member, bytes]]:
    """Every member with its kind, in order. Raises `_DamagedArchive` where the archive goes on with anything else."""
    offset = 0
    said: dict[str, Any] = {}  # by extension headers of the member that follows them
    while True:
        block = read(BLOCK, offset)
        if len(block) < BLOCK:
            raise _DamagedArchive(f"byte {offset}: no end mark, the archive may be cut off")
        if not any(block):
            return
        header = parse_header(block)
        if header is None:
            raise _DamagedArchive(f"byte {offset}: not a tar header, {length - offset:,} bytes from here on are lost")
        start = offset + BLOCK
        if header.kind in PAX or header.kind in LONG_NAMES:
            said |= _parse_extension(header, read(min(header.size, EXTENSION_MAX), start), offset=offset)
            offset = _padded(start + header.size)
            continue
        while header.extended and block[482 if offset == start - BLOCK else 504]:
            block, start = read(BLOCK, start).ljust(BLOCK, b"\0"), start + BLOCK
        name, kind = printable(said.get("path", header.name)), said.get("kind", header.kind)
        size = 0 if header.kind in WITHOUT_CONTENT else said.get("size", header.size)
        if start + size > length:
            raise _DamagedArchive(f"{name}: cut off, {length - start:,} of its {size:,} bytes are there")
        yield Member(name, start, size), kind
        offset, said = _padded(start + size), {}


def _parse_extension(header: Header, content: bytes, *, offset: int) -> dict[str, Any]:
    """What a pax or GNU extension header says of the next member: its path, size or that it is sparse."""
    if len(content) < header.size:
        raise _DamagedArchive(
            f"byte {offset}: an extension header of {header.size:,} bytes, {len(content):,} are there"
        )
    if header.kind == b"L":
        return {"path": content.rstrip(b"\0")}
    said: dict[str, Any] = {}
    position = 0
    while header.kind == b"x" and position < len(content):
        record = PAX_RECORD.match(content, position)
        end = position + int(record[1]) if record else 0
        if record is None or end <= record.end() or end > len(content):
            raise _DamagedArchive(f"byte {offset}: pax records that cannot be read")
        key, value = record[2], content[record.end() : end - 1]
        position = end
        if key.startswith(b"GNU.sparse"):
            said["kind"] = SPARSE
        elif key == b"path":
            said["path"] = value
        elif key == b"size":
            if not PAX_SIZE.fullmatch(value):
                raise _DamagedArchive(f"byte {offset}: pax records that cannot be read")
            said["size"] = int(value)
    return said


def _parse_number(digits: bytes) -> int:
    """A number of a header, never negative: octal digits, or GNU's binary form. Raises `ValueError`."""
    if digits[0] == 0o200:
        return int.from_bytes(digits[1:], "big")
    number = int(digits.split(b"\0")[0].strip() or b"0", 8)
    if number < 0:
        raise ValueError(f"{number} bytes")  # would lead back to an earlier header, for ever
    return number


def _padded(offset: int) -> int:
    return -(-offset // BLOCK) * BLOCK


class _DamagedArchive(Exception):  # noqa: N818 - a way out of the walk, not an error of the user's
    """Where an archive stops being one."""
