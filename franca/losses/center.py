"""Centering: teacher logits made into targets by subtracting a running mean and sharpening.

Letters: n rows (samples or patch tokens), k prototypes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from franca.distributed import all_reduce_sum
from franca.losses.sinkhorn import Levels, Part


@torch.no_grad()
def softmax_center(
    logits: Float[Tensor, "n k"], center: Float[Tensor, "k"], *, temperature: float | Float[Tensor, ""]
) -> Float[Tensor, "n k"]:
    """softmax((logits - center) / temperature) of each row, in float32 or better."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return ((logits.to(wide) - center) / temperature).softmax(1)


@torch.no_grad()
def softmax_centers(part: Part, centers: Levels, *, temperature: float | Float[Tensor, ""]) -> Levels:
    """`softmax_center` of each level of a part of the rows."""
    return [
        softmax_center(level, center, temperature=temperature) for level, center in zip(part(), centers, strict=True)
    ]


@torch.no_grad()
def update_centers(centers: Levels, parts: Sequence[Part], *, momentum: float = 0.9) -> Levels:
    """The next centers: momentum * center + (1 - momentum) * the mean of a level's rows, in every part and process.

    Without any row they stay where they are. The default momentum is dinov2's (dino_clstoken_loss.py).
    """
    totals, rows = [torch.zeros_like(center) for center in centers], 0
    for part in parts:
        levels = part()
        rows += len(levels[0])
        for total, level in zip(totals, levels, strict=True):
            total += level.sum(0, dtype=total.dtype)
    # Filled there: torch.tensor would copy from pageable memory, and so wait for the device's work
    count = all_reduce_sum(torch.full((), float(rows), device=centers[0].device))
    means = [all_reduce_sum(total) / count.clamp(min=1) for total in totals]
    return [
        torch.where(count > 0, center.lerp(mean, 1 - momentum), center)
        for center, mean in zip(centers, means, strict=True)
    ]
