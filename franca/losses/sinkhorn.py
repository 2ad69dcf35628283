"""Sinkhorn-Knopp: teacher logits in, soft assignments out, every prototype used alike over the batch of all processes.

Letters: n rows (samples or patch tokens), k prototypes.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from franca.distributed import all_reduce_max, all_reduce_sum


@torch.no_grad()
def sinkhorn(
    logits: Float[Tensor, "n k"],
    *,
    temperature: float | Float[Tensor, ""],
    iterations: int,
    unscaled: bool = False,
) -> Float[Tensor, "n k"]:
    """Assignments whose rows sum to one, in float32 or better.

        q = exp(logits / temperature)
        q /= q.sum()
        for _ in range(iterations):
            for j in range(k): q[:, j] /= q[:, j].sum() * k
            for i in range(n): q[i, :] /= q[i, :].sum() * n
        q *= n

    where columns are summed over the rows of every process, and n counts them. The first division, k and n cancel and
    are left out here. The first iteration works on logarithms: after it each row sums to one and each column to
    1 / k or more, so no finite logits can overflow or vanish. `unscaled` exponentiates the logits as they come, and
    overflows where upstream does.
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_q = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        if unscaled:
            # QUIRK sinkhorn_unscaled: no division before the first iteration, valeoai/Franca mrl_dino_loss.py@24f8c60
            q = log_q.exp_()
            q.div_(all_reduce_sum(q.sum(0)))
            q.div_(q.sum(1, keepdim=True))
        else:
            q = log_q.sub_(_column_logsumexp(log_q)).softmax(1)
        return _scale_in_turn(q, iterations=iterations - 1)


def _column_logsumexp(log_q: Float[Tensor, "n k"]) -> Float[Tensor, "k"]:
    """The logarithm of each column's sum over the rows of every process."""
    local = log_q.logsumexp(0)
    highest = all_reduce_max(local)
    return highest + all_reduce_sum((local - highest).exp()).log()


def _scale_in_turn(q: Float[Tensor, "n k"], *, iterations: int) -> Float[Tensor, "n k"]:
    """Scale columns, then rows, to sum to one, `iterations` times. Overwrites `q`, at the end."""
    rows, columns = q.new_ones(q.shape[0]), q.new_ones(q.shape[1])
    for _ in range(iterations):
        columns = 1 / all_reduce_sum(rows @ q)
        rows = 1 / (q @ columns)
    return q.mul_(rows.unsqueeze(1)).mul_(columns)
