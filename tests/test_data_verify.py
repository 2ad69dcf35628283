"""What is wrong with data is told: damage that was indexed, what changed since, images that cannot be decoded."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fabricated_data import CLASSES, make_images, write_imagenet1k, write_imagenet21k
from hostile_images import make_tar, write_hostile_archives
from test_data_command import run

from franca.__main__ import main


def test_hostile_archives_are_indexed_with_all_their_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Damage is listed by name in the index's folder; what is whole is found; broken images show with --deep."""
    write_hostile_archives(tmp_path)
    code, (result,) = run("prepare", "laion600m", "--root", tmp_path, capsys=capsys)
    assert code == 1
    skipped = (Path(result["index"]) / "skipped.txt").read_text().splitlines()
    manifest = result["manifest"]
    assert (manifest["skipped"], manifest["damaged"], len(skipped)) == (14, 7, 21)
    assert len(result["damaged"]) == 8
    assert f"{tmp_path}/no-members.tar: no image in it" in result["damaged"]
    assert any("damaged.tar: byte" in line and "1 images come before that" in line for line in result["damaged"])
    assert "odd-members.tar/../../climbs.jpg: a name that leads out of the archive's folder" in skipped
    code, (result,) = run("verify", "laion600m", "--root", tmp_path, "--deep", capsys=capsys)
    assert (code, len(result["damaged"]), result["differences"], len(result["unreadable"])) == (1, 8, [], 28)
    assert any(
        "images.tar/bomb.png: Image size (400000000 pixels) exceeds limit" in line for line in result["unreadable"]
    )
    assert not (tmp_path.parent / "climbs.jpg").exists()


def test_damage_is_told_in_a_table_and_empty_classes_do_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An archive that is none, one without images and one of which none can be decoded are told; two have images."""
    make_tar(tmp_path / "n1.tar", {"x.JPEG": make_images(1)[0]})
    make_tar(tmp_path / "n2.tar", {"x.JPEG": b"no image"})
    make_tar(tmp_path / "n3.tar", {"x.xml": b"no image"})
    (tmp_path / "n4.tar").write_bytes(b"<html>" * 100)
    code, (result,) = run("prepare", "imagenet21k", "--root", tmp_path, capsys=capsys)
    assert (code, result["manifest"]["classes"], result["manifest"]["units"]) == (1, 2, 4)
    assert result["differences"][1] == "2 classes, 19,167 were published: 19,165 missing"
    assert main(["data", "verify", "imagenet21k", "--root", str(tmp_path), "--deep"]) == 1
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[2:]] == ["damaged", "damaged", "damaged", "unreadable", "3"]
    for line, said in zip(
        table[2:6],
        ("n3.tar: no image in it", "not a tar header", "none of its 1 images", "no image of a known"),
        strict=True,
    ):
        assert said in line
    assert table[-1].strip() == "3 damaged, 1 unreadable"
    assert main(["data", "verify", "imagenet21k", "--root", str(tmp_path)]) == 1


def change(root: Path) -> Iterator[tuple[str, str]]:
    """Changes one thing after another; yields what is to be said."""
    archive = root / f"{CLASSES[1]}.tar"
    content, times = archive.read_bytes(), (archive.stat().st_atime_ns, archive.stat().st_mtime_ns)
    os.utime(archive, ns=(times[0], times[1] + 1))
    yield f"{CLASSES[1]}.tar", "changed since it was indexed"
    archive.write_bytes(content + bytes(512))
    yield f"{CLASSES[1]}.tar", "when it was indexed"
    archive.write_bytes(bytes(512) + content[:-512])
    os.utime(archive, ns=times)
    yield f"{CLASSES[1]}.tar", "no member here"
    archive.unlink()
    yield f"{CLASSES[1]}.tar", "in the index, but not here"
    archive.write_bytes(content)
    os.utime(archive, ns=times)
    make_tar(root / "n99999999.tar", {"x.JPEG": make_images(1)[0]})
    yield "n99999999.tar", "not in the index"


def test_verify_finds_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An archive that was touched, grew, moved inside, vanished or came: each is one line and exit code 1."""
    write_imagenet21k(tmp_path)
    run("index", "imagenet21k", "--root", tmp_path, capsys=capsys)
    assert run("verify", "imagenet21k", "--root", tmp_path, "--deep", "--threads", 1, capsys=capsys)[0] == 0
    for place, said in change(tmp_path):
        code, (result,) = run("verify", "imagenet21k", "--root", tmp_path, capsys=capsys)
        assert code == 1
        assert result["differences"]
        assert all(place in line and said in line for line in result["differences"]), result["differences"]


def test_verify_finds_files_that_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of class folders, another size or name of any file is found."""
    write_imagenet1k(tmp_path)
    run("index", "imagenet1k", "--root", tmp_path, capsys=capsys)
    assert run("verify", "imagenet1k", "--root", tmp_path, capsys=capsys)[0] == 0
    (tmp_path / "train" / CLASSES[2] / f"{CLASSES[2]}_7.JPEG").write_bytes(b"short")
    code, (train, test) = run("verify", "imagenet1k", "--root", tmp_path, capsys=capsys)
    assert (code, len(train["differences"]), test["differences"]) == (1, 1, [])
    assert f"{CLASSES[2]}: other names or sizes than were indexed" in train["differences"][0]
