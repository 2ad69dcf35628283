"""Datasets give the right images and classes in an order of their own, and say what is missing or broken."""

import contextlib
import io
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from franca.data.datasets import DataError, UnreadableImageError, load_dataset, read_image


def save_image(path: Path, color: tuple[int, ...] = (200, 30, 60), *, mode: str = "RGB", size: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (size, size), color).save(path)


def encoded_image(suffix: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, suffix)
    return buffer.getvalue()


ENCODED = {suffix: encoded_image(suffix) for suffix in ("jpeg", "png", "webp", "bmp", "tiff", "ppm")}


def test_digits_are_split_once_and_for_all() -> None:
    """1,437 digits to train on and 360 others to test with, together the whole dataset; the split never changes."""
    train, test = (load_dataset("digits", root="", split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    assert (train.fingerprint, test.fingerprint) == ("c42db0a2064c6d32", "956cd4a62ed25500")
    seen = {split: {dataset.read(i)[0].tobytes() for i in range(len(dataset))} for split, dataset in
            (("train", train), ("test", test))}  # fmt: skip
    assert not seen["train"] & seen["test"]
    assert len(seen["train"] | seen["test"]) == 1797


@pytest.mark.parametrize("split", ["train", "test"])
def test_digits_are_scikit_learns(split: str) -> None:
    """Every image is a scan of 8 x 8 gray levels with the label that scikit-learn gives it; every class is there."""
    bunch = load_digits()
    labels = {
        np.rint(image * 255 / 16).tobytes(): int(label) for image, label in zip(*bunch_arrays(bunch), strict=True)
    }
    dataset = load_dataset("digits", root="", split=split)
    found = []
    for index in range(len(dataset)):
        image, label = dataset.read(index)
        assert image.mode == "RGB"
        red, green, blue = (np.asarray(band, dtype=np.float64) for band in image.split())
        assert (red == green).all()
        assert (red == blue).all()
        assert labels[red.tobytes()] == label
        found.append(label)
    assert sorted(set(found)) == list(range(len(dataset.class_names)))


def bunch_arrays(bunch) -> tuple[np.ndarray, np.ndarray]:
    return bunch.images, bunch.target


def test_folder_is_read_in_alphabetical_order(tmp_path: Path) -> None:
    """Classes are the folders in alphabetical order, an empty one too; images come in order, other files do not."""
    for name in ("b/2.png", "b/1.JPEG", "c/x/3.png", "a0/4.png"):
        save_image(tmp_path / "train" / name, (len(name), 0, 0))
    (tmp_path / "train" / "a").mkdir()
    (tmp_path / "train" / "b" / "notes.txt").write_text("no image")
    dataset = load_dataset("imagenet1k", root=str(tmp_path), split="train")
    assert dataset.class_names == ("a", "a0", "b", "c")
    assert [dataset.index.name_of(row) for row in range(4)] == [b"4.png", b"1.JPEG", b"2.png", b"x/3.png"]
    assert [dataset.read(index)[1] for index in range(len(dataset))] == [1, 2, 2, 3]
    assert dataset.read(0)[0].getpixel((0, 0)) == (len("a0/4.png"), 0, 0)


def test_dataset_without_labels_is_a_folder_of_any_depth(tmp_path: Path) -> None:
    """LAION's images lie anywhere below the root and have no classes."""
    for name in ("1.jpg", "x/2.jpg", "x/y/z/3.jpg"):
        save_image(tmp_path / name)
    dataset = load_dataset("laion600m", root=str(tmp_path), split="train")
    assert len(dataset) == 3
    assert dataset.class_names == ()
    assert {dataset.read(index)[1] for index in range(3)} == {0}


def test_fingerprint_follows_names_and_sizes(tmp_path: Path) -> None:
    """Two copies of a folder have one fingerprint; a renamed, added or replaced image gives another."""

    def fingerprint(folder: Path) -> str:
        return load_dataset("imagenet21k", root=str(folder), split="train").fingerprint

    for root in ("one", "two"):
        for name in ("b/2.png", "a/1.png") if root == "one" else ("a/1.png", "b/2.png"):
            save_image(tmp_path / root / name)
    first = fingerprint(tmp_path / "one")
    assert fingerprint(tmp_path / "two") == first
    save_image(tmp_path / "two" / "a/1.png", size=99)
    replaced = fingerprint(tmp_path / "two")
    (tmp_path / "one" / "a/1.png").rename(tmp_path / "one" / "a/0.png")
    renamed = fingerprint(tmp_path / "one")
    save_image(tmp_path / "one" / "b/3.png")
    assert len({first, replaced, renamed, fingerprint(tmp_path / "one")}) == 4


@pytest.mark.parametrize(
    ("name", "made", "split", "said"),
    [
        ("imagenet1k", None, "train", ["no-such-folder", "does not exist", "train/<class>/<image>"]),
        ("imagenet1k", "train/a/1.png", "test", ["val", "does not exist", "val/<class>/<image>"]),
        ("imagenet1k", "train/1.png", "train", ["train/1.png", "outside a class folder"]),
        ("imagenet1k", "train/a/1.txt", "train", ["no images", "train/<class>/<image>"]),
        ("imagenet21k", "n001.tar", "train", ["1 archives without an index", "franca data prepare imagenet21k --root"]),
        ("imagenet21k", "a/1.png", "test", ["imagenet21k has no test split", "imagenet1k"]),
        ("laion600m", "x/00000.tar", "train", ["1 archives without an index", "franca data prepare laion600m --root"]),
        ("folder", "x.txt", "train", ["no images", "in folders of any depth"]),
        ("imagnet", "a/1.png", "train", ["unknown dataset imagnet", "imagenet1k"]),
    ],
)
def test_missing_data_is_named(tmp_path: Path, name: str, made: str | None, split: str, said: list[str]) -> None:
    """One line says which folder is not as it should be and what belongs in it."""
    if made:
        (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / made).touch()
    root = tmp_path if made else tmp_path / "no-such-folder"
    with pytest.raises(DataError) as caught:
        load_dataset(name, root=str(root), split=split)
    for words in said:
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dataset_without_a_root_says_so() -> None:
    """A site that names no folder for a dataset is told which dataset needs one."""
    with pytest.raises(DataError, match="no data root is given for imagenet21k"):
        load_dataset("imagenet21k", root="", split="train")


@pytest.mark.parametrize(
    ("mode", "color"), [("L", (90,)), ("RGBA", (1, 2, 3, 4)), ("1", (1,)), ("P", (3,)), ("I;16", (700,))]
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, color: tuple[int, ...]) -> None:
    """Gray, transparent, bilevel, palette and 16-bit images are read as RGB."""
    save_image(tmp_path / "x.png", color if len(color) > 1 else color[0], mode=mode)
    assert read_image(str(tmp_path / "x.png")).mode == "RGB"


@pytest.mark.parametrize("content", [b"", b"not an image", ENCODED["jpeg"][:300], ENCODED["png"][:300]])
def test_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    """A file that holds no whole image raises, with its path, and never becomes an image of some color."""
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"broken\.jpg"):
        read_image(str(path))


@given(st.sampled_from(sorted(ENCODED)), st.data())
def test_damaged_file_is_an_image_or_unreadable(tmp_path_factory: pytest.TempPathFactory, suffix: str, data) -> None:
    """Whatever bytes are cut or overwritten, reading gives an RGB image or `UnreadableImageError`, nothing else."""
    content = bytearray(ENCODED[suffix])
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, min(200, len(content) - 1)))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / f"x.{suffix}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with warnings.catch_warnings(), contextlib.suppress(UnreadableImageError):
        warnings.simplefilter("ignore")  # Pillow warns of some damage before it raises
        assert read_image(str(path)).mode == "RGB"


def test_missing_file_is_unreadable(tmp_path: Path) -> None:
    """A file that vanished after the folder was indexed is unreadable like a broken one."""
    save_image(tmp_path / "a" / "1.png")
    dataset = load_dataset("imagenet21k", root=str(tmp_path), split="train")
    (tmp_path / "a" / "1.png").unlink()
    with pytest.raises(UnreadableImageError, match=r"1\.png"):
        dataset.read(0)


def test_datasets_travel_to_workers(tmp_path: Path) -> None:
    """A pickled dataset reads the same images."""
    save_image(tmp_path / "a" / "1.png")
    for dataset in (
        load_dataset("digits", root="", split="test"),
        load_dataset("imagenet21k", root=str(tmp_path), split="train"),
    ):
        copy = pickle.loads(pickle.dumps(dataset))
        assert copy.read(0)[0].tobytes() == dataset.read(0)[0].tobytes()
        assert (len(copy), copy.fingerprint) == (len(dataset), dataset.fingerprint)
