"""What a recipe makes random in the input, as laws: a recipe in, the mean and spread of each logged draw out. No torch.

The trainer logs, on every line, what the crops and masks it fed were on average (`mean_<name>` of `DRAWS`). Over a few
hundred images that is nearly free of noise, and it follows from the recipe alone: a program that crops, blurs or masks
otherwise shows long before a loss does. All but the masked patches is derived here, not taken from the code that draws.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from franca.config import Augment, Crops, Recipe
from franca.masking import draw_masks, plan_masks

# The groups of columns, each a mean over crops; a value that a crop does not have counts as 0.
AREAS = ("global_area", "local_area")  # of a crop's box as a share of its image
PIXELS = (
    "flipped",
    "gray",
    "solarized",  # of the second global crops
    "blurred_global_1",
    "blurred_global_2",
    "blurred_local",
    "blur_sigma",  # pixels
    "brightness",  # |factor - 1|, so for contrast and saturation
    "contrast",
    "saturation",
    "hue",  # |turn|
)
MASKED = ("masked_crops", "masked_patches")  # of the global crops, of all their patches
DRAWS = (*AREAS, *PIXELS, *MASKED)

ASPECT = (3 / 4, 4 / 3)  # of a crop's box (torchvision `RandomResizedCrop`)
ATTEMPTS = 10  # to draw a box that fits, before the largest one in the middle is taken
STEPS = 400  # of the midpoint rule, along each axis
DIGITS = ((8, 8),)
PHOTOGRAPHS = ((250, 500), (300, 450), (375, 500), (500, 500), (500, 375), (450, 300), (500, 250))  # width, height
DRAWN_MASKS = 2048


@dataclass(frozen=True)
class Law:
    """The mean of one draw lies in `low`..`high`; `spread` is at least its standard deviation over images."""

    low: float
    high: float
    spread: float


@functools.lru_cache(maxsize=8)
def make_laws(recipe: Recipe) -> Mapping[str, Law]:
    """The law of every draw that the recipe determines, by its name in `DRAWS`."""
    crops, sizes = recipe.crops, DIGITS if recipe.data.dataset == "digits" else PHOTOGRAPHS
    laws = {
        "global_area": _area_law(crops.global_scale, sizes),
        "local_area": _area_law(crops.local_scale, sizes),
        **_photometric_laws(recipe.augment, crops=crops, inverted=recipe.quirks.blur_inverted),
        **_mask_laws(recipe),
    }
    return MappingProxyType({name: laws[name] for name in DRAWS})


def mean_area(scale: tuple[float, float], *, width: int, height: int) -> float:
    """The mean share of an image of `width` x `height` pixels that a random resized crop covers.

    Share uniform in `scale`, aspect log-uniform in 3/4..4/3, sides rounded, what does not fit drawn again.
    """
    middle = (np.arange(STEPS) + 0.5) / STEPS
    area = width * height * (scale[0] + (scale[1] - scale[0]) * middle)[:, None]
    aspect = np.exp(math.log(ASPECT[0]) + (math.log(ASPECT[1]) - math.log(ASPECT[0])) * middle)[None]
    w, h = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    none = float((1 - fits.mean()) ** ATTEMPTS)
    drawn = float((w * h)[fits].mean()) if fits.any() else 0.0
    largest = min(width, max(1, round(height * ASPECT[1]))) * min(height, max(1, round(width / ASPECT[0])))
    return ((1 - none) * drawn + none * largest) / (width * height)


def _area_law(scale: tuple[float, float], sizes: tuple[tuple[int, int], ...]) -> Law:
    """Which boxes fit depends on the image's shape; of a data set of photographs the mean lies between the extremes."""
    means = [mean_area(scale, width=width, height=height) for width, height in sizes]
    return Law(min(means), max(means), (scale[1] - scale[0]) / 2)


def _photometric_laws(augment: Augment, *, crops: Crops, inverted: bool) -> dict[str, Law]:
    listed = (augment.blur_probability_global_1, augment.blur_probability_global_2, augment.blur_probability_local)
    blurs = [1 - share if inverted else share for share in listed]
    low, high = augment.blur_sigma
    blurred = (blurs[0] + blurs[1] + crops.local_number * blurs[2]) / (2 + crops.local_number)
    sigma = blurred * (low + high) / 2
    jitters = zip(("brightness", "contrast", "saturation", "hue"), augment.jitter, strict=True)
    return {
        "flipped": _chance(augment.flip_probability),
        "gray": _chance(augment.gray_probability),
        "solarized": _chance(augment.solarize_probability_global_2),
        "blurred_global_1": _chance(blurs[0]),
        "blurred_global_2": _chance(blurs[1]),
        "blurred_local": _chance(blurs[2]),
        "blur_sigma": Law(sigma, sigma, high if blurred else 0.0),
        **{name: _jitter_law(name, strength, share=augment.jitter_probability) for name, strength in jitters},
    }


def _chance(share: float) -> Law:
    return Law(share, share, math.sqrt(share * (1 - share)))


def _jitter_law(name: str, strength: float, *, share: float) -> Law:
    """Factors are uniform in 1 - s..1 + s, but not below 0; the hue is turned by -s..s."""
    below = strength if name == "hue" else min(strength, 1.0)
    mean = share * (below**2 + strength**2) / (2 * (below + strength)) if strength else 0.0
    return Law(mean, mean, strength if share else 0.0)


def _mask_laws(recipe: Recipe) -> dict[str, Law]:
    """Exactly so many crops are chosen in every batch, and their shares of hidden patches are spread evenly.

    Patches are counted on masks drawn for it: counts are rounded down, on a small grid to none, and blocks hide fewer.
    """
    masking, crops = recipe.masking, 2 * recipe.global_batch
    chosen = int(crops * masking.sample_probability)
    if not chosen:
        return dict.fromkeys(MASKED, Law(0.0, 0.0, 0.0))
    share, grid = chosen / crops, recipe.crops.global_px // recipe.model.patch_px
    every = dataclasses.replace(masking, sample_probability=1.0)
    plan = plan_masks(every, images=DRAWN_MASKS, grid=grid, generator=np.random.default_rng(0))
    hidden = draw_masks(plan, rows=range(DRAWN_MASKS)).mean(axis=(1, 2))
    fewer = float((hidden - plan.counts / grid**2).std())
    stratum = (masking.ratio[1] - masking.ratio[0]) / chosen
    hit = float((hidden > 0).mean())
    doubt = 0.0 if hit == 1 else DRAWN_MASKS**-0.5  # two standard errors at most
    per_image = math.sqrt(chosen * recipe.global_batch) / crops  # of a masked crop's spread, for means over images
    by_chance = per_image * math.hypot(stratum / math.sqrt(12), fewer, 1 / grid**2)
    mean = share * float(hidden.mean())
    return {
        "masked_crops": Law(share * (hit - doubt), share * min(1.0, hit + doubt), per_image / 2 if doubt else 0.0),
        "masked_patches": Law(mean, mean, by_chance),
    }
