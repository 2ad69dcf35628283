"""The laws of what a recipe draws, against the draws of the data pipeline themselves."""

import dataclasses
import itertools
import math
import random

import numpy as np
import pytest
from recipes import make_recipe

from franca.config import Recipe
from franca.data.augment import draw_views
from franca.data.draws import average_masks, average_views
from franca.laws import AREAS, DIGITS, DRAWS, MASKED, PHOTOGRAPHS, PIXELS, make_laws, mean_area
from franca.masking import sample_masks

IMAGES = 1500
SHARES = [((0.1, 0.5), 0.5, 56), ((0.01, 0.3), 1.0, 16), ((0.3, 0.3), 0.3, 56)]
RECIPES = {
    "own": make_recipe(),
    "inverted": make_recipe(quirks={"blur_inverted": True}),
    "flips": make_recipe(augment={"flip_probability": 0.5, "jitter": [0.8, 1.5, 0.0, 0.3], "blur_sigma": [0.5, 0.5]}),
    "plain": make_recipe(
        augment={
            "jitter_probability": 0.0,
            "gray_probability": 0.0,
            "blur_probability_global_1": 0.0,
            "blur_probability_global_2": 0.0,
            "blur_probability_local": 0.0,
            "solarize_probability_global_2": 1.0,
        }
    ),
    "photographs": make_recipe(data={"dataset": "imagenet21k"}, crops={"global_scale": [0.32, 1.0]}),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_draws_follow_their_laws(recipe: Recipe) -> None:
    """Each mean is within five standard errors of its law, and no draw spreads more over images than its law allows."""
    generator, laws = np.random.default_rng(0), make_laws(recipe)
    sizes = DIGITS if recipe.data.dataset == "digits" else PHOTOGRAPHS
    rows = [
        average_views(
            draw_views(size, crops=recipe.crops, augment=recipe.augment, quirks=recipe.quirks, generator=generator),
            size=size,
        )
        for size in itertools.islice(itertools.cycle(sizes), IMAGES)
    ]
    means, spreads = np.mean(rows, axis=0), np.std(rows, axis=0)
    for name, mean, spread in zip((*AREAS, *PIXELS), means, spreads, strict=True):
        law = laws[name]
        slack = 5 * law.spread / math.sqrt(IMAGES) + 2e-3 * (name in AREAS)
        assert law.low - slack <= mean <= law.high + slack or mean == pytest.approx(law.low, abs=1e-12), name
        assert spread <= 1.1 * law.spread + 1e-12, name


@pytest.mark.parametrize("kind", ["block", "inverse_block", "cyclic"])
@pytest.mark.parametrize(("ratio", "share", "px"), SHARES)
def test_masks_follow_their_laws(kind: str, ratio: tuple[float, float], share: float, px: int) -> None:
    """So do masked crops and patches, of small grids too, on which some masks hide nothing."""
    recipe = make_recipe(
        masking={"kind": kind, "ratio": list(ratio), "sample_probability": share}, crops={"global_px": px}
    )
    generator, laws = np.random.default_rng(1), make_laws(recipe)
    crops = 2 * recipe.global_batch
    grid, batches = px // 4, 30
    rows = [
        average_masks(sample_masks(recipe.masking, images=crops, grid=grid, generator=generator))
        for _ in range(batches)
    ]
    for name, means in zip(MASKED, np.transpose(rows), strict=True):
        law = laws[name]
        error = law.spread / math.sqrt(recipe.global_batch)
        slack = 5 * error / math.sqrt(batches) + 2e-3 * bool(law.spread) + 1e-12
        assert law.low - slack <= means.mean() <= law.high + slack, name
        assert means.std() <= 1.3 * error + 1e-12, name


def test_no_mask_has_a_law_too() -> None:
    """Where nothing is masked, nothing may be."""
    laws = make_laws(make_recipe(masking={"sample_probability": 0.0}))
    assert {dataclasses.astuple(laws[name]) for name in MASKED} == {(0.0, 0.0, 0.0)}


@pytest.mark.parametrize(("width", "height"), [(8, 8), (3, 40), (640, 480), (200, 1000)])
@pytest.mark.parametrize("scale", [(0.05, 0.32), (0.32, 1.0), (0.9, 1.0)])
def test_mean_area_is_that_of_boxes_drawn_one_by_one(width: int, height: int, scale: tuple[float, float]) -> None:
    """Uniform share, log-uniform aspect, ten attempts, then the largest box in the middle: as torchvision describes."""
    generator = random.Random(0)

    def area() -> int:
        for _ in range(10):
            target = width * height * generator.uniform(*scale)
            aspect = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if 0 < w <= width and 0 < h <= height:
                return w * h
        if width / height < 3 / 4:
            return width * round(width / (3 / 4))
        return round(height * (4 / 3)) * height if width / height > 4 / 3 else width * height

    drawn = [area() / (width * height) for _ in range(6000)]
    error = np.std(drawn) / math.sqrt(len(drawn))
    assert mean_area(scale, width=width, height=height) == pytest.approx(np.mean(drawn), abs=5 * error + 2e-3)


def test_every_draw_has_a_law() -> None:
    """In the order in which they are logged."""
    assert tuple(make_laws(make_recipe())) == DRAWS
