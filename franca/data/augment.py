"""Multi-crop augmentation (DINO, DINOv2, Franca): one image in, its global and local crops out as bytes.

Per crop: random resized crop, flip, color jitter, gray, blur, solarization of the second global crop, in upstream's
order; normalization, the last step, is left to the device. The operations give the pixels that torchvision's give on
PIL images, without torchvision. What is random is drawn first, as a `View`, from the generator passed in; rendering a
view is deterministic.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import correlate1d
from torch import Tensor

from franca.config import Augment, Crops, Data, Quirks
from franca.data.hue import turn_hue

ASPECT = (3 / 4, 4 / 3)  # of a crop's box, torchvision `RandomResizedCrop`
CROP_ATTEMPTS = 10  # torchvision `RandomResizedCrop.get_params`
BLUR_RADIUS = 4  # kernel of 9, dinov2 `GaussianBlur`
SOLARIZE_THRESHOLD = 128
JITTER_ORDERS = tuple(itertools.permutations(range(4)))

Kind = Literal["global_1", "global_2", "local"]
Box = tuple[int, int, int, int]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class View:
    """What was drawn for one crop. `jitter` holds (operation, factor) in the order of application; sigma in pixels.

    `box` is left, top, right, bottom in the image's pixels. `sigma` is None where the crop is not blurred.
    """

    box: Box
    flip: bool
    jitter: tuple[tuple[str, float], ...]
    gray: bool
    sigma: float | None
    solarize: bool


def multi_crop(
    image: Image.Image, *, crops: Crops, augment: Augment, quirks: Quirks, generator: np.random.Generator
) -> tuple[list[Pixels], list[Pixels]]:
    """The two global and `local_number` local crops of an RGB image, each [3, px, px]."""
    views = draw_views(image.size, crops=crops, augment=augment, quirks=quirks, generator=generator)
    return render_views(image, views, crops=crops)


def draw_views(
    size: tuple[int, int], *, crops: Crops, augment: Augment, quirks: Quirks, generator: np.random.Generator
) -> list[View]:
    """Draw all crops of an image of `size` (width, height): the two global ones, then the local ones."""
    kinds: tuple[Kind, ...] = ("global_1", "global_2", *["local"] * crops.local_number)
    return [
        draw_view(size, kind=kind, crops=crops, augment=augment, quirks=quirks, generator=generator) for kind in kinds
    ]


def render_views(image: Image.Image, views: Sequence[View], *, crops: Crops) -> tuple[list[Pixels], list[Pixels]]:
    """The crops of `draw_views`, each [3, px, px]: the global ones and the local ones."""
    sides = (crops.global_px, crops.global_px, *[crops.local_px] * crops.local_number)
    rendered = [render_view(image, view, px=px).transpose(2, 0, 1) for view, px in zip(views, sides, strict=True)]
    return rendered[:2], rendered[2:]


def draw_view(
    size: tuple[int, int],
    *,
    kind: Kind,
    crops: Crops,
    augment: Augment,
    quirks: Quirks,
    generator: np.random.Generator,
) -> View:
    """Draw one crop of an image of `size` (width, height)."""
    box = draw_box(size, scale=crops.local_scale if kind == "local" else crops.global_scale, generator=generator)
    # All at once and always as many: one call is cheap, ten are not.
    u_flip, u_jitter, u_order, *u_factors, u_gray, u_blur, u_sigma, u_solarize = generator.random(11).tolist()
    blur_probability = {
        "global_1": augment.blur_probability_global_1,
        "global_2": augment.blur_probability_global_2,
        "local": augment.blur_probability_local,
    }[kind]
    if quirks.blur_inverted:  # QUIRK blur_inverted: facebookresearch/dinov2 transforms.py@b8931f7
        blur_probability = 1 - blur_probability
    jitter = _draw_jitter(augment.jitter, u_order, u_factors) if u_jitter < augment.jitter_probability else ()
    return View(
        box=box,
        flip=u_flip < augment.flip_probability,
        jitter=jitter,
        gray=u_gray < augment.gray_probability,
        sigma=_between(augment.blur_sigma, u_sigma) if u_blur < blur_probability else None,
        solarize=kind == "global_2" and u_solarize < augment.solarize_probability_global_2,
    )


def draw_box(size: tuple[int, int], *, scale: tuple[float, float], generator: np.random.Generator) -> Box:
    """A box whose share of the area is uniform in `scale` and whose aspect is log-uniform in 3/4..4/3.

    After ten boxes that do not fit, the largest centered box within these aspects (torchvision `RandomResizedCrop`).
    """
    width, height = size
    for _ in range(CROP_ATTEMPTS):
        u_area, u_aspect, u_top, u_left = generator.random(4).tolist()
        area = width * height * _between(scale, u_area)
        aspect = math.exp(_between((math.log(ASPECT[0]), math.log(ASPECT[1])), u_aspect))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(u_left * (width - w + 1)), int(u_top * (height - h + 1))
            return left, top, left + w, top + h
    # An image one pixel thin rounds to no pixel at all, hence at least one.
    w, h = min(width, max(1, round(height * ASPECT[1]))), min(height, max(1, round(width / ASPECT[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def render_view(image: Image.Image, view: View, *, px: int) -> NDArray[np.uint8]:
    """One crop [px, px, 3] of an RGB image."""
    crop = image.crop(view.box).resize((px, px), Image.Resampling.BICUBIC)
    if view.flip:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for operation, factor in view.jitter:
        crop = JITTERS[operation](crop, factor)
    if view.gray:
        crop = crop.convert("L").convert("RGB")
    pixels = np.asarray(crop)
    if view.sigma is not None:
        pixels = blur(pixels, sigma=view.sigma)
    if view.solarize:
        pixels = np.where(pixels >= SOLARIZE_THRESHOLD, 255 - pixels, pixels)
    return pixels


def normalize(pixels: NDArray[np.uint8], *, data: Data) -> NDArray[np.float32]:
    """Bytes [h, w, 3] as float32 [3, h, w]: scaled to 0..1, minus the mean, over the standard deviation."""
    scale, shift = _normalization(data.mean, data.std)
    return np.ascontiguousarray((pixels * scale + shift).transpose(2, 0, 1))


def normalize_batch(pixels: UInt8[Tensor, "b 3 h w"], *, data: Data) -> Float32[Tensor, "b 3 h w"]:
    """The same numbers for a batch, channels first, where it lies."""
    scale, shift = _normalization_on(pixels.device, data.mean, data.std)
    return pixels.to(torch.float32).mul_(scale).add_(shift)


def adjust_brightness(image: Image.Image, factor: float) -> Image.Image:
    """Blend with black: factor 0 is black, 1 the image."""
    return Image.blend(Image.new("RGB", image.size), image, factor)


def adjust_contrast(image: Image.Image, factor: float) -> Image.Image:
    """Blend with the uniform gray of the image's mean luma, rounded to a byte."""
    luma = np.asarray(image.convert("L"))
    mean = (2 * int(luma.sum(dtype=np.int64)) + luma.size) // (2 * luma.size)
    return Image.blend(Image.new("RGB", image.size, (mean, mean, mean)), image, factor)


def adjust_saturation(image: Image.Image, factor: float) -> Image.Image:
    """Blend with the image's own luma."""
    return Image.blend(image.convert("L").convert("RGB"), image, factor)


def adjust_hue(image: Image.Image, turns: float) -> Image.Image:
    """Turn the hue by a share of the circle, in steps of 1/256 as torchvision does."""
    return Image.fromarray(turn_hue(np.asarray(image), steps=int(turns * 255)))


def blur(pixels: NDArray[np.uint8], *, sigma: float) -> NDArray[np.uint8]:
    """Gaussian blur [h, w, 3] with nine taps that sum to 1 and reflected borders (torchvision `GaussianBlur(9)`)."""
    offsets = np.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)
    taps = np.exp(-0.5 * (offsets / sigma) ** 2)
    taps /= taps.sum()
    rows = correlate1d(pixels, taps, axis=0, mode="mirror", output=np.float32)
    return np.rint(correlate1d(rows, taps, axis=1, mode="mirror")).astype(np.uint8)


JITTERS = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


def _draw_jitter(
    strengths: tuple[float, float, float, float], u_order: float, u_factors: list[float]
) -> tuple[tuple[str, float], ...]:
    """The operations in a uniformly random order, each with its factor; those of strength zero are left out."""
    drawn = []
    for index in JITTER_ORDERS[int(u_order * len(JITTER_ORDERS))]:
        name, strength, u = tuple(JITTERS)[index], strengths[index], u_factors[index]
        if strength:
            low, high = (-strength, strength) if name == "hue" else (max(0.0, 1 - strength), 1 + strength)
            drawn.append((name, _between((low, high), u)))
    return tuple(drawn)


def _between(bounds: tuple[float, float], u: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * u


@functools.lru_cache
def _normalization(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scale and shift per channel that turn a byte into its normalized value."""
    spread = np.array(std)
    return (1 / (255 * spread)).astype(np.float32), (-np.array(mean) / spread).astype(np.float32)


@functools.lru_cache
def _normalization_on(device: torch.device, mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """The same as tensors [3, 1, 1]. Kept there: each copy from pageable memory would wait for the device's work."""
    scale, shift = (torch.from_numpy(x)[:, None, None].to(device) for x in _normalization(mean, std))
    return scale, shift
