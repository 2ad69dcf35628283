"""Images with a class for every pixel: a dataset's name, folder and list in; image and mask by index out.

Two layouts are read as they are published: PASCAL VOC 2012 and ADE20K (the scene parsing challenge's, 150 classes).
A mask that is left out or does not fit its image is an error, not an image less: a score over fewer images is another.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from franca.data.datasets import DataError, read_image

IGNORED = 255  # of a mask as it is given out: pixels that are neither learnt from nor judged

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
ADE20K_CLASSES = tuple(str(number) for number in range(1, 151))  # as its masks number them


@dataclass(frozen=True)
class SegmentationSet:
    """Pairs of an image and its mask. A file's number `first` is our class 0, `unlabeled` is none."""

    name: str
    class_names: tuple[str, ...] = field(repr=False)
    first: int
    unlabeled: int
    pairs: tuple[tuple[Path, Path], ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[Image.Image, NDArray[np.uint8]]:
        """The RGB image at `index` and its mask [height, width] of class numbers, 255 where a pixel has none.

        Raises `DataError` naming the file that is unreadable, of another size or of an unknown class.
        """
        image_path, mask_path = self.pairs[index]
        image, mask = read_image(str(image_path)), read_mask(mask_path)
        if mask.shape != (image.height, image.width):
            raise DataError(
                f"{mask_path}: a mask of {mask.shape[1]} × {mask.shape[0]} px for {image_path.name}, which has "
                f"{image.width} × {image.height}"
            )
        last = self.first + len(self.class_names) - 1
        unknown = ((mask < self.first) | (mask > last)) & (mask != self.unlabeled)
        if unknown.any():
            raise DataError(
                f"{mask_path}: has the number {mask[unknown].max()}; those of {self.name} are {self.first} to {last}, "
                f"and {self.unlabeled} where a pixel has no class"
            )
        return image, np.where(mask == self.unlabeled, IGNORED, mask - np.uint8(self.first))


def load_segmentation(name: str, *, root: str, split: str) -> SegmentationSet:
    """Open one list of a dataset: `train` or `val`, of VOC also any other that its folder has, such as `trainaug`.

    Raises `DataError` naming what is missing and where it belongs.
    """
    if name not in LAYOUTS:
        raise DataError(f"unknown dataset {name}; known: {', '.join(LAYOUTS)}")
    if not Path(root).is_dir():
        raise DataError(f"{root}: the folder of {name} does not exist; it must hold {HOLDS[name]}")
    dataset = LAYOUTS[name](Path(root), split)
    if not dataset.pairs:
        raise DataError(f"{root}: no images for {split}; the folder of {name} must hold {HOLDS[name]}")
    for paths in dataset.pairs:
        for path in paths:
            if not path.is_file():
                raise DataError(f"{path}: no such file, but {name}'s {split} has it; expected {HOLDS[name]}")
    return dataset


def read_mask(path: Path) -> NDArray[np.uint8]:
    """The numbers [height, width] of a mask: a PNG of a palette's indices or of gray levels."""
    try:
        with Image.open(path) as image:
            mode, numbers = image.mode, np.array(image)
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: {error}") from error
    if mode not in ("P", "L"):
        raise DataError(f"{path}: a mask of mode {mode}; one of class numbers is a palette's (P) or gray (L)")
    return numbers


def _load_voc(root: Path, split: str) -> SegmentationSet:
    """PASCAL VOC 2012's folder. The 10,582 images of `trainaug` have their masks in `SegmentationClassAug`."""
    path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not path.is_file():
        raise DataError(f"{path}: no such list; the folder of voc must hold {HOLDS['voc']}")
    masks = root / ("SegmentationClassAug" if split == "trainaug" else "SegmentationClass")
    names = path.read_text().split()
    pairs = tuple((root / "JPEGImages" / f"{name}.jpg", masks / f"{name}.png") for name in names)
    return SegmentationSet("voc", VOC_CLASSES, 0, 255, pairs)


def _load_ade20k(root: Path, split: str) -> SegmentationSet:
    folders = {"train": "training", "val": "validation"}
    if split not in folders:
        raise DataError(f"ade20k has no list {split}; it has {' and '.join(folders)}")
    images, masks = root / "images" / folders[split], root / "annotations" / folders[split]
    if not images.is_dir():
        raise DataError(f"{images}: this folder does not exist; the folder of ade20k must hold {HOLDS['ade20k']}")
    names = sorted(images.glob("*.jpg"))
    pairs = tuple((path, masks / f"{path.stem}.png") for path in names)
    return SegmentationSet("ade20k", ADE20K_CLASSES, 1, 0, pairs)


LAYOUTS: dict[str, Callable[[Path, str], SegmentationSet]] = {"voc": _load_voc, "ade20k": _load_ade20k}
HOLDS = {
    "voc": "JPEGImages/*.jpg, SegmentationClass/*.png and ImageSets/Segmentation/{train,val}.txt",
    "ade20k": "images/{training,validation}/*.jpg and annotations/{training,validation}/*.png",
}
