"""Which image each place of the endless stream of samples shows: a pure function of the seed and the place.

Images are drawn epoch after epoch, each once. Of a data set that a file system serves best from one end to the other,
the shards are shuffled, and the images within windows of `WINDOW_SHARDS` of them: a shuffle buffer whose content is
known beforehand. At any moment all processes together read from one window, two at its border, whatever their number.
"""

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from franca.data.datasets import Dataset, Sharded

ORDER, SHARDS, WINDOWS = 3, 5, 6  # the second word of a stream's seed, after the run's; see `loader`

# 64 shards of img2dataset hold 640,000 images: 40 GB at 64 kB each, 2.6 MB of permutation, 150 iterations of 4,096.
WINDOW_SHARDS = 64

Positions = NDArray[np.int64]


def sample_indices(samples: Positions, *, dataset: Dataset, seed: int) -> Positions:
    """The image that each sample number shows: one order of the dataset after another."""
    if isinstance(dataset, Sharded):
        return sharded_indices(samples, shards=dataset.shards, seed=seed)
    return shuffled_indices(samples, images=len(dataset), seed=seed)


def shuffled_indices(samples: Positions, *, images: int, seed: int) -> Positions:
    """The same for images that are reached alike wherever they lie: one permutation after another."""
    return _by_epoch(samples, images=images, look_up=lambda epoch, places: _permutation(images, seed, epoch)[places])


def sharded_indices(
    samples: Positions, *, shards: Positions, seed: int, window_shards: int = WINDOW_SHARDS
) -> Positions:
    """The same for images in shards: image `shards[i]` is the first of shard i, the last entry the number of images.

    The shards of an epoch come in a random order, and so do the images of each `window_shards` of them.
    """

    def look_up(epoch: int, positions: Positions) -> Positions:
        order, window_ends = _shard_order(shards.tobytes(), seed, epoch, window_shards)
        windows = np.searchsorted(window_ends, positions, side="right")
        indices = np.empty(len(positions), np.int64)
        for window in np.unique(windows).tolist():
            chosen = windows == window
            members = order[window * window_shards : (window + 1) * window_shards]
            begin = window_ends[window - 1] if window else 0
            shuffled = _window_permutation(int(window_ends[window] - begin), seed, epoch, window)
            places = shuffled[positions[chosen] - begin]
            ends = np.cumsum(shards[members + 1] - shards[members])
            within = np.searchsorted(ends, places, side="right")
            indices[chosen] = shards[members + 1][within] - ends[within] + places
        return indices

    return _by_epoch(samples, images=int(shards[-1]), look_up=look_up)


def _by_epoch(samples: Positions, *, images: int, look_up: Callable[[int, Positions], Positions]) -> Positions:
    """Indices by `look_up(epoch, positions in it)`; a batch may lie across two epochs."""
    epochs, positions = np.divmod(samples, images)
    indices = np.empty(len(samples), np.int64)
    for epoch in np.unique(epochs).tolist():
        chosen = epochs == epoch
        indices[chosen] = look_up(epoch, positions[chosen])
    return indices


@functools.lru_cache(maxsize=2)
def _permutation(images: int, seed: int, epoch: int) -> NDArray[np.int32]:
    """An epoch's order; 4 bytes an image."""
    return np.random.default_rng([seed, ORDER, epoch]).permutation(np.arange(images, dtype=np.int32))


@functools.lru_cache(maxsize=2)
def _shard_order(shards: bytes, seed: int, epoch: int, window_shards: int) -> tuple[Positions, Positions]:
    """An epoch's order of the shards, and at which position each window of them ends."""
    begins = np.frombuffer(shards, np.int64)
    order = np.random.default_rng([seed, SHARDS, epoch]).permutation(len(begins) - 1)
    ends = np.cumsum(np.diff(begins)[order])
    last = np.minimum(np.arange(window_shards, len(order) + window_shards, window_shards), len(order)) - 1
    return order, ends[last]


@functools.lru_cache(maxsize=3)
def _window_permutation(images: int, seed: int, epoch: int, window: int) -> NDArray[np.int32]:
    """The order of the images of one window."""
    return np.random.default_rng([seed, WINDOWS, epoch, window]).permutation(np.arange(images, dtype=np.int32))
