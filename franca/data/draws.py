"""What was drawn for an image's crops in, the means that the log holds of it out (`franca/laws.py` has their names)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from franca.data.augment import View
from franca.laws import AREAS, MASKED, PIXELS


def average_views(views: Sequence[View], *, size: tuple[int, int]) -> NDArray[np.float64]:
    """The means [crops' draws] of one image of `size` (width, height): its two global views, then the local ones.

    In the order of `AREAS` and `PIXELS`.
    """
    boxes = [view.box for view in views]
    areas = [(right - left) * (bottom - top) / (size[0] * size[1]) for left, top, right, bottom in boxes]
    sigmas = [view.sigma or 0.0 for view in views]
    blurred = [view.sigma is not None for view in views]
    changes = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)
    for view in views:
        for name, factor in view.jitter:
            changes[name] += abs(factor) if name == "hue" else abs(factor - 1)
    count = len(views)
    means = {
        "global_area": _mean(areas[:2]),
        "local_area": _mean(areas[2:]),
        "flipped": _mean([view.flip for view in views]),
        "gray": _mean([view.gray for view in views]),
        "solarized": float(views[1].solarize),
        "blurred_global_1": float(blurred[0]),
        "blurred_global_2": float(blurred[1]),
        "blurred_local": _mean(blurred[2:]),
        "blur_sigma": _mean(sigmas),
        **{name: total / count for name, total in changes.items()},
    }
    return np.array([means[name] for name in (*AREAS, *PIXELS)])


def average_masks(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The means of masks [global crops, rows, columns], in the order of `MASKED`."""
    shares = {"masked_crops": masks.any(axis=(1, 2)).mean(), "masked_patches": masks.mean()}
    return np.array([shares[name] for name in MASKED])


def _mean(values: Sequence[float | bool]) -> float:
    return sum(values) / len(values)
