"""`franca data`: an index says where every image lies, survives any kill, and is held against the files."""

import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated_data import CLASSES, WRITERS, make_images, read_pixels, write_imagenet1k, write_imagenet21k, write_laion
from hostile_images import encode, make_photo, make_tar

from franca.__main__ import main
from franca.data.datasets import DataError, ImageArchives, ImageFiles, Sharded, describe_dataset, load_dataset
from franca.data.index import load_index, manifest_path
from franca.data.journal import append_unit, build_index, resume_journal
from franca.data.layout import find_layout
from franca.data.prefetch import prefetch
from franca.data.scan import scan_source

ROOT = Path(__file__).parents[1]


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    """The exit code and what was printed as JSON."""
    code = main(["data", *map(str, arguments), "--json"])
    printed = capsys.readouterr().out
    return code, json.loads(printed) if printed else None


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", WRITERS)
def test_prepared_data_hold_every_image(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever they lie in, all images are found and read in place, with the class of their folder or archive."""
    WRITERS[name](tmp_path)
    before = read_tree(tmp_path)
    code, results = run("index", name, "--root", tmp_path, capsys=capsys)
    assert code == 0
    found = []
    for result in results:
        dataset = load_dataset(name, root=str(tmp_path), split=result["manifest"]["split"])
        assert len(dataset) == result["manifest"]["images"]
        assert dataset.fingerprint == result["manifest"]["fingerprint"]
        assert isinstance(dataset, ImageFiles if name == "imagenet1k" else ImageArchives)
        assert isinstance(dataset, Sharded) == (name == "laion600m")
        found += [dataset.read(row)[0].tobytes() for row in range(len(dataset))]
    assert sorted(found) == sorted(map(read_pixels, make_images(240)))
    after = read_tree(tmp_path)
    assert {path: after[path] for path in before} == before
    assert all(path.startswith(".franca-index/") for path in after.keys() - before.keys())


def test_classes_of_archives_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ImageNet-21K's classes are its archives by name, ImageNet-1k's in the order of `labels.txt`; LAION has none."""
    for name, write in WRITERS.items():
        write(tmp_path / name)
        run("index", name, "--root", tmp_path / name, capsys=capsys)
    in21k, in1k, laion = (
        load_dataset(name, root=str(tmp_path / name), split="train")
        for name in ("imagenet21k", "imagenet1k", "laion600m")
    )
    assert in21k.class_names == CLASSES
    assert [in21k.read(row)[1] for row in range(len(in21k))] == sorted(
        np.searchsorted([10, 38, 86, 154, 240], np.arange(240), side="right").tolist()
    )
    assert in1k.class_names == CLASSES[::-1]
    assert load_dataset("imagenet1k", root=str(tmp_path / "imagenet1k"), split="test").class_names == CLASSES[::-1]
    for row in range(len(in1k)):
        folder = in1k.index.unit_names[in1k.index.unit_of(row)]
        assert in1k.class_names[in1k.read(row)[1]] == folder
    assert laion.class_names == ()
    assert {laion.read(row)[1] for row in range(0, 240, 40)} == {0}


def test_class_that_the_list_lacks_is_refused(tmp_path: Path) -> None:
    """A class folder that `labels.txt` does not name would shift no number: it is a mistake with the file's name."""
    write_imagenet1k(tmp_path)
    (tmp_path / "labels.txt").write_text("".join(f"{of},words\n" for of in CLASSES[1:]))
    with pytest.raises(DataError, match=rf"labels\.txt: the class {CLASSES[0]} is missing"):
        load_dataset("imagenet1k", root=str(tmp_path), split="train")


def test_flat_validation_images_have_the_classes_of_their_list(tmp_path: Path) -> None:
    """`val/` without class folders is read by `val/labels.txt`, with or without an index."""
    contents = make_images(6)
    for number, content in enumerate(contents):
        (tmp_path / "val").mkdir(exist_ok=True)
        (tmp_path / "val" / f"{number}.JPEG").write_bytes(content)
    (tmp_path / "val" / "labels.txt").write_text("".join(f"{n}.JPEG {'ba'[n % 2]}\n" for n in range(6)))
    listed = load_dataset("imagenet1k", root=str(tmp_path), split="test")
    build_index(find_layout("imagenet1k", root=str(tmp_path), split="test"), threads=1)
    for dataset in (listed, load_dataset("imagenet1k", root=str(tmp_path), split="test")):
        assert dataset.class_names == ("a", "b")
        assert [dataset.read(row)[1] for row in range(6)] == [0, 0, 0, 1, 1, 1]
        assert [dataset.read(row)[0].tobytes() for row in range(6)] == [
            read_pixels(contents[number]) for number in (1, 3, 5, 0, 2, 4)
        ]
    (tmp_path / "val" / "labels.txt").write_text("0.JPEG\n")
    with pytest.raises(DataError, match=r"labels\.txt:1: not `<image> <class>`"):
        find_layout("imagenet1k", root=str(tmp_path), split="test")


def test_listed_and_indexed_files_are_one_data_set(tmp_path: Path) -> None:
    """Class folders without an index have the fingerprint, order and classes that the index gives them."""
    write_imagenet1k(tmp_path)
    listed = load_dataset("imagenet1k", root=str(tmp_path), split="train")
    build_index(find_layout("imagenet1k", root=str(tmp_path), split="train"), threads=2)
    indexed = load_dataset("imagenet1k", root=str(tmp_path), split="train")
    assert (listed.fingerprint, listed.class_names) == (indexed.fingerprint, indexed.class_names)
    assert len(listed) == len(indexed)
    for row in range(0, len(listed), 7):
        assert listed.read(row)[1] == indexed.read(row)[1]
        assert listed.read(row)[0].tobytes() == indexed.read(row)[0].tobytes()


def read_row(job: tuple[ImageFiles, int]) -> tuple[bytes, int]:
    dataset, row = job
    image, label = dataset.read(row)
    return image.tobytes(), label


@pytest.mark.parametrize("name", [*WRITERS, "listed"])
def test_data_travel_to_workers_without_their_arrays(tmp_path: Path, name: str) -> None:
    """A worker reads the same images; of an indexed data set nothing travels but where the index lies."""
    kind = "imagenet1k" if name == "listed" else name
    WRITERS[kind](tmp_path)
    if name != "listed":
        build_index(find_layout(kind, root=str(tmp_path), split="train"), threads=2)
    dataset = load_dataset(kind, root=str(tmp_path), split="train")
    expected = [read_row((dataset, row)) for row in (0, 5, 150)]
    if name != "listed":
        assert len(pickle.dumps(dataset)) < 500
    assert [read_row((pickle.loads(pickle.dumps(dataset)), row)) for row in (0, 5, 150)] == expected
    assert list(prefetch(Reader(dataset), [0, 5, 150], workers=1)) == expected


class Reader:
    """Reads rows of a data set that is sent to a worker once."""

    def __init__(self, dataset: ImageFiles) -> None:
        self.dataset = dataset

    def __call__(self, row: int) -> tuple[bytes, int]:
        return read_row((self.dataset, row))


def test_index_that_is_up_to_date_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second call reads no archive and changes no file; a changed archive is read again, the others before it not."""
    write_imagenet21k(tmp_path)
    _, (first,) = run("index", "imagenet21k", "--root", tmp_path, capsys=capsys)
    before = {path: path.stat().st_mtime_ns for path in Path(first["index"]).iterdir()}
    _, (second,) = run("index", "imagenet21k", "--root", tmp_path, capsys=capsys)
    assert second == first
    assert {path: path.stat().st_mtime_ns for path in Path(second["index"]).iterdir()} == before
    make_tar(tmp_path / f"{CLASSES[3]}.tar", {"new.JPEG": make_images(1)[0]})
    _, (third,) = run("index", "imagenet21k", "--root", tmp_path, capsys=capsys)
    assert third["manifest"]["images"] == 240 - 68 + 1
    assert third["manifest"]["fingerprint"] != first["manifest"]["fingerprint"]
    assert not Path(first["index"]).exists()
    shutil.rmtree(tmp_path / ".franca-index")
    _, (anew,) = run("index", "imagenet21k", "--root", tmp_path, capsys=capsys)
    assert anew == third


def test_journal_cut_anywhere_gives_the_same_index(tmp_path: Path) -> None:
    """Whatever a kill left of the three files, going on makes the index that an undisturbed call makes."""
    write_imagenet21k(tmp_path / "data")
    layout = find_layout("imagenet21k", root=str(tmp_path / "data"), split="train")
    manifest = build_index(layout, threads=1)
    index = tmp_path / "data" / ".franca-index"
    expected = read_tree(index / manifest["index"])
    shutil.rmtree(index)
    partial = index / "train.partial"
    resume_journal(partial, layout=layout, deep=False)
    for source in layout.sources[:3]:
        unit, entries, names = scan_source(source, layout=layout)
        append_unit(partial, unit, entries=entries, names=names)
    saved = read_tree(index)
    generator = np.random.default_rng(0)
    for _ in range(30):
        shutil.rmtree(index)
        for name, content in saved.items():
            (index / name).parent.mkdir(parents=True, exist_ok=True)
            kept = int(generator.integers(0, len(content) + 1)) if generator.random() < 0.5 else len(content)
            (index / name).write_bytes(content[:kept])
        assert build_index(layout, threads=2) == manifest
        assert read_tree(index / manifest["index"]) == expected


def test_index_without_its_manifest_is_not_made_again(tmp_path: Path) -> None:
    """A kill before the manifest's last write leaves the finished folder, which the next call takes as it is."""
    write_imagenet21k(tmp_path)
    layout = find_layout("imagenet21k", root=str(tmp_path), split="train")
    manifest = build_index(layout, threads=1)
    path = manifest_path(str(tmp_path), split="train")
    expected = read_tree(path.parent)
    path.unlink()
    known: list[int] = []
    assert build_index(layout, threads=1, advance=lambda units, images: known.append(units)) == manifest
    assert known == [len(CLASSES)]
    assert read_tree(path.parent) == expected


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    """While one process indexes, another is told so instead of writing into the same files."""
    write_imagenet21k(tmp_path)
    layout = find_layout("imagenet21k", root=str(tmp_path), split="train")

    def build_again(units: int, images: int) -> None:
        with pytest.raises(DataError, match="another process is indexing these data"):
            build_index(layout, threads=1)

    build_index(layout, threads=1, advance=build_again)


def test_read_only_root_is_told_a_way_out(tmp_path: Path) -> None:
    """A root that cannot be written to, here one whose index is no folder, is a mistake with a mend."""
    write_imagenet21k(tmp_path)
    (tmp_path / ".franca-index").write_text("")
    with pytest.raises(DataError, match=r"the index cannot be written here: .*; where the data must stay read-only"):
        build_index(find_layout("imagenet21k", root=str(tmp_path), split="train"), threads=1)


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.15, 0.3])
def test_killed_indexing_goes_on(tmp_path: Path, delay_s: float) -> None:
    """kill -9 at any moment: the next call finishes, and the index is that of an undisturbed one."""
    jpeg = make_images(1)[0]
    for number in range(300):
        make_tar(tmp_path / f"n{number:08d}.tar", {f"{image}.JPEG": jpeg for image in range(5)})
    command = [sys.executable, "-m", "franca", "data", "index", "imagenet21k", "--root", str(tmp_path), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    journal = tmp_path / ".franca-index" / "train.partial" / "units.jsonl"
    while process.poll() is None and not journal.exists():
        time.sleep(0.001)
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    layout = find_layout("imagenet21k", root=str(tmp_path), split="train")
    known: list[int] = []
    manifest = build_index(layout, threads=1, advance=lambda units, images: known.append(units))
    index = read_tree(tmp_path / ".franca-index" / manifest["index"])
    shutil.rmtree(tmp_path / ".franca-index")
    assert build_index(layout, threads=1) == manifest
    assert read_tree(tmp_path / ".franca-index" / manifest["index"]) == index
    assert manifest["images"] == 1500


def test_counts_are_held_against_the_published_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`prepare` of ImageNet fails where images or classes are missing; LAION's links die, so it only notes."""
    write_imagenet21k(tmp_path / "in21k")
    write_laion(tmp_path / "laion")
    code, (result,) = run("prepare", "imagenet21k", "--root", tmp_path / "in21k", capsys=capsys)
    assert code == 1
    assert result["differences"] == [
        "240 images, 13,153,500 were published: 13,153,260 missing",
        "5 classes, 19,167 were published: 19,162 missing",
    ]
    code, (result,) = run("prepare", "laion600m", "--root", tmp_path / "laion", capsys=capsys)
    assert (code, result["notes"][0]) == (0, "240 images of 599,187,600 that were published (0.0%)")


def test_deep_fingerprint_sees_other_bytes_of_one_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names and sizes do not show a changed pixel; the SHA-256 of --deep does."""
    found = []
    for color in ("red", "blue"):
        make_tar(tmp_path / color / "n1.tar", {"x.jpg": encode(make_photo(), "BMP")[:-1] + color[:1].encode()})
        _, (result,) = run("index", "imagenet21k", "--root", tmp_path / color, "--deep", capsys=capsys)
        found.append(result["manifest"])
    assert found[0]["fingerprint"] == found[1]["fingerprint"]
    assert len({found[0]["sha256"], found[1]["sha256"], ""}) == 3


def test_folder_that_may_not_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a folder leads to and the file system will not show ends in one line, whoever runs the test."""
    (tmp_path / "n1.tar").symlink_to("n1.tar")  # leads to itself: it is there, and its kind cannot be asked for
    assert main(["data", "prepare", "imagenet21k", "--root", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}/n1.tar: cannot be read: ")
    assert said.count("\n") == 1  # nothing has to be fetched


@pytest.mark.parametrize("name", ["imagenet1k", "imagenet21k", "laion600m"])
def test_missing_data_are_told_how_to_come(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`prepare` of an empty root ends with exit code 2 and says what a person does about it."""
    assert main(["data", "prepare", name, "--root", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert {"laion600m": "--image_size 512"}.get(name, "image-net.org") in said
    assert str(tmp_path) in said


def test_index_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """An index of another data set, a torn manifest and a cut array are mistakes with a mend, not wrong images."""
    write_imagenet21k(tmp_path)
    manifest = build_index(find_layout("imagenet21k", root=str(tmp_path), split="train"), threads=1)
    path = manifest_path(str(tmp_path), split="train")
    with pytest.raises(DataError, match="this root is indexed as imagenet21k; give laion600m a root of its own"):
        build_index(find_layout("laion600m", root=str(tmp_path), split="train"), threads=1)
    with pytest.raises(DataError, match="the index of imagenet21k, not of laion600m"):
        load_dataset("laion600m", root=str(tmp_path), split="train")
    entries = path.parent / manifest["index"] / "entries.npy"
    entries.write_bytes(entries.read_bytes()[:-8])
    with pytest.raises(DataError, match="run `franca data prepare imagenet21k` again"):
        load_index(str(path))
    path.write_text(path.read_text()[:40])
    with pytest.raises(DataError, match="delete it and prepare the data again"):
        load_dataset("imagenet21k", root=str(tmp_path), split="train")


def test_run_notes_the_manifest(tmp_path: Path) -> None:
    """What a run's environment says of indexed data is their manifest."""
    write_laion(tmp_path)
    manifest = build_index(find_layout("laion600m", root=str(tmp_path), split="train"), threads=1)
    noted = describe_dataset(load_dataset("laion600m", root=str(tmp_path), split="train"))
    assert noted["manifest"] == manifest
    assert noted["fingerprint"] == manifest["fingerprint"]
    assert "manifest" not in describe_dataset(load_dataset("digits", root="", split="test"))
