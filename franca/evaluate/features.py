"""Features of a dataset's images: a function of images and a dataset in, one float32 row per readable image out.

Images are resized (bicubic, antialiased) and cropped at the center as in dinov2 `make_classification_eval_transform`.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from franca.config import Data
from franca.data.augment import normalize
from franca.data.datasets import DataError, Dataset, UnreadableImageError
from franca.data.prefetch import prefetch
from franca.distributed import all_gather_texts, rank, world_size

LOG = logging.getLogger(__name__)

Encode = Callable[[Float[Tensor, "b 3 px px"]], Float[Tensor, "b d"]]

BATCH = 256  # images at a time, dinov2 eval/knn.py
FEW = 4096  # images that are read before workers, which take seconds to start, would be of help

# The shorter side is resized to this many times the center crop: ImageNet's 256 for a crop of 224; digits stay whole.
RESIZE = {"digits": 1.0, "imagenet1k": 256 / 224}


@dataclass
class Pace:
    """When the next line of progress is due: `seconds` after the last one."""

    seconds: float = 10.0
    last: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        """Whether it is; the line after it is due `seconds` later."""
        now = time.monotonic()
        if now - self.last < self.seconds:
            return False
        self.last = now
        return True


@dataclass(frozen=True)
class FeatureSet:
    """Features and classes of this process's readable images, and a line for each that no process could read."""

    features: Float[Tensor, "n d"]
    labels: Int[Tensor, "n"]
    unreadable: tuple[str, ...]


def extract_features(
    encode: Encode, dataset: Dataset, *, data: Data, px: int, workers: int, device: torch.device
) -> FeatureSet:
    """Encode every image of a dataset in its order, on `device`. Raises `DataError` if none can be read.

    Of several processes each encodes its own part: the parts one after another are the whole.
    """
    features, labels, unreadable = [], [], []
    for encoded, classes, failures in encode_batches(encode, dataset, data=data, px=px, workers=workers, device=device):
        features.append(encoded)
        labels.append(classes)
        unreadable += failures
    lines = all_gather_texts(unreadable)
    if len(lines) == len(dataset):
        raise DataError(f"none of the {len(dataset)} images of {dataset.name} can be read, the last: {lines[-1]}")
    return FeatureSet(torch.cat(features), torch.cat(labels), lines)


def encode_batches(
    encode: Encode, dataset: Dataset, *, data: Data, px: int, workers: int, device: torch.device
) -> Iterator[tuple[Float[Tensor, "b d"], Int[Tensor, "b"], tuple[str, ...]]]:
    """Features, classes and the unreadable of this process's part of a dataset, up to `BATCH` images at a time.

    `workers` processes read a large dataset. `encode` takes normalized images [b, 3, px, px]; put its model into
    evaluation mode first. Every process calls it equally often, as a model that lies in shards over them demands.
    """
    batches = [np.arange(first, min(first + BATCH, len(dataset))) for first in range(0, len(dataset), BATCH)]
    each = -(-len(batches) // world_size())
    mine = batches[rank() * each : (rank() + 1) * each]
    mine += [np.arange(0)] * (each - len(mine))
    read = functools.partial(_read_batch, dataset, data, px)
    workers = workers if len(dataset) > FEW else 0
    parts = prefetch(read, mine, workers=workers, pin_memory=device.type == "cuda")
    if len(dataset) > FEW:
        LOG.info("%s: encoding %s images of %d px", dataset.name, f"{len(dataset):,}", px)
    pace = Pace()
    for number, (images, classes, failures) in enumerate(parts, start=1):
        inputs = images if len(images) else images.new_zeros(1, *images.shape[1:])
        with torch.inference_mode():
            encoded = encode(inputs.to(device, non_blocking=True)).float()[: len(images)]
        if len(dataset) > FEW and pace.due():
            LOG.info("%s: %s of %s images", dataset.name, f"{number * BATCH:,}", f"{each * BATCH:,}")
        yield encoded, classes.to(device), failures


def center_view(image: Image.Image, *, px: int, resize_px: int) -> NDArray[np.uint8]:
    """The center [px, px, 3] of an image whose shorter side is resized to `resize_px` pixels."""
    width, height = image.size
    short = min(width, height)
    # The longer side is cut to an integer as torchvision's `Resize` does, the offset rounded as its `CenterCrop` does.
    image = image.resize((resize_px * width // short, resize_px * height // short), Image.Resampling.BICUBIC)
    left, top = round((image.width - px) / 2), round((image.height - px) / 2)
    return np.asarray(image.crop((left, top, left + px, top + px)))


def _read_batch(
    dataset: Dataset, data: Data, px: int, indices: NDArray[np.int64]
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Normalized images, their classes, and a line for each that could not be read."""
    images, labels, unreadable = [], [], []
    resize_px = round(px * RESIZE[dataset.name])
    for index in indices.tolist():
        try:
            image, label = dataset.read(index)
        except UnreadableImageError as error:
            unreadable.append(str(error))
            continue
        images.append(normalize(center_view(image, px=px, resize_px=resize_px), data=data))
        labels.append(label)
    pixels = np.stack(images) if images else np.empty((0, 3, px, px), np.float32)
    return torch.from_numpy(pixels), torch.tensor(labels, dtype=torch.long), tuple(unreadable)
