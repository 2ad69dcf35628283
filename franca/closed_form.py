"""The losses of the first iteration in closed form: what of a recipe decides them in, their values out. No torch.

A student of random weights tells nothing from anything: against targets that use all prototypes equally, as
Sinkhorn-Knopp makes them, its cross-entropy is that of its logits' distribution alone. With unit bottlenecks z and
unit prototypes w of b dimensions that is

    ln K + ln E exp(z · w / τ)  ≈  ln K + 1 / (2 b τ²)

for K prototypes and a student temperature τ: 50 / b over ln K at the usual τ = 0.1. Assumed are random first values,
prototypes of unit length in no particular direction, and more prototypes than a few. What the teacher's logits share
with the student's lowers it, by at most the `coupling`; after Sinkhorn-Knopp by a small part of that, after a softmax,
whose first center is zero, by all. KoLeo depends on the images and has no such value.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from franca.config import Head, Heads, Recipe, prototypes_per_level
from franca.masking import MIN_RECTANGLE

WEIGHT_STD = 0.02  # of every linear layer of a head (dinov2 dino_head.py)
HERMITE_POINTS = 64

# Shares of the coupling by which targets of Sinkhorn-Knopp were seen to lower a loss, about doubled. Of class tokens
# 0.076 at most in 24 runs on digits (on average 0.035, with a deviation of 0.02), 0.025 in five public logs at b = 256,
# 0.001 at b = 384; of patches, which differ more, 0.049, 0.147 and 0.035.
SHARED_CLASS, SHARED_PATCH = 0.15, 0.3
ABOVE, ABOVE_COUPLING = 1e-3, 0.01  # how far a loss may exceed its closed form: 1e-4 was seen, of any
SOFTMAX = 1.1  # of class tokens 0.98 was seen, in four public logs; the rest is chance among few heavy prototypes


@dataclass(frozen=True)
class FirstLoss:
    """A logged loss of iteration 0: `value` where targets and logits share nothing, and the limits of what is right."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Beginning:
    """What decides the first losses. `masked` is the share of global crops that iBOT compares, 0 where it is off.

    normalized: bottlenecks have unit length. full_input: every nesting level sees all of the embedding. empty: the most
    of the masks that may hide nothing.
    """

    heads: Heads
    embed_dim: int
    local_crops: int
    masked: float
    student_temperature: float
    teacher_temperature: float
    centering: Literal["sinkhorn", "softmax"]
    normalized: bool
    full_input: bool
    empty: float = 0.0


def make_beginning(recipe: Recipe) -> Beginning | None:
    """The beginning of a recipe; None where its weights are another row's, whose losses have no closed form."""
    if recipe.start:
        return None
    crops = 2 * recipe.global_batch
    masked = crops if recipe.frozen_teacher else int(crops * recipe.masking.sample_probability)
    return Beginning(
        heads=recipe.heads,
        embed_dim=recipe.model.embed_dim,
        local_crops=recipe.crops.local_number,
        masked=masked / crops if recipe.losses.ibot_weight > 0 else 0.0,
        student_temperature=recipe.losses.student_temperature,
        teacher_temperature=recipe.teacher.temperature_start,
        centering=recipe.losses.centering,
        normalized=not recipe.quirks.head_unnormalized,
        full_input=recipe.quirks.matryoshka_full_input,
        empty=_empty_masks(recipe),
    )


def first_losses(beginning: Beginning) -> dict[str, FirstLoss]:
    """The logged values of iteration 0 and their limits.

    As logged: of n local crops, local n / (n + 1) and global 1 / (n + 1) of the cross-entropy, summed over nesting
    levels; iBOT half of it times the share of global crops that are masked.
    """
    local, heads = beginning.local_crops, beginning.heads
    dino = _first_loss(beginning, heads.dino, shared=SHARED_CLASS)
    losses = {
        "dino_local_crops_loss": _scaled(dino, local / (local + 1)),
        "dino_global_crops_loss": _scaled(dino, 1 / (local + 1)),
    }
    if beginning.masked:
        ibot = _first_loss(beginning, heads.ibot, shared=SHARED_PATCH)
        ibot = dataclasses.replace(ibot, low=ibot.low * (1 - beginning.empty))
        losses["ibot_loss"] = _scaled(ibot, beginning.masked / 2)
    return losses


def log_mean_exp(kappa: float, *, dim: int) -> float:
    """ln E exp(κ z · w) for z fixed and w uniform on the unit sphere of `dim` dimensions.

    The series of the von Mises-Fisher distribution's normalization, Σ_j (κ²/4)^j / (j! · d/2 ⋯ (d/2 + j - 1)), summed
    in logarithms.
    """
    term, total, place = 0.0, 0.0, 0
    while term > total - 40:
        term += math.log(kappa * kappa / 4) - math.log((place + 1) * (dim / 2 + place))
        total = float(np.logaddexp(total, term))
        place += 1
    return total


def mean_direction(kappa: float, *, dim: int) -> float:
    """E z · w where w is drawn with a weight of exp(κ z · w): the von Mises-Fisher distribution's resultant length.

    The ratio of Bessel functions I_{d/2}(κ) / I_{d/2-1}(κ), as Gauss's continued fraction.
    """
    ratio = 0.0
    for place in range(int(kappa) + 50, -1, -1):
        ratio = 1 / ((dim + 2 * place) / kappa + ratio)
    return ratio


def bottleneck_square(head: Head, *, width: int, seen: int | None) -> float:
    """The mean square of a bottleneck's dimension in a head that does not normalize it and ends in a GELU.

    Tokens come from a layer norm, with a mean square of 1. A random linear layer multiplies the mean square by its
    inputs times the weights' variance; `seen` inputs of a projection come first where levels are nested.
    """
    square = 1.0 if seen is None else seen * WEIGHT_STD**2
    inputs = width
    for _ in range(head.layers):
        square = gelu_square(inputs * WEIGHT_STD**2 * square)
        inputs = head.hidden
    return square


def gelu_square(variance: float) -> float:
    """The mean of gelu(x)² for x normal with mean 0, by Gauss-Hermite quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(HERMITE_POINTS)
    values = [x * math.sqrt(variance) for x in points.tolist()]
    squares = [(x * 0.5 * (1 + math.erf(x / math.sqrt(2)))) ** 2 for x in values]
    total = sum(weight * square for weight, square in zip(weights.tolist(), squares, strict=True))
    return float(total) / math.sqrt(2 * math.pi)


def _first_loss(beginning: Beginning, head: Head, *, shared: float) -> FirstLoss:
    """A head's cross-entropy, summed over nesting levels, with what its targets may take from it."""
    nesting, value, coupling = beginning.heads.nesting, 0.0, 0.0
    student, teacher = 1 / beginning.student_temperature, 1 / beginning.teacher_temperature
    for place, prototypes in enumerate(prototypes_per_level(head, nesting)):
        if beginning.normalized:
            value += math.log(prototypes) + log_mean_exp(student, dim=head.bottleneck)
            coupling += student * mean_direction(teacher, dim=head.bottleneck)
        else:
            width = nesting[place] if nesting else beginning.embed_dim
            seen = (beginning.embed_dim if beginning.full_input else width) if nesting else None
            square = bottleneck_square(head, width=width, seen=seen)
            value += math.log(prototypes) + square * student**2 / 2
            coupling += square * student * teacher
    lowered = shared if beginning.centering == "sinkhorn" else SOFTMAX
    low = value - lowered * coupling - ABOVE * value
    return FirstLoss(value, low, value + ABOVE * value + ABOVE_COUPLING * coupling)


def _empty_masks(recipe: Recipe) -> float:
    """The share of block masks that ask for less than the smallest rectangle: on a small grid none may fit them."""
    low, high = recipe.masking.ratio
    smallest = MIN_RECTANGLE / (recipe.crops.global_px // recipe.model.patch_px) ** 2
    if recipe.masking.kind != "block" or smallest <= low:
        return 0.0
    return min((smallest - low) / (high - low), 1.0) if high > low else 1.0


def _scaled(loss: FirstLoss, share: float) -> FirstLoss:
    return FirstLoss(loss.value * share, loss.low * share, loss.high * share)
