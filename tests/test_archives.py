"""Archives are read as tar itself reads them, and damage costs no more than what it damaged."""

import os
import tarfile
from pathlib import Path

import pytest
from hostile_images import encode, make_photo, make_tar, write_hostile_archives
from hypothesis import given
from hypothesis import strategies as st

from franca.data.archives import OPEN_FILES, OpenArchives, scan_archive
from franca.data.errors import UnreadableImageError

JPEG = encode(make_photo(), "JPEG")
NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=140)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    write_hostile_archives(folder)
    return folder


def count_open() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def read_all(path: Path) -> dict[str, bytes]:
    members, _, _ = scan_archive(str(path))
    archives = OpenArchives(str(path.parent))
    return {member.name: archives.read(path.name, offset=member.offset, size=member.size)[0] for member in members}


@given(
    names=st.lists(NAMES, unique=True, max_size=8),
    sizes=st.lists(st.integers(1, 2000), min_size=8, max_size=8),
    kind=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_archive_is_read_as_tarfile_reads_it(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], sizes: list[int], kind: int
) -> None:
    """Names of any length and alphabet, in all three formats: the members and bytes that the standard library finds."""
    path = tmp_path_factory.mktemp("archive") / "x.tar"
    contents = {f"{name}.jpg": bytes([size % 251]) * size for name, size in zip(names, sizes, strict=False)}
    if kind == tarfile.USTAR_FORMAT:
        contents = {f"{number}.jpg": content for number, content in enumerate(contents.values())}
    make_tar(path, contents, kind=kind)
    with tarfile.open(path) as archive:
        expected = [(member.name, member.offset_data, member.size) for member in archive]
    members, problems, damage = scan_archive(str(path))
    printed = [name if name.isprintable() else ascii(name)[1:-1] for name, _, _ in expected]
    assert [(member.name, member.offset, member.size) for member in members] == [
        (name, offset, size) for name, (_, offset, size) in zip(printed, expected, strict=True)
    ]
    assert (problems, damage) == ([], "")
    assert list(read_all(path).values()) == list(contents.values())


@given(cut=st.integers(0, 12_000), flips=st.lists(st.tuples(st.integers(0, 11_999), st.integers(0, 255)), max_size=3))
def test_damage_never_raises(tmp_path_factory: pytest.TempPathFactory, cut: int, flips: list[tuple[int, int]]) -> None:
    """Whatever is cut off or overwritten, the scan ends, and every image that it names lies within the file."""
    path = tmp_path_factory.mktemp("archive") / "x.tar"
    make_tar(path, {f"{'n' * 60}/{number}é.jpg": JPEG for number in range(4)})
    content = bytearray(path.read_bytes())
    for place, byte in flips:
        content[place % len(content)] = byte
    path.write_bytes(content[:cut])
    members, problems, damage = scan_archive(str(path))
    assert all(0 < member.offset <= member.offset + member.size <= cut for member in members)
    assert problems or damage or cut > 10_240


@pytest.mark.parametrize(
    ("name", "images", "said"),
    [
        ("images.tar", 58, ["empty.jpg: an empty file", "empty.png: an empty file"]),
        ("sound.tar", 5, []),
        ("empty.tar", 0, ["byte 0: no end mark"]),
        ("no-members.tar", 0, []),
        ("no-tar.tar", 0, ["byte 0: not a tar header, 1,600 bytes from here on are lost"]),
        ("gzip.tar", 0, ["byte 0: not a tar header"]),
        ("cut-in-content.tar", 1, ["cut off"]),
        ("cut-in-header.tar", 0, ["byte 0: no end mark"]),
        ("no-end.tar", 5, ["no end mark"]),
        ("damaged.tar", 1, ["not a tar header"]),
        ("long-names-pax.tar", 3, []),
        ("long-names-gnu.tar", 3, []),
        ("sparse.tar", 5, ["sparse.jpg: a sparse file"]),
    ],
)
def test_damaged_archive_gives_what_is_whole(hostile: Path, name: str, images: int, said: list[str]) -> None:
    """The members before the damage are there, and a line says what is lost."""
    members, problems, damage = scan_archive(str(hostile / name))
    assert len(members) == images
    assert bool(damage) == name.startswith(("empty", "no-tar", "gzip", "cut-", "no-end", "damaged"))
    found = [*problems, damage] if damage else problems
    assert len(found) == len(said)
    for line, words in zip(found, said, strict=True):
        assert words in line


def test_odd_members_are_named_and_left_out(hostile: Path) -> None:
    """Names that climb out, links, devices and empty files are no images; of two of one name the later counts."""
    members, problems, damage = scan_archive(str(hostile / "odd-members.tar"))
    assert not damage
    assert [member.name for member in members] == ["good.jpg", "line\\nbreak.jpg"]
    assert read_all(hostile / "odd-members.tar")["good.jpg"] == JPEG
    assert problems == [
        "../../climbs.jpg: a name that leads out of the archive's folder",
        "/absolute.jpg: a name that leads out of the archive's folder",
        "a/../../b.jpg: a name that leads out of the archive's folder",
        "link.jpg: a symbolic link",
        "hard.jpg: a hard link",
        "device.jpg: a character device",
        "disk.jpg: a block device",
        "pipe.jpg: a pipe",
        "notes.md: not an image by its name",
        "good.jpg: twice in the archive, the earlier one is left out",
        "nothing.jpg: an empty file",
    ]


def test_archive_that_is_not_the_indexed_one_is_unreadable(tmp_path: Path) -> None:
    """A place without a header, an archive that was cut off and one that is gone: each says so, with its name."""
    make_tar(tmp_path / "x.tar", {"a.jpg": JPEG})
    archives = OpenArchives(str(tmp_path))
    with pytest.raises(UnreadableImageError, match=r"x\.tar, byte 1024: no member here"):
        archives.read("x.tar", offset=1024, size=10)
    os.truncate(tmp_path / "x.tar", 600)
    with pytest.raises(
        UnreadableImageError, match=rf"x\.tar/a\.jpg: the archive ends after 88 of its {len(JPEG)} bytes"
    ):
        archives.read("x.tar", offset=512, size=len(JPEG))
    with pytest.raises(UnreadableImageError, match=r"y\.tar, byte 512: No such file"):
        archives.read("y.tar", offset=512, size=10)


def test_few_archives_stay_open(tmp_path: Path) -> None:
    """However many archives are read, and in whatever order, a process holds only so many files."""
    for number in range(OPEN_FILES + 40):
        make_tar(tmp_path / f"{number}.tar", {"a.jpg": bytes([number]) * 10})
    before = count_open()
    archives = OpenArchives(str(tmp_path))
    for number in [*range(OPEN_FILES + 40), *range(0, OPEN_FILES + 40, 7)]:
        assert archives.read(f"{number}.tar", offset=512, size=10)[0] == bytes([number]) * 10
        assert count_open() - before <= OPEN_FILES
    del archives
    assert count_open() == before


def hostile_header(*, size: bytes, kind: bytes = b"0") -> bytes:
    """A header block whose size field is as given and whose checksum is right."""
    block = bytearray(512)
    block[:5], block[124:136], block[156:157], block[257:263] = b"a.jpg", size.ljust(12, b"\0"), kind, b"ustar\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "records",
    [
        b"0 path=x\n",
        b"-9 path=x\n",
        b"abc path=x\n",
        b" path=x\n",
        b"12 size=abc\n",
        b"15 size=-1536\n",
        b"99 path=x\n",
    ],
)
def test_pax_records_that_are_none_end_an_archive(tmp_path: Path, records: bytes) -> None:
    """A length of zero or a negative size would be read for ever, other nonsense would end the index of all."""
    path = tmp_path / "x.tar"
    path.write_bytes(hostile_header(size=b"%011o" % len(records), kind=b"x") + records.ljust(512, b"\0") + bytes(1024))
    assert scan_archive(str(path)) == ([], [], "byte 0: pax records that cannot be read")


def test_negative_size_ends_an_archive(tmp_path: Path) -> None:
    """It leads back to the header that states it."""
    path = tmp_path / "x.tar"
    path.write_bytes(hostile_header(size=b"-0000001000") + bytes(1536))
    assert scan_archive(str(path)) == ([], [], "byte 0: not a tar header, 2,048 bytes from here on are lost")
