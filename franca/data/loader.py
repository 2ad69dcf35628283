"""The stream of batches: a run's configuration and dataset in, an endless iterator of `Batch`es out.

Everything random in a batch is a function of the seed and of the batch's place in the run: neither the number of
workers, of processes or of accumulation steps nor a restart changes what iteration i trains on.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from franca.config import ConfigError, Data, TrainConfig
from franca.data.augment import draw_views, normalize_batch, render_views
from franca.data.datasets import DataError, Dataset, UnreadableImageError
from franca.data.draws import average_masks, average_views
from franca.data.order import sample_indices
from franca.data.prefetch import prefetch
from franca.laws import AREAS, PIXELS
from franca.masking import draw_masks, plan_masks

READ_ATTEMPTS = 100  # images drawn in place of an unreadable one before the dataset is given up

# What a stream of random numbers is for: the second word of its seed, after the run's. 2 and 4 are the trainer's, 3, 5
# and 6 the order's.
AUGMENTATION, MASKS = 0, 1
CROPS = ("global_crops", "local_crops")
ON_DEVICE = (*CROPS, "masks")


@dataclass(frozen=True)
class Batch:
    """What one process trains on in one step; with accumulation, several make an iteration.

    b images, n local crops. global_crops [2 b, 3, h, w]: every image's first global crop, then every image's second.
    local_crops [n b, 3, h, w] likewise. masks [2 b, patches], True where the student does not see a patch of the global
    crop. mask_bound: the most patches these masks could have hidden, upstream's `upperbound`. indices [b]: each image's
    position in the dataset. unreadable: images that could not be read and were replaced, one line each. draws: what the
    crops and masks are on average, in the order of `franca.laws.DRAWS`.

    The crops travel as bytes, a quarter of what they are on the device: `to` normalizes them with `data`'s mean and
    standard deviation.
    """

    iteration: int
    global_crops: Tensor
    local_crops: Tensor
    masks: Tensor
    mask_bound: int
    indices: Tensor
    unreadable: tuple[str, ...]
    draws: NDArray[np.float64]
    data: Data

    def to(self, device: torch.device) -> "Batch":
        """The batch with its masks and normalized crops on `device`; does not wait for the copy of a pinned batch."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ON_DEVICE}
        crops = {name: normalize_batch(moved[name], data=self.data) for name in CROPS}
        return replace(self, **{**moved, **crops})

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in ON_DEVICE})


@dataclass(frozen=True)
class Request:
    """One batch to make. `stream_iteration` says which iteration's data it is; `first` is the place in its batch."""

    iteration: int
    stream_iteration: int
    first: int
    indices: NDArray[np.int64]


def make_loader(
    config: TrainConfig, dataset: Dataset, *, start_iteration: int, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Batches of this process from iteration `start_iteration` on, `accumulation` of them per iteration, endlessly.

    Process `rank` of `world_size` takes a contiguous part of each global batch. Raises `ConfigError` where processes,
    their batch and accumulation do not make the global batch. Close the iterator to end its workers.
    """
    _check_batch(config, world_size=world_size)
    return prefetch(
        functools.partial(make_batch, config, dataset),
        _list_requests(config, dataset, start_iteration=start_iteration, rank=rank),
        workers=config.execution.workers,
        pin_memory=config.execution.device == "cuda",
    )


def make_batch(config: TrainConfig, dataset: Dataset, request: Request) -> Batch:
    """Read, augment and mask the images of one request."""
    recipe = config.recipe
    crops, size = recipe.crops, len(request.indices)
    global_crops = np.empty((2, size, 3, crops.global_px, crops.global_px), np.uint8)
    local_crops = np.empty((crops.local_number, size, 3, crops.local_px, crops.local_px), np.uint8)
    indices = np.empty(size, np.int64)
    unreadable: list[str] = []
    draws = np.zeros(len(AREAS) + len(PIXELS))
    for position in range(size):
        sample = request.stream_iteration * recipe.global_batch + request.first + position
        generator = np.random.default_rng([config.seed, AUGMENTATION, sample])
        image, indices[position] = _read(dataset, int(request.indices[position]), generator, unreadable)
        views = draw_views(image.size, crops=crops, augment=recipe.augment, quirks=recipe.quirks, generator=generator)
        global_crops[:, position], local_crops[:, position] = render_views(image, views, crops=crops)
        draws += average_views(views, size=image.size) / size
    masks, mask_bound = _make_masks(config, request)
    return Batch(
        iteration=request.iteration,
        global_crops=torch.from_numpy(global_crops).flatten(0, 1),
        local_crops=torch.from_numpy(local_crops).flatten(0, 1),
        masks=torch.from_numpy(masks).flatten(1),
        mask_bound=mask_bound,
        indices=torch.from_numpy(indices),
        unreadable=tuple(unreadable),
        draws=np.concatenate([draws, average_masks(masks)]),
        data=recipe.data,
    )


def _list_requests(config: TrainConfig, dataset: Dataset, *, start_iteration: int, rank: int) -> Iterator[Request]:
    """The batches of one process, endlessly."""
    global_batch, execution = config.recipe.global_batch, config.execution
    size = execution.batch_per_process
    # QUIRK data_replayed_on_resume: valeoai/Franca train.py@24f8c60 (`sampler_advance=0`, one seed for every start).
    replayed = start_iteration if config.recipe.quirks.data_replayed_on_resume else 0
    iteration = start_iteration
    while True:
        for step in range(execution.accumulation):
            first = (rank * execution.accumulation + step) * size
            samples = (iteration - replayed) * global_batch + first + np.arange(size)
            indices = sample_indices(samples, dataset=dataset, seed=config.seed)
            yield Request(iteration, iteration - replayed, first, indices)
        iteration += 1


def _make_masks(config: TrainConfig, request: Request) -> tuple[NDArray[np.bool_], int]:
    """Masks [2 b, grid, grid] of a request's global crops and their bound: a part of the masks of the global batch.

    The plan is made for the whole batch, so that its ratios are spread alike however many processes share the batch.
    """
    recipe = config.recipe
    grid = recipe.crops.global_px // recipe.model.patch_px
    generator = np.random.default_rng([config.seed, MASKS, request.stream_iteration])
    plan = plan_masks(recipe.masking, images=2 * recipe.global_batch, grid=grid, generator=generator)
    positions = range(request.first, request.first + len(request.indices))
    rows = [crop * recipe.global_batch + position for crop in range(2) for position in positions]
    return draw_masks(plan, rows=rows), int(plan.bounds[rows].sum())


def _read(
    dataset: Dataset, index: int, generator: np.random.Generator, unreadable: list[str]
) -> tuple[Image.Image, int]:
    """The image at `index` with its index, or the first readable one of others drawn in its place."""
    for _ in range(READ_ATTEMPTS):
        try:
            return dataset.read(index)[0], index
        except UnreadableImageError as error:
            unreadable.append(str(error))
            index = int(generator.integers(len(dataset)))
    raise DataError(f"{READ_ATTEMPTS} images of {dataset.name} in a row could not be read, the last: {unreadable[-1]}")


def _check_batch(config: TrainConfig, *, world_size: int) -> None:
    execution, wanted = config.execution, config.recipe.global_batch
    found = world_size * execution.batch_per_process * execution.accumulation
    if found != wanted:
        raise ConfigError(
            f"recipe.global_batch: {wanted}, but {world_size} processes x {execution.batch_per_process} images x "
            f"{execution.accumulation} accumulation steps make {found}; set execution.batch_per_process and "
            f"execution.accumulation so that their product is {wanted // world_size}"
        )
