"""Segmentation datasets are read from their published folders; a mask that does not fit is named, never guessed at."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fabricated_scenes import make_ade20k, make_voc
from PIL import Image

from franca.data.datasets import DataError
from franca.data.pixel_labels import IGNORED, SegmentationSet, load_segmentation, read_mask

MAKERS: dict[str, Callable[[Path], Path]] = {"voc": make_voc, "ade20k": make_ade20k}


def open_fabricated(name: str, root: Path, *, split: str = "val") -> SegmentationSet:
    return load_segmentation(name, root=str(MAKERS[name](root)), split=split)


@pytest.mark.parametrize(("name", "classes"), [("voc", 21), ("ade20k", 150)])
def test_published_folder_is_read(name: str, classes: int, tmp_path: Path) -> None:
    """Lists have their images in order; image and mask have one size; our classes start at 0, 255 has none."""
    dataset = open_fabricated(name, tmp_path)
    assert len(dataset.class_names) == classes
    assert len(dataset) == 12
    assert len(load_segmentation(name, root=str(tmp_path), split="train")) == 24
    assert [image.stem for image, _ in dataset.pairs] == sorted(image.stem for image, _ in dataset.pairs)
    for index in range(len(dataset)):
        image, mask = dataset.read(index)
        assert image.mode == "RGB"
        assert mask.dtype == np.uint8
        assert mask.shape == (image.height, image.width)
        assert {0, IGNORED} < set(np.unique(mask)) <= {0, 1, 2, 3, IGNORED}


@pytest.mark.parametrize(
    ("name", "number", "given"), [("voc", 7, 7), ("voc", 255, 255), ("ade20k", 0, 255), ("ade20k", 150, 149)]
)
def test_numbers_of_files_become_classes(name: str, number: int, given: int, tmp_path: Path) -> None:
    """VOC's numbers are its classes and 255 is none; ADE20K's are one more than its classes and 0 is none."""
    dataset = open_fabricated(name, tmp_path)
    mask_path = dataset.pairs[3][1]
    mask = np.array(Image.open(mask_path))
    mask[5, 7] = number
    Image.fromarray(mask).save(mask_path)
    assert dataset.read(3)[1][5, 7] == given


def test_larger_list_of_voc_has_masks_of_its_own(tmp_path: Path) -> None:
    """`trainaug` takes its masks from the folder that came with it."""
    make_voc(tmp_path)
    (tmp_path / "SegmentationClass").rename(tmp_path / "SegmentationClassAug")
    (tmp_path / "ImageSets/Segmentation/trainaug.txt").write_text("train_000001\nval_000002\n")
    dataset = load_segmentation("voc", root=str(tmp_path), split="trainaug")
    assert [mask.parent.name for _, mask in dataset.pairs] == ["SegmentationClassAug"] * 2


def read_all(root: Path) -> None:
    dataset = load_segmentation("voc", root=str(root), split="val")
    for index in range(len(dataset)):
        dataset.read(index)


def spoil_root(root: Path) -> str:
    root.rename(root.with_name("elsewhere"))
    return "the folder of voc does not exist"


def spoil_list(root: Path) -> str:
    (root / "ImageSets/Segmentation/val.txt").unlink()
    return "val.txt: no such list"


def spoil_empty_list(root: Path) -> str:
    (root / "ImageSets/Segmentation/val.txt").write_text("\n")
    return "no images for val"


def spoil_absent_mask(root: Path) -> str:
    (root / "SegmentationClass/val_000004.png").unlink()
    return "SegmentationClass/val_000004.png: no such file"


def spoil_absent_image(root: Path) -> str:
    (root / "JPEGImages/val_000004.jpg").unlink()
    return "JPEGImages/val_000004.jpg: no such file"


def spoil_size(root: Path) -> str:
    Image.new("L", (31, 40)).save(root / "SegmentationClass/val_000004.png")
    return "val_000004.png: a mask of 31 × 40 px for val_000004.jpg, which has"


def spoil_number(root: Path) -> str:
    path = root / "SegmentationClass/val_000004.png"
    mask = np.array(Image.open(path))
    mask[0, 0] = 21
    Image.fromarray(mask).save(path)
    return "val_000004.png: has the number 21; those of voc are 0 to 20, and 255"


def spoil_colors(root: Path) -> str:
    path = root / "SegmentationClass/val_000004.png"
    Image.open(path).convert("RGB").save(path)
    return "val_000004.png: a mask of mode RGB"


def spoil_mask(root: Path) -> str:
    (root / "SegmentationClass/val_000004.png").write_bytes(b"no image")
    return "val_000004.png"


def spoil_image(root: Path) -> str:
    (root / "JPEGImages/val_000004.jpg").write_bytes(b"no image")
    return "val_000004.jpg"


SPOILERS = (
    spoil_root, spoil_list, spoil_empty_list, spoil_absent_mask, spoil_absent_image, spoil_size, spoil_number,
    spoil_colors, spoil_mask, spoil_image,
)  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_what_does_not_fit_is_named(spoil: Callable[[Path], str], tmp_path: Path) -> None:
    """One line names the file that is missing or wrong; no image is left out in silence."""
    root = make_voc(tmp_path / "voc")
    said = spoil(root)
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        read_all(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("number", "said"), [(151, "has the number 151"), (255, "has the number 255")])
def test_number_beyond_ade20ks_classes_is_named(number: int, said: str, tmp_path: Path) -> None:
    """ADE20K has 150 classes and no 255."""
    dataset = open_fabricated("ade20k", tmp_path)
    Image.new("L", dataset.read(0)[0].size, number).save(dataset.pairs[0][1])
    with pytest.raises(DataError, match=f"{said}; those of ade20k are 1 to 150, and 0 where"):
        dataset.read(0)


@pytest.mark.parametrize(
    ("name", "split", "said"),
    [
        ("coco", "val", "known: voc, ade20k"),
        ("ade20k", "trainaug", "it has train and val"),
        ("ade20k", "val", "images/validation"),
    ],
)
def test_unknown_names_are_told(name: str, split: str, said: str, tmp_path: Path) -> None:
    """A dataset, list or folder that is not there is answered with those that are expected."""
    with pytest.raises(DataError, match=said):
        load_segmentation(name, root=str(tmp_path), split=split)


def test_mask_of_gray_levels_is_read(tmp_path: Path) -> None:
    """A gray PNG's levels are its numbers."""
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), np.arange(12).reshape(3, 4))
