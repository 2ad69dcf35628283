"""Small copies of the published data sets: their folders, archives and shards, with real images of a few kilobytes.

`python tests/fabricated_data.py FOLDER` makes all three, for a look or a run by hand.
"""

import io
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
from hostile_images import encode, make_tar
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

CLASSES = ("n01440764", "n01443537", "n01484850", "n02119789", "n15075141")


@cache
def make_images(number: int) -> tuple[bytes, ...]:
    """JPEGs of digits, scaled up, and of crops of two photographs, in turn."""
    digits = load_digits().images
    photos = load_sample_images().images
    generator = np.random.default_rng(0)
    images = []
    for index in range(number):
        if index % 2:
            photo = photos[index // 2 % len(photos)]
            top, left = (int(generator.integers(0, size - 96)) for size in photo.shape[:2])
            image = Image.fromarray(photo[top : top + 64, left : left + 96])
        else:
            digit = np.rint(digits[index] * (255 / 16)).astype(np.uint8)
            image = Image.fromarray(digit).resize((48, 56), Image.Resampling.BICUBIC).convert("RGB")
        images.append(encode(image, "JPEG", quality=90))
    return tuple(images)


def write_imagenet1k(root: Path, *, images: int = 240) -> None:
    """Class folders of train/ and val/, and `labels.txt` with an order of its own."""
    for number, content in enumerate(make_images(images)):
        of = CLASSES[number % len(CLASSES)]
        split, name = ("val", f"ILSVRC2012_val_{number:08d}") if number % 6 == 0 else ("train", f"{of}_{number}")
        path = root / split / of / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "labels.txt").write_text("".join(f"{of},a {of}\n" for of in reversed(CLASSES)))


def write_imagenet21k(root: Path, *, images: int = 240) -> None:
    """An archive per class, of classes that differ in size."""
    contents = make_images(images)
    ends = np.linspace(0, 1, len(CLASSES) + 1)[1:] ** 2 * images
    begin = 0
    for of, end in zip(CLASSES, ends.round().astype(int).tolist(), strict=True):
        make_tar(root / f"{of}.tar", {f"{of}_{number}.JPEG": contents[number] for number in range(begin, end)})
        begin = end


def write_laion(root: Path, *, images: int = 240, shards: int = 8) -> None:
    """Shards as img2dataset writes them, beside what else it leaves."""
    contents = make_images(images)
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for number in range(shard * images // shards, (shard + 1) * images // shards):
            key = f"{shard:05d}{number:04d}"
            members[f"{key}.jpg"] = contents[number]
            members[f"{key}.txt"] = f"a caption of image {number}".encode()
            members[f"{key}.json"] = json.dumps({"key": key, "status": "success"}).encode()
        make_tar(root / f"{shard:05d}.tar", members)
        (root / f"{shard:05d}_stats.json").write_text(json.dumps({"successes": images // shards}))
        (root / f"{shard:05d}.parquet").write_bytes(b"PAR1")


WRITERS = {"imagenet1k": write_imagenet1k, "imagenet21k": write_imagenet21k, "laion600m": write_laion}


def read_pixels(content: bytes) -> bytes:
    """The pixels of an encoded image."""
    return Image.open(io.BytesIO(content)).convert("RGB").tobytes()


if __name__ == "__main__":
    for name, write in WRITERS.items():
        write(Path(sys.argv[1]) / name)
