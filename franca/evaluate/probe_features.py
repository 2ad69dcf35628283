"""What the linear probe sees of an image: class tokens of the last blocks and the last one's mean patch, side by side.

In: a backbone and a dataset. Out: rows of this process, in memory or, where they do not fit, in a mapped file with
equal content; or, for training on augmented images, rows of the batch that is asked for.

Letters: n images, b blocks, d embedding dimensions, w = (b + 1) d values of an image.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from franca.config import Data, TrainConfig
from franca.data.augment import draw_box, normalize
from franca.data.datasets import DataError, Dataset, UnreadableImageError
from franca.data.prefetch import prefetch
from franca.distributed import all_gather_rows, all_gather_texts, rank, world_size
from franca.evaluate.features import Encode, encode_batches
from franca.evaluate.protocol import computing
from franca.models.vit import VisionTransformer

BLOCKS = 4  # dinov2 eval/linear.py
SCALE = (0.08, 1.0)  # of a training crop's area, torchvision `RandomResizedCrop`, which dinov2 leaves as it is
FLIP_PROBABILITY = 0.5  # dinov2 data/transforms.py `make_classification_train_transform`


@dataclass(frozen=True)
class Rows:
    """This process's rows among those of all: the `first`-th of `total` on, and what no process could read."""

    features: Float[Tensor, "n w"]
    labels: Int[Tensor, "n"]
    first: int
    total: int
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class AugmentedBatch:
    """What a process encodes of one training batch; `labels` are those of the images that could be read."""

    images: Float[Tensor, "n 3 px px"]
    labels: Int[Tensor, "n"]
    unreadable: tuple[str, ...]


def make_probe_encoder(model: VisionTransformer, *, config: TrainConfig, device: torch.device) -> Encode:
    """Images in, their w values out: class tokens of the last four blocks, oldest first, then the mean patch token."""
    precision = config.recipe.precision.backbone
    model = model.to(device).eval()
    blocks = min(BLOCKS, model.model.depth)

    def encode(images: Float[Tensor, "n 3 px px"]) -> Float[Tensor, "n w"]:
        with computing(precision, device=device):
            features = model.intermediate_features(images, blocks=blocks)
        tokens = [part.cls.float() for part in features] + [features[-1].patches.float().mean(dim=1)]
        return torch.cat(tokens, dim=1)

    return encode


def load_rows(
    encode: Encode,
    dataset: Dataset,
    *,
    config: TrainConfig,
    device: torch.device,
    folder: Path,
    memory_bytes: int | None,
) -> Rows:
    """Encode the center crops of a dataset's images.

    Rows of this process that take more than `memory_bytes` (None: half of what is free) are kept in a file in `folder`,
    mapped into memory, not on the device. Raises `DataError` if no image can be read.
    """
    budget = free_bytes(device) // 2 if memory_bytes is None else memory_bytes
    parts, labels, unreadable, width = [], [], [], 0
    path = folder / f"{dataset.name}-{len(dataset)}-{rank()}.rows"
    path.unlink(missing_ok=True)
    recipe, workers = config.recipe, config.execution.workers
    options = {"data": recipe.data, "px": recipe.crops.global_px, "workers": workers, "device": device}
    for encoded, classes, failures in encode_batches(encode, dataset, **options):
        width = encoded.shape[1]
        if len(dataset) * width * encoded.itemsize > budget * world_size():
            append_rows(path, encoded)
        else:
            parts.append(encoded)
        labels.append(classes)
        unreadable += failures
    lines = all_gather_texts(unreadable)
    if len(lines) == len(dataset):
        raise DataError(f"none of the {len(dataset)} images of {dataset.name} can be read, the last: {lines[-1]}")
    features = torch.cat(parts) if parts else map_rows(path, width=width)
    sizes = all_gather_rows(torch.tensor([len(features)]))
    return Rows(features, torch.cat(labels), int(sizes[: rank()].sum()), int(sizes.sum()), lines)


def free_bytes(device: torch.device) -> int:
    """Memory that nobody uses, on a GPU or of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def append_rows(path: Path, rows: Float[Tensor, "_ w"]) -> None:
    """Write rows behind those in a file, which is made with its folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(rows.cpu().numpy().tobytes())


def map_rows(path: Path, *, width: int) -> Float[Tensor, "n w"]:
    """All rows of a file, read from the disk as they are asked for. Its name is gone; the mapping holds its content."""
    rows = path.stat().st_size // (4 * width)
    mapped = torch.from_file(str(path), shared=True, size=rows * width, dtype=torch.float32) if rows else torch.empty(0)
    path.unlink()
    return mapped.view(rows, width)


def augmented_batches(
    dataset: Dataset,
    batches: Sequence[NDArray[np.int64]],
    *,
    first: int,
    config: TrainConfig,
    seed: int,
) -> Iterator[AugmentedBatch]:
    """This process's part of each batch of image numbers, randomly cropped and flipped as published.

    `first` is the number of the first batch: what is drawn depends on the batch, the place in it and the seed alone.
    """
    recipe = config.recipe
    share = slice(rank(), None, world_size())  # here: a worker that reads belongs to no group of processes
    read = functools.partial(_read_augmented, dataset, recipe.data, recipe.crops.global_px, seed, share)
    arguments = list(enumerate(batches, start=first))
    return prefetch(read, arguments, workers=config.execution.workers if len(batches) > 1 else 0)


def _read_augmented(
    dataset: Dataset, data: Data, px: int, seed: int, share: slice, request: tuple[int, NDArray[np.int64]]
) -> AugmentedBatch:
    """The places `share` of a batch."""
    number, indices = request
    pixels, labels, unreadable = [], [], []
    for place in range(len(indices))[share]:
        try:
            image, label = dataset.read(int(indices[place]))
        except UnreadableImageError as error:
            unreadable.append(str(error))
            continue
        generator = np.random.default_rng((seed, number, place))
        pixels.append(normalize(crop_and_flip(image, px=px, generator=generator), data=data))
        labels.append(label)
    images = np.stack(pixels) if pixels else np.empty((0, 3, px, px), np.float32)
    return AugmentedBatch(torch.from_numpy(images), torch.tensor(labels, dtype=torch.long), tuple(unreadable))


def crop_and_flip(image: Image.Image, *, px: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """A random crop [px, px, 3] of 8 to 100 % of the area (bicubic), mirrored every other time."""
    box = draw_box(image.size, scale=SCALE, generator=generator)
    crop = image.crop(box).resize((px, px), Image.Resampling.BICUBIC)
    if generator.random() < FLIP_PROBABILITY:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(crop)
