"""The order of samples follows from the seed alone, shows every image once an epoch and uses shards up in turn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from franca.data.order import sharded_indices, shuffled_indices


def make_shards(sizes: list[int]) -> np.ndarray:
    return np.cumsum([0, *sizes])


@given(images=st.integers(1, 50), first=st.integers(0, 200), seed=st.integers(0, 5))
def test_every_epoch_shows_every_image_once(images: int, first: int, seed: int) -> None:
    """The endless stream is one permutation after another, wherever it is entered and however it is cut."""
    samples = np.arange(first // images * images, first // images * images + 2 * images)
    indices = shuffled_indices(samples, images=images, seed=seed)
    assert sorted(indices[:images]) == sorted(indices[images:]) == list(range(images))
    halves = [shuffled_indices(part, images=images, seed=seed) for part in np.array_split(samples, 2 * images // 3 + 1)]
    assert np.array_equal(np.concatenate(halves), indices)


def test_order_differs_between_epochs_and_seeds() -> None:
    """No epoch repeats another, and another seed gives other orders."""
    samples = np.arange(1000)
    orders = {
        shuffled_indices(samples + 1000 * epoch, images=1000, seed=seed).tobytes()
        for epoch in range(4)
        for seed in range(4)
    }
    assert len(orders) == 16


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    window=st.integers(1, 5),
    epoch=st.integers(0, 3),
    cuts=st.integers(1, 7),
)
def test_sharded_epoch_shows_every_image_once(sizes: list[int], window: int, epoch: int, cuts: int) -> None:
    """Shards of any sizes, empty ones too: an epoch is a permutation, however its samples are cut into batches."""
    images, shards = sum(sizes), make_shards(sizes)
    samples = np.arange(epoch * images, (epoch + 2) * images)
    indices = sharded_indices(samples, shards=shards, seed=1, window_shards=window)
    assert sorted(indices[:images]) == sorted(indices[images:]) == list(range(images))
    parts = [
        sharded_indices(part, shards=shards, seed=1, window_shards=window) for part in np.array_split(samples, cuts)
    ]
    assert np.array_equal(np.concatenate(parts), indices)


@pytest.mark.parametrize("window", [1, 3, 4, 100])
def test_sharded_order_uses_a_window_up_before_the_next(window: int) -> None:
    """No more than `window` shards are read before all their images were shown, and none is read again in an epoch."""
    sizes = [7, 3, 10, 1, 8, 8, 2, 5, 9, 4]
    shards = make_shards(sizes)
    indices = sharded_indices(np.arange(sum(sizes)), shards=shards, seed=3, window_shards=window)
    visited = (np.searchsorted(shards, indices, side="right") - 1).tolist()
    done: list[int] = []
    while len(done) < len(sizes):
        members, end = set[int](), 0
        while end == 0 or end < sum(sizes[shard] for shard in members):
            members.add(visited[end])
            end += 1
        assert not members & set(done)
        assert len(members) <= window
        done += members
        visited = visited[end:]
    assert not visited


def test_sharded_order_is_shuffled_within_and_between_shards() -> None:
    """Two seeds and two epochs give other orders; neighbors in a window seldom come from neighbors in a shard."""
    shards, samples = make_shards([100] * 40), np.arange(4000)
    orders = [
        sharded_indices(samples + 4000 * epoch, shards=shards, seed=seed, window_shards=8)
        for epoch in range(2)
        for seed in range(2)
    ]
    assert len({order.tobytes() for order in orders}) == 4
    for order in orders:
        visited = order // 100
        assert np.mean(visited[1:] == visited[:-1]) == pytest.approx(1 / 8, abs=4.5 * np.sqrt(7 / 64 / 4000))
        assert np.mean(np.abs(np.diff(order)) == 1) < 0.01
