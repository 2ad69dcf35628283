"""Small scenes whose segments are known, in the layouts of PASCAL VOC and ADE20K: colored shapes on noisy ground."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLORS = ((90, 120, 90), (200, 60, 40), (40, 70, 200), (230, 200, 60))  # of the ground and of three kinds of thing
UNLABELED = 255


def make_scene(
    generator: np.random.Generator, *, width: int = 48, height: int = 40
) -> tuple[Image.Image, NDArray[np.uint8]]:
    """A photograph of two things on a ground, and its mask: 0 the ground, 1 to 3 a thing, 255 along edges."""
    mask = np.zeros((height, width), np.uint8)
    rows, columns = np.mgrid[:height, :width]
    edge = np.zeros((height, width), bool)
    for kind in generator.choice((1, 2, 3), 2, replace=False):
        center = generator.integers(10, height - 10), generator.integers(10, width - 10)
        distance = np.hypot(rows - center[0], columns - center[1])
        mask[distance < 9] = kind
        edge |= abs(distance - 9) < 0.7
    pixels = np.array(COLORS, np.float64)[mask] + generator.normal(0, 6, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), np.where(edge, np.uint8(UNLABELED), mask)


def make_voc(root: Path, *, train: int = 24, val: int = 12) -> Path:
    """VOC's folder: JPEG images, palette masks, lists."""
    generator = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for split, images in (("train", train), ("val", val)):
        names = [f"{split}_{number:06d}" for number in range(images)]
        for name in names:
            image, mask = make_scene(generator, width=int(generator.integers(44, 60)))
            image.save(root / "JPEGImages" / f"{name}.jpg", quality=95)
            palette = Image.fromarray(mask).convert("P")
            palette.putpalette([value for index in range(256) for value in (index, 255 - index, index // 2)])
            palette.putdata(mask.ravel().tolist())
            palette.save(root / "SegmentationClass" / f"{name}.png")
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def make_ade20k(root: Path, *, train: int = 24, val: int = 12) -> Path:
    """ADE20K's folder: gray masks, 0 where a pixel has no class; our ground is its class 1, our things 2 to 4."""
    generator = np.random.default_rng(1)
    for split, images in (("training", train), ("validation", val)):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for number in range(images):
            image, mask = make_scene(generator)
            name = f"ADE_{split}_{number:08d}"
            image.save(root / "images" / split / f"{name}.jpg", quality=95)
            numbers = np.where(mask == UNLABELED, 0, mask + 1).astype(np.uint8)
            Image.fromarray(numbers).save(root / "annotations" / split / f"{name}.png")
    return root
