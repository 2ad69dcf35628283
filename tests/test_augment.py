"""Crops have the pixels of Pillow's and torchvision's operations, and what is random follows the published numbers."""

import dataclasses
import functools
import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from recipes import make_recipe
from scipy import stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from franca.config import Quirks
from franca.data.augment import (
    Kind,
    View,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    blur,
    draw_box,
    draw_view,
    multi_crop,
    normalize,
    normalize_batch,
    render_view,
)

RECIPE = make_recipe(
    augment={"flip_probability": 0.5, "jitter": [0.4, 0.4, 0.2, 0.1]},
    data={"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    crops={"global_scale": [0.32, 1.0], "local_scale": [0.05, 0.32]},
)
DRAWS = 20_000
KINDS: tuple[Kind, ...] = ("global_1", "global_2", "local")

images = st.builds(
    lambda seed, width, height: make_image(seed, width=width, height=height),
    st.integers(0, 999),
    st.integers(1, 40),
    st.integers(1, 40),
)


def make_image(seed: int = 0, *, width: int = 40, height: int = 30) -> Image.Image:
    """Smooth color noise: neighbors resemble one another, all levels occur."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@functools.cache
def draw_views(kind: Kind, *, quirks: Quirks) -> list[View]:
    generator = np.random.default_rng(KINDS.index(kind))
    return [
        draw_view((500, 375), kind=kind, crops=RECIPE.crops, augment=RECIPE.augment, quirks=quirks, generator=generator)
        for _ in range(DRAWS)
    ]


def assert_share(found: int, draws: int, probability: float) -> None:
    """`found` of `draws` is within 4.5 standard deviations of the probability, exactly it where that is 0 or 1."""
    assert abs(found / draws - probability) <= 4.5 * math.sqrt(probability * (1 - probability) / draws)


def naive_blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Every pixel's weighted mean over the 9 x 9 pixels around it, mirrored at the border, in float64."""
    height, width, _ = pixels.shape
    taps = np.array([math.exp(-((t / sigma) ** 2) / 2) for t in range(-4, 5)])
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    padded = np.pad(pixels.astype(np.float64), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    blurred = np.zeros(pixels.shape)
    for down, right in itertools.product(range(9), range(9)):
        blurred += kernel[down, right] * padded[down : down + height, right : right + width]
    return blurred


@given(images, st.floats(0, 2))
def test_jitter_has_pillows_pixels(image: Image.Image, factor: float) -> None:
    """Brightness, contrast and saturation equal Pillow's enhancers, which torchvision calls."""
    assert adjust_brightness(image, factor).tobytes() == ImageEnhance.Brightness(image).enhance(factor).tobytes()
    assert adjust_contrast(image, factor).tobytes() == ImageEnhance.Contrast(image).enhance(factor).tobytes()
    assert adjust_saturation(image, factor).tobytes() == ImageEnhance.Color(image).enhance(factor).tobytes()


@given(images, st.floats(-0.5, 0.5))
def test_hue_turns_by_whole_levels_around_the_circle(image: Image.Image, turns: float) -> None:
    """The hue byte moves by the share of 255, cut to an integer, modulo 256; saturation and value stay."""
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point([(level + int(turns * 255)) % 256 for level in range(256)])
    expected = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
    assert adjust_hue(image, turns).tobytes() == expected.tobytes()


@given(st.integers(0, 999), st.integers(5, 40), st.integers(5, 40), st.floats(0.1, 2.0))
def test_blur_equals_the_naive_convolution(seed: int, width: int, height: int, sigma: float) -> None:
    """Nine Gaussian taps per axis with mirrored borders, rounded to the nearest byte."""
    pixels = np.asarray(make_image(seed, width=width, height=height))
    exact = naive_blur(pixels, sigma)
    assert np.abs(blur(pixels, sigma=sigma) - exact).max() < 0.5 + 1e-4


@given(st.integers(1, 4), st.floats(0.1, 2.0))
def test_blur_of_an_image_smaller_than_its_kernel(px: int, sigma: float) -> None:
    """Mirrors repeat, so a uniform image stays what it is at any size."""
    pixels = np.full((px, px, 3), 77, np.uint8)
    assert (blur(pixels, sigma=sigma) == pixels).all()


@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 99))
def test_box_lies_in_the_image(width: int, height: int, seed: int) -> None:
    """Any image gives a box of at least one pixel, within its borders."""
    left, top, right, bottom = draw_box((width, height), scale=(0.05, 0.32), generator=np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_box_has_uniform_area_log_uniform_aspect_and_uniform_place() -> None:
    """On an image where every box fits, the shares of area, the aspects and the places are spread as published."""
    width, height, low, high = 10_000, 10_000, 0.05, 0.32
    generator = np.random.default_rng(0)
    boxes = np.array([draw_box((width, height), scale=(low, high), generator=generator) for _ in range(DRAWS)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    uniforms = {
        "area": (w * h / (width * height) - low) / (high - low),
        "aspect": np.log(w / h * 4 / 3) / (2 * math.log(4 / 3)),
        "left": boxes[:, 0] / (width - w),
        "top": boxes[:, 1] / (height - h),
    }
    for name, found in uniforms.items():
        assert stats.kstest(found, "uniform").pvalue > 1e-3, name


@pytest.mark.parametrize("scale", [(0.32, 1.0), (0.05, 0.32)])
def test_boxes_of_a_photograph_are_those_that_fit(scale: tuple[float, float]) -> None:
    """In 4:3, where large boxes stick out, (area, log aspect) is uniform over the boxes that fit, by its closed form.

    Integrated on a grid: the distribution of each, and how often ten boxes in a row do not fit.
    """
    width, height, (low, high) = 8_000, 6_000, scale  # large, so that whole pixels do not matter
    generator = np.random.default_rng(1)
    boxes = np.array([draw_box((width, height), scale=scale, generator=generator) for _ in range(DRAWS)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, aspect = np.meshgrid(
        np.linspace(low, high, 2001), np.linspace(-math.log(4 / 3), math.log(4 / 3), 2001), indexing="ij"
    )
    fits = (area * width * height * np.exp(aspect) <= width**2) & (area * width * height <= height**2 * np.exp(aspect))
    assert_share(int(((w * 3 == h * 4) & (h == height)).sum()), DRAWS, (1 - fits.mean()) ** 10)
    for found, values, axis in ((w * h / (width * height), area[:, 0], 1), (np.log(w / h), aspect[0], 0)):
        cumulated = np.cumsum(fits.mean(axis=axis))
        expected = functools.partial(np.interp, xp=values, fp=cumulated / cumulated[-1])
        assert stats.kstest(found, expected).pvalue > 1e-3


def test_box_that_cannot_fit_falls_back_to_the_center() -> None:
    """Where ten boxes in a row do not fit, the largest centered box with an aspect in 3/4..4/3 is taken."""
    generator = np.random.default_rng(0)
    assert draw_box((1000, 30), scale=(0.9, 1.0), generator=generator) == (480, 0, 520, 30)
    assert draw_box((30, 1000), scale=(0.9, 1.0), generator=generator) == (0, 480, 30, 520)
    assert draw_box((1, 50), scale=(0.9, 1.0), generator=generator) == (0, 24, 1, 25)
    assert draw_box((100, 100), scale=(2.0, 3.0), generator=generator) == (0, 0, 100, 100)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inverted", [False, True])
def test_operations_have_their_probabilities(kind: Kind, inverted: bool) -> None:
    """Flip, jitter, gray, blur and solarization come as often as configured; the quirk turns the odds of blur."""
    views = draw_views(kind, quirks=Quirks(blur_inverted=inverted))
    augment = RECIPE.augment
    configured = {"global_1": 1.0, "global_2": 0.1, "local": 0.5}[kind]
    assert_share(sum(view.flip for view in views), DRAWS, augment.flip_probability)
    assert_share(sum(bool(view.jitter) for view in views), DRAWS, augment.jitter_probability)
    assert_share(sum(view.gray for view in views), DRAWS, augment.gray_probability)
    assert_share(sum(view.sigma is not None for view in views), DRAWS, 1 - configured if inverted else configured)
    assert_share(sum(view.solarize for view in views), DRAWS, 0.2 if kind == "global_2" else 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_operations_are_drawn_independently(kind: Kind) -> None:
    """No operation is likelier where another one is applied, nor in larger crops: correlations are chance alone."""
    views = draw_views(kind, quirks=Quirks(blur_inverted=kind == "global_1"))
    drawn = np.array(
        [
            (view.flip, bool(view.jitter), view.gray, view.sigma is not None, view.solarize, view.box[2] - view.box[0])
            for view in views
        ],
        dtype=np.float64,
    )
    varied = drawn[:, drawn.std(axis=0) > 0]
    correlations = np.corrcoef(varied.T)[np.triu_indices(varied.shape[1], 1)]
    assert len(correlations) >= 6
    assert np.abs(correlations).max() < 4.5 / math.sqrt(DRAWS)


def test_strengths_are_uniform() -> None:
    """Jitter factors lie uniformly around 1 (the hue's around 0), the blur's sigma within its bounds."""
    views = draw_views("global_1", quirks=Quirks())
    bounds = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.8, 1.2), "hue": (-0.1, 0.1)}
    for name, (low, high) in bounds.items():
        factors = np.array([dict(view.jitter)[name] for view in views if view.jitter])
        assert stats.kstest((factors - low) / (high - low), "uniform").pvalue > 1e-3, name
    sigmas = np.array([view.sigma for view in views])
    assert stats.kstest((sigmas - 0.1) / 1.9, "uniform").pvalue > 1e-3


def test_jitter_comes_in_every_order_equally_often() -> None:
    """The four operations are shuffled for every crop."""
    orders = Counter(
        tuple(name for name, _ in view.jitter) for view in draw_views("local", quirks=Quirks()) if view.jitter
    )
    assert len(orders) == math.factorial(4)
    assert stats.chisquare(list(orders.values())).pvalue > 1e-3


def test_operation_without_strength_is_left_out() -> None:
    """A jitter of strength 0 is not applied: Pillow's hue of 0 would still cost a conversion and round."""
    augment = dataclasses.replace(RECIPE.augment, jitter=(0.4, 0.0, 0.0, 0.0), jitter_probability=1.0)
    view = draw_view(
        (8, 8),
        kind="local",
        crops=RECIPE.crops,
        augment=augment,
        quirks=Quirks(),
        generator=np.random.default_rng(0),
    )
    assert [name for name, _ in view.jitter] == ["brightness"]


@given(images, st.booleans(), st.booleans(), st.booleans(), st.permutations(["brightness", "contrast", "saturation"]))
def test_view_applies_operations_in_upstreams_order(
    image: Image.Image, flip: bool, gray: bool, solarize: bool, order: list[str]
) -> None:
    """Crop, resize, flip, jitter in its own order, gray, blur, solarization: Pillow's pixels step by step."""
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    box = (image.width // 4, image.height // 4, image.width, image.height)
    jitter = tuple((name, 1.3) for name in order)
    expected = image.crop(box).resize((9, 9), Image.Resampling.BICUBIC)
    if flip:
        expected = ImageOps.mirror(expected)
    for name in order:
        expected = enhancers[name](expected).enhance(1.3)
    if gray:
        expected = ImageOps.grayscale(expected).convert("RGB")
    blurred = Image.fromarray(np.rint(naive_blur(np.asarray(expected), 0.7)).astype(np.uint8))
    final = ImageOps.solarize(blurred, threshold=128) if solarize else blurred
    found = render_view(image, View(box, flip, jitter, gray, 0.7, solarize), px=9).astype(int)
    # A mean that lies halfway between two bytes may go to either; at the threshold that byte is inverted or not.
    differs = (found != np.asarray(final)).mean()
    assert differs < 0.01


@given(images)
def test_normalized_pixels_are_standardized_channels(image: Image.Image) -> None:
    """A byte becomes (byte / 255 - mean) / std of its channel, channels first."""
    pixels = np.asarray(image)
    found = normalize(pixels, data=RECIPE.data)
    mean, std = np.array(RECIPE.data.mean), np.array(RECIPE.data.std)
    expected = np.moveaxis((pixels / 255 - mean) / std, -1, 0)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert np.abs(found - expected).max() < 1e-6


def test_multi_crop_gives_two_global_and_the_local_crops() -> None:
    """Crops have the recipe's number and size, differ from one another, and follow from the generator alone."""

    def crop(seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return multi_crop(
            make_image(3),
            crops=RECIPE.crops,
            augment=RECIPE.augment,
            quirks=Quirks(),
            generator=np.random.default_rng(seed),
        )

    first, again, other = crop(1), crop(1), crop(2)
    assert [x.shape for x in first[0]] == [(3, 16, 16)] * 2
    assert [x.shape for x in first[1]] == [(3, 8, 8)] * 4
    assert len({x.tobytes() for group in first for x in group}) == 6
    assert all((x == y).all() for x, y in zip([*first[0], *first[1]], [*again[0], *again[1]], strict=True))
    assert all((x != y).any() for x, y in zip([*first[0], *first[1]], [*other[0], *other[1]], strict=True))


class DevicesOfCopies(TorchDispatchMode):
    """From where tensors are copied while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "copy" in str(func):
            self.sources += [value.device.type for value in args if isinstance(value, Tensor)]
        return func(*args, **(kwargs or {}))


def test_a_step_copies_no_normalization_to_its_device() -> None:
    """Mean and spread go there once: a copy from pageable memory waits for all that the device has to do."""
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8, device="meta")
    normalize_batch(pixels, data=RECIPE.data)
    with DevicesOfCopies() as copies:
        normalize_batch(pixels, data=RECIPE.data)
    assert copies.sources == ["meta"]
