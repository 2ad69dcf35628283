"""Centering: teacher logits made into targets by subtracting a running mean and sharpening.

Letters: n rows (samples or patch tokens), k prototypes.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from franca.distributed import all_reduce_sum


@torch.no_grad()
def softmax_center(
    logits: Float[Tensor, "n k"], center: Float[Tensor, "k"], *, temperature: float | Float[Tensor, ""]
) -> Float[Tensor, "n k"]:
    """softmax((logits - center) / temperature) of each row, in float32 or better."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return ((logits.to(wide) - center) / temperature).softmax(1)


@torch.no_grad()
def update_center(
    center: Float[Tensor, "k"], logits: Float[Tensor, "n k"], *, momentum: float = 0.9
) -> Float[Tensor, "k"]:
    """The next center: momentum * center + (1 - momentum) * the mean of the rows of every process.

    Without any row it stays where it is. The default momentum is dinov2's (dino_clstoken_loss.py).
    """
    total = all_reduce_sum(logits.sum(0, dtype=center.dtype))
    rows = all_reduce_sum(torch.tensor(len(logits), dtype=center.dtype, device=center.device))
    return torch.where(rows > 0, center.lerp(total / rows.clamp(min=1), 1 - momentum), center)
