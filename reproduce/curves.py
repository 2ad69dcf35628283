"""A history in, curves out: one metric over iterations with the statistic that it holds, and log-spaced block means."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Statistic = Literal["raw", "median-20", "block mean", "global average"]


@dataclass(frozen=True, eq=False)
class Curve:
    """One metric as logged. `iterations` are int64 and rise; `values` are float64 and may be non-finite."""

    metric: str
    statistic: Statistic
    iterations: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Blocks:
    """Means of a metric over blocks of iterations (start, end], log-spaced; NaN where a block could not be formed.

    `errors` are standard errors of the means from the scatter inside the block, `counts` the iterations they rest on.
    """

    metric: str
    statistic: Statistic
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    means: NDArray[np.float64]
    errors: NDArray[np.float64]
    counts: NDArray[np.int64]
