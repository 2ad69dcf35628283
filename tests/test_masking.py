"""Masks equal a naive construction from sets of patches, hide exactly what was planned, and spread as upstream's do."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from franca.config import Masking
from franca.masking import (
    MASKS,
    MaskPlan,
    _linspace_float32,
    block_mask,
    cyclic_mask,
    draw_masks,
    inverse_block_mask,
    plan_masks,
    sample_masks,
)

KINDS = tuple(MASKS)
Patches = set[tuple[int, int]]


def make_plan(kind: str = "cyclic", *, images: int = 64, grid: int = 16, seed: int = 0, **masking: object) -> MaskPlan:
    recipe = Masking(**{"kind": kind, "ratio": (0.1, 0.65), "sample_probability": 0.5, **masking})
    return plan_masks(recipe, images=images, grid=grid, generator=np.random.default_rng(seed))


def hidden_patches(mask: np.ndarray) -> Patches:
    return {(int(row), int(column)) for row, column in np.argwhere(mask)}


def rectangle(top: int, left: int, height: int, width: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(top, top + height) for column in range(left, left + width)]


def naive_visible(count: int, grid: int, generator: np.random.Generator) -> Patches:
    """The patches an inverse block leaves visible: the first of a rectangle, row by row."""
    visible = grid * grid - count
    if not visible:
        return set()
    low, high = max(math.log(0.3), math.log(visible / grid**2)), min(math.log(1 / 0.3), math.log(grid**2 / visible))
    aspect = math.exp(low + (high - low) * generator.random())
    height, width = math.ceil(math.sqrt(visible * aspect)), math.ceil(math.sqrt(visible / aspect))
    height, width = min(height, grid), min(width, grid)
    top, left = generator.integers(0, grid - height, endpoint=True), generator.integers(0, grid - width, endpoint=True)
    return set(rectangle(int(top), int(left), height, width)[:visible])


def naive_block(count: int, grid: int, generator: np.random.Generator) -> Patches:
    """iBOT's block mask, one rectangle after another until the number is reached or ten attempts in a row fail."""
    hidden: Patches = set()
    while len(hidden) < count:
        most = min(count - len(hidden), grid // 2 * grid)
        for _ in range(10):
            u = generator.random(4)
            area, aspect = 4 + (most - 4) * u[0], math.exp(math.log(0.3) + (math.log(1 / 0.3) - math.log(0.3)) * u[1])
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= grid or width >= grid:
                continue
            top, left = math.floor(u[2] * (grid - height + 1)), math.floor(u[3] * (grid - width + 1))
            added = set(rectangle(top, left, height, width)) - hidden
            if 0 < len(added) <= most:
                hidden |= added
                break
        else:
            break
    return hidden


def is_connected(patches: Patches) -> bool:
    reached, front = set(), {min(patches)}
    while front:
        reached |= front
        front = {
            (r + dr, c + dc) for r, c in front for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0))
        } & patches - reached
    return reached == patches


@given(st.integers(1, 24), st.data())
def test_inverse_block_equals_the_naive_one(grid: int, data: st.DataObject) -> None:
    """All patches but the first n of a random rectangle are hidden, exactly as many as asked for."""
    count, seed = data.draw(st.integers(1, grid * grid)), data.draw(st.integers(0, 2**32))
    mask = inverse_block_mask(count, grid=grid, generator=np.random.default_rng(seed))
    assert mask.sum() == count
    assert hidden_patches(~mask) == naive_visible(count, grid, np.random.default_rng(seed))


@given(st.integers(1, 24), st.data())
def test_visible_block_is_in_one_piece(grid: int, data: st.DataObject) -> None:
    """What an inverse block shows is connected: full rows of one width, and a last row that is cut on its right."""
    count = data.draw(st.integers(1, grid * grid - 1)) if grid > 1 else 0
    visible = ~inverse_block_mask(count, grid=grid, generator=np.random.default_rng(data.draw(st.integers(0, 99))))
    assert is_connected(hidden_patches(visible))
    rows = visible[visible.any(axis=1)]
    assert (rows[:-1] == rows[0]).all()
    assert not (rows[-1] & ~rows[0]).any()
    first = rows[0].argmax()
    assert rows[-1][first : first + rows[-1].sum()].all()


@given(st.integers(2, 24), st.data())
def test_block_equals_the_naive_one(grid: int, data: st.DataObject) -> None:
    """Rectangles are added one by one until the number is reached; never more patches than asked for are hidden."""
    count, seed = data.draw(st.integers(0, grid * grid)), data.draw(st.integers(0, 2**32))
    mask = block_mask(count, grid=grid, generator=np.random.default_rng(seed))
    assert hidden_patches(mask) == naive_block(count, grid, np.random.default_rng(seed))
    assert mask.sum() <= count


@given(st.integers(1, 16), st.data())
def test_cyclic_mask_is_an_inverse_block_rolled_around(grid: int, data: st.DataObject) -> None:
    """Every patch moves by one offset per axis and comes in again on the other side."""
    count, seed = data.draw(st.integers(1, grid * grid)), data.draw(st.integers(0, 2**32))
    generator = np.random.default_rng(seed)
    block = inverse_block_mask(count, grid=grid, generator=generator)
    down, right = generator.integers(grid, size=2)
    mask = cyclic_mask(count, grid=grid, generator=np.random.default_rng(seed))
    assert hidden_patches(mask) == {((r + down) % grid, (c + right) % grid) for r, c in hidden_patches(block)}


def test_cyclic_mask_hides_every_patch_equally_often() -> None:
    """Rolled, no patch is preferred; without the roll the corners are hidden far more often than the center."""
    grid, draws, count = 8, 8_000, 40
    generator = np.random.default_rng(0)
    rolled, fixed = (
        np.mean([draw(count, grid=grid, generator=generator) for _ in range(draws)], axis=0)
        for draw in (cyclic_mask, inverse_block_mask)
    )
    share = count / grid**2
    assert np.abs(rolled - share).max() < 4.5 * math.sqrt(share * (1 - share) / draws)
    assert fixed[0, 0] > share + 0.1 > share - 0.1 > fixed[grid // 2, grid // 2]


@pytest.mark.parametrize("kind", KINDS)
@given(images=st.integers(0, 40), probability=st.floats(0, 1), grid=st.integers(1, 12), seed=st.integers(0, 99))
def test_batch_masks_a_share_of_its_images(kind: str, images: int, probability: float, grid: int, seed: int) -> None:
    """The share of masked images is rounded down, each hides its planned number of patches, the others none."""
    plan = make_plan(kind, images=images, grid=grid, seed=seed, ratio=(0.3, 0.9), sample_probability=probability)
    masks = draw_masks(plan, rows=range(images))
    assert masks.shape == (images, grid, grid)
    assert np.count_nonzero(plan.bounds) <= int(images * probability)
    if grid > 1:
        assert np.count_nonzero(plan.counts) == int(images * probability)
    hidden = masks.sum(axis=(1, 2))
    assert (hidden <= plan.counts).all() if kind == "block" else (hidden == plan.counts).all()


@given(st.integers(2, 100), st.integers(2, 20), st.integers(0, 99))
def test_ratios_fall_one_into_each_stratum(images: int, grid: int, seed: int) -> None:
    """Sorted, the i-th masked image hides between the i-th and the next of the evenly spaced shares of the patches."""
    plan = make_plan(images=images, grid=grid, seed=seed)
    masked = images // 2
    edges = np.linspace(0.1, 0.65, masked + 1) * grid * grid
    found = np.sort(plan.counts)[images - masked :]
    assert (np.floor(edges[:-1] - 1e-4) <= found).all()
    assert (found <= np.floor(edges[1:] + 1e-4)).all()
    assert (plan.counts <= plan.bounds).all()
    assert plan.bounds.sum() == sum(int(grid * grid * e) for e in torch.linspace(0.1, 0.65, masked + 1)[1:])


@pytest.mark.parametrize("seed", range(3))
def test_masked_images_are_anywhere_in_the_batch(seed: int) -> None:
    """Neither masks nor heavy masks prefer a place: over many batches each image has its share of both."""
    batches = 2_000
    plans = [make_plan(images=16, grid=16, seed=batches * seed + i) for i in range(batches)]
    masked = np.mean([plan.counts > 0 for plan in plans], axis=0)
    assert np.abs(masked - 0.5).max() < 4 * math.sqrt(0.25 / batches)
    mean = np.mean([plan.counts for plan in plans], axis=0)
    assert np.abs(mean - 0.5 * 0.375 * 256).max() < 4 * 53 / math.sqrt(batches)


@given(st.integers(0, 400), st.floats(0, 1), st.floats(0, 1))
def test_edges_of_the_strata_are_torchs(pieces: int, start: float, end: float) -> None:
    """The shares are `torch.linspace`'s to the last bit, since upstream cuts their multiples to integers."""
    expected = torch.linspace(start, end, pieces + 1).numpy()
    assert _linspace_float32(start, end, pieces + 1).tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_part_of_a_batch_has_the_masks_of_the_whole(kind: str) -> None:
    """Processes that share a batch draw the masks that one process would have drawn."""
    plan = make_plan(kind)
    whole = draw_masks(plan, rows=range(64))
    rows = [63, 5, 6, 40]
    assert (draw_masks(plan, rows=rows) == whole[rows]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_a_function_of_the_generator(kind: str) -> None:
    """The same seed gives the same masks, another one others."""
    masking = Masking(kind, (0.1, 0.5), 0.5)
    first, again, other = (
        sample_masks(masking, images=32, grid=14, generator=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_extreme_ratios_hide_nothing_or_everything() -> None:
    """A ratio of 0 hides no patch of any image, a ratio of 1 all patches of the masked ones."""
    generator = np.random.default_rng(0)
    for kind in KINDS:
        assert not sample_masks(Masking(kind, (0.0, 0.0), 1.0), images=4, grid=4, generator=generator).any()
    for kind in ("inverse_block", "cyclic"):
        assert sample_masks(Masking(kind, (1.0, 1.0), 1.0), images=4, grid=4, generator=generator).all()
