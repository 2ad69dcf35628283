"""Patch masks of iBOT: the patches of the global crops that the student does not see. Pure: numpy, no torch.

In: how many images, the grid of a global crop, a generator. Out: boolean masks, True where a patch is hidden.
The shares of hidden patches are stratified over the masked images of the whole batch (dinov2 `collate_data_and_cast`),
so a batch holds light and heavy masks in the same proportion at every iteration.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from franca.config import Masking

MIN_ASPECT = 0.3  # of a rectangle; the largest is its inverse (dinov2 and Franca `MaskingGenerator`)
MIN_RECTANGLE = 4  # patches, dinov2 `min_num_patches`
ATTEMPTS = 10  # to place one rectangle, dinov2 `_mask`


@dataclass(frozen=True)
class MaskPlan:
    """What is decided for a whole batch before any mask is drawn; row i is image i.

    counts: patches to hide, 0 where an image is not masked. bounds: the most its stratum could have asked for; their
    sum is the length of upstream's padded patch buffer. seeds: one per image, so that a part can be drawn alone.
    """

    kind: Literal["block", "inverse_block", "cyclic"]
    grid: int
    counts: NDArray[np.int64]
    bounds: NDArray[np.int64]
    seeds: NDArray[np.int64]


def sample_masks(masking: Masking, *, images: int, grid: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Masks [images, grid, grid] of a batch of `images` global crops."""
    return draw_masks(plan_masks(masking, images=images, grid=grid, generator=generator), rows=range(images))


def plan_masks(masking: Masking, *, images: int, grid: int, generator: np.random.Generator) -> MaskPlan:
    """Choose the masked images (a share `sample_probability`, rounded down) and how many patches each one hides.

    The range of ratios is cut into as many equal pieces as images are masked; each masked image draws from its piece.
    """
    masked = int(images * masking.sample_probability)
    edges = _linspace_float32(*masking.ratio, masked + 1)
    ratios = edges[:-1] + (edges[1:] - edges[:-1]) * generator.random(masked).astype(np.float32)
    chosen = generator.permutation(images)[:masked]
    counts, bounds = np.zeros(images, np.int64), np.zeros(images, np.int64)
    counts[chosen] = (np.float32(grid * grid) * ratios).astype(np.int64)
    bounds[chosen] = (np.float32(grid * grid) * edges[1:]).astype(np.int64)
    return MaskPlan(masking.kind, grid, counts, bounds, generator.integers(2**63, size=images, dtype=np.int64))


def draw_masks(plan: MaskPlan, *, rows: Sequence[int]) -> NDArray[np.bool_]:
    """Masks [len(rows), grid, grid] of some images of a planned batch: the same whichever rows are drawn with them."""
    masks = np.zeros((len(rows), plan.grid, plan.grid), np.bool_)
    draw = MASKS[plan.kind]
    for mask, row in zip(masks, rows, strict=True):
        if plan.counts[row]:
            generator = np.random.default_rng(int(plan.seeds[row]))
            mask[:] = draw(int(plan.counts[row]), grid=plan.grid, generator=generator)
    return masks


def block_mask(count: int, *, grid: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Rectangles that may overlap, until `count` patches are hidden or no further one fits (BEiT, iBOT, DINOv2).

    Hides at most `count` patches, often fewer. A rectangle holds at most half the grid (dinov2 `max_num_patches`).
    """
    mask = np.zeros((grid, grid), np.bool_)
    largest = grid // 2 * grid
    hidden = 0
    while hidden < count:
        added = _hide_rectangle(mask, most=min(count - hidden, largest), generator=generator)
        if not added:
            break
        hidden += added
    return mask


def inverse_block_mask(count: int, *, grid: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Hides exactly `count` patches: all but one rectangle, whose last rows are cut short to make the number exact.

    The rectangle's aspect is log-uniform within [0.3, 1 / 0.3] as far as it fits the grid (Franca `BlockMasking`).
    """
    visible = grid * grid - count
    if not visible:
        return np.ones((grid, grid), np.bool_)
    tallest = min(-math.log(MIN_ASPECT), math.log(grid * grid / visible))
    aspect = math.exp(tallest * (2 * generator.random() - 1))
    height = min(math.ceil(math.sqrt(visible * aspect)), grid)
    width = min(math.ceil(math.sqrt(visible / aspect)), grid)
    top, left = generator.integers(grid - height + 1), generator.integers(grid - width + 1)
    rows, rest = divmod(visible, width)
    mask = np.ones((grid, grid), np.bool_)
    mask[top : top + rows, left : left + width] = False
    mask[top + rows : top + rows + 1, left : left + rest] = False
    return mask


def cyclic_mask(count: int, *, grid: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """An inverse block rolled around both axes by uniform offsets: every patch is hidden equally often (CyclicMask)."""
    mask = inverse_block_mask(count, grid=grid, generator=generator)
    down, right = generator.integers(grid, size=2).tolist()
    return np.roll(mask, (down, right), axis=(0, 1))


MASKS = {"block": block_mask, "inverse_block": inverse_block_mask, "cyclic": cyclic_mask}


def _hide_rectangle(mask: NDArray[np.bool_], *, most: int, generator: np.random.Generator) -> int:
    """Hide a random rectangle that adds 1 to `most` patches, in place. Returns how many it added, 0 if none fitted."""
    grid = len(mask)
    for _ in range(ATTEMPTS):
        u_area, u_aspect, u_top, u_left = generator.random(4).tolist()
        # Near the end `most` is below the least area and the interval is reversed: upstream draws between the two.
        area = MIN_RECTANGLE + (most - MIN_RECTANGLE) * u_area
        aspect = math.exp(math.log(MIN_ASPECT) * (1 - 2 * u_aspect))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= grid or width >= grid:
            continue
        top, left = int(u_top * (grid - height + 1)), int(u_left * (grid - width + 1))
        region = mask[top : top + height, left : left + width]
        added = region.size - int(np.count_nonzero(region))
        if 0 < added <= most:
            region[:] = True
            return added
    return 0


def _linspace_float32(start: float, end: float, points: int) -> NDArray[np.float32]:
    """`torch.linspace` in float32, to the bit: steps up from the start in the first half, down from the end after it.

    Upstream multiplies these edges by the number of patches and cuts to an integer, so the last bit can matter.
    """
    first, last = np.float32(start), np.float32(end)
    if points == 1:
        return np.array([first])
    step = float((last - first) / np.float32(points - 1))
    index = np.arange(points)
    up, down = float(first) + step * index, float(last) - step * (points - 1 - index)  # one rounding, as fma does
    return np.where(index < points // 2, up, down).astype(np.float32)
