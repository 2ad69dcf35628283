"""Planes of a RASA head, learnt one after the other from patch tokens of crops: an encoder and images in, weights out.

Each plane is a linear map, trained to tell a patch's row and column from the tokens that the planes before it left, in
`epochs` epochs of AdamW at a rate that falls as a cosine to zero (Franca, section 3.3 and appendix B). Augmentation,
first weights and targets are those of valeoai/Franca rasa/@24f8c60. One thing is not: there a plane is kept as it was
trained, partly within what was removed before it, and removing it puts a part of that back. Here that part is taken
off, which leaves every prediction as it is and what was removed removed.

Letters: n images, d embedding dimensions.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from franca.config import Augment, Crops, Quirks
from franca.data.augment import draw_view, render_view
from franca.data.errors import DataError, UnreadableImageError
from franca.data.prefetch import prefetch
from franca.evaluate.position import patch_positions
from franca.evaluate.subject import EncodePatches

AUGMENT = Augment(
    flip_probability=0.5,
    jitter=(0.32, 0.32, 0.32, 0.08),  # 0.8, 0.8, 0.8 and 0.2 of a strength of 0.4
    jitter_probability=0.8,
    gray_probability=0.2,
    blur_probability_global_1=0.5,
    blur_probability_global_2=0.5,
    blur_probability_local=0.5,
    blur_sigma=(0.1, 2.0),
    solarize_probability_global_2=0.0,
)
CROP_SCALE = (0.25, 1.0)
TURN = 90  # degrees, at most, to either side


@runtime_checkable
class Images(Protocol):
    """RGB images by index."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Image.Image:
        """The image at `index`. Raises `UnreadableImageError`."""


@dataclass(frozen=True)
class RasaSettings:
    """What determines a head beside its backbone and images; the paper's values.

    The released configuration differs: a rate of 2e-4 (valeoai/Franca rasa/experiments/configs/rasa_franca.yml).
    """

    epochs: int = 5
    lr: float = 2e-3
    batch: int = 128
    px: int = 518
    seed: int = 0


def train_plane(
    encode: EncodePatches,
    images: Images,
    *,
    plane: int,
    removed: Float[Tensor, "d d"],
    settings: RasaSettings,
    grid: int,
    workers: int,
    unreadable: set[str] | None = None,
) -> tuple[Float[Tensor, "2 d"], float]:
    """Weights of the plane of number `plane`, and the mean loss of its last epoch.

    `removed` is the matrix that takes the planes before it out of tokens. A pure function of its arguments: every draw
    comes from the seed, the plane, the epoch and the image. An image that cannot be read is left out of its batch, and
    a line on it goes to `unreadable`. Raises `DataError` where none can be read.
    """
    batches = plan_batches(len(images), plane=plane, settings=settings)
    read = prefetch(functools.partial(_read_views, images, settings, plane), batches, workers=workers)
    views = _keep_readable(read, images=len(images), unreadable=set() if unreadable is None else unreadable)
    matrix = removed.float()
    layer = nn.Linear(len(matrix), 2, bias=False, device=matrix.device)
    bound = len(matrix) ** -0.5
    generator = torch.Generator().manual_seed(settings.seed * 1000 + plane)
    with torch.no_grad():
        layer.weight.copy_(torch.empty(2, len(matrix)).uniform_(-bound, bound, generator=generator))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=settings.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=len(batches))
    target, losses = patch_positions(grid, device=matrix.device), []
    for pixels in views:
        with torch.no_grad():
            left = encode(pixels) @ matrix
        loss = nn.functional.mse_loss(layer(left).sigmoid(), target.expand(len(pixels), -1, -1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    last = torch.stack(losses[-(len(batches) // settings.epochs) :]).mean()
    return (layer.weight.detach().double() @ removed).float(), float(last)


def plan_batches(images: int, *, plane: int, settings: RasaSettings) -> list[tuple[int, tuple[int, ...]]]:
    """(epoch, indices) of each step: every epoch a new order, an incomplete last batch left out, as upstream does.

    A set smaller than a batch is one batch.
    """
    batch = min(settings.batch, images)
    planned = []
    for epoch in range(settings.epochs):
        order = np.random.default_rng([settings.seed, plane, epoch]).permutation(images)
        planned += [
            (epoch, tuple(order[first : first + batch].tolist())) for first in range(0, images - batch + 1, batch)
        ]
    return planned


def make_view(image: Image.Image, *, px: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """A random crop [px, px, 3]: flipped both ways, jittered, grayed, blurred and turned, each at random.

    The corners that a turn uncovers are black.
    """
    crops = Crops(px, CROP_SCALE, 0, px, CROP_SCALE)
    view = draw_view(image.size, kind="global_1", crops=crops, augment=AUGMENT, quirks=Quirks(), generator=generator)
    u_upside_down, u_turned, u_angle = generator.random(3).tolist()
    pixels = render_view(image, view, px=px)
    if u_upside_down < 0.5:
        pixels = pixels[::-1]
    if u_turned < 0.5:
        turned = Image.fromarray(np.ascontiguousarray(pixels)).rotate(TURN * (2 * u_angle - 1))
        pixels = np.asarray(turned)
    return pixels


def _keep_readable(
    views: Iterable[tuple[Tensor, tuple[str, ...]]], *, images: int, unreadable: set[str]
) -> Iterator[UInt8[Tensor, "_ px px 3"]]:
    """The batches with any views. Raises `DataError` where there is none."""
    found = False
    for pixels, lines in views:
        unreadable.update(lines)
        if len(pixels):
            found = True
            yield pixels
    if not found:
        raise DataError(f"none of the {images} images can be read, one of them: {min(unreadable)}")


def _read_views(
    images: Images, settings: RasaSettings, plane: int, batch: tuple[int, tuple[int, ...]]
) -> tuple[UInt8[Tensor, "n px px 3"], tuple[str, ...]]:
    """Views of the images of a batch that can be read, and a line for each other."""
    epoch, indices = batch
    views, unreadable = [], []
    for index in indices:
        try:
            image = images.read(index)
        except UnreadableImageError as error:
            unreadable.append(str(error))
            continue
        generator = np.random.default_rng([settings.seed, plane, epoch, index])
        views.append(make_view(image, px=settings.px, generator=generator))
    pixels = np.stack(views) if views else np.empty((0, settings.px, settings.px, 3), np.uint8)
    return torch.from_numpy(pixels), tuple(unreadable)
