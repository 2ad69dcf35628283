"""Sinkhorn-Knopp: teacher logits in, soft assignments out, every prototype used alike over the batch of all processes.

Letters: n rows (samples or patch tokens), k prototypes.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from franca.distributed import all_reduce_max, all_reduce_sum

Levels = Sequence[Tensor]
"""One tensor per nesting level; one where nothing is nested."""

Part = Callable[[], Levels]
"""Some rows of every level, made when asked for: all rows at once may not fit into memory."""


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

    where columns are summed over the rows of every process, and n counts them. `unscaled` exponentiates the logits as
    they come, and overflows where upstream does.
    """
    with torch.autocast(logits.device.type, enabled=False):
        (targets,) = sinkhorn_parts(
            [lambda: [logits]], temperature=temperature, iterations=iterations, unscaled=unscaled
        )
        return targets()[0]


@torch.no_grad()
def sinkhorn_parts(
    parts: Sequence[Part], *, temperature: float | Float[Tensor, ""], iterations: int, unscaled: bool = False
) -> list[Part]:
    """The assignments of `sinkhorn` for each part of the rows, made when asked for; its columns run over all parts.

    Only a scale for each column is kept, from which a part's logits give the rest; a single part is kept whole. The
    first division, k and n cancel and are left out. The first iteration works on logarithms: after it each row sums to
    one and each column to 1 / k or more, so no finite logits can overflow or vanish.
    """
    if len(parts) == 1:
        logits = parts[0]()
        parts = [lambda: logits]
    exponents = [functools.partial(_exponents, part, temperature) for part in parts]
    offsets = _unscaled_offsets(exponents) if unscaled else _offsets(exponents)
    rows = [functools.partial(_first_rows, part, offsets) for part in exponents]
    if len(rows) == 1:
        kept = rows[0]()
        rows = [lambda: kept]
    scales: Levels = [torch.ones_like(offset) for offset in offsets]
    for _ in range(iterations - 1):
        scales = [1 / column for column in _column_sums(rows, scales)]
    return [functools.partial(_assignments, part, scales) for part in rows]


@torch.no_grad()
def _exponents(part: Part, temperature: float | Tensor) -> Levels:
    return [level.to(torch.promote_types(level.dtype, torch.float32)) / temperature for level in part()]


def _offsets(exponents: Sequence[Part]) -> Levels:
    """Minus the logarithm of each column's sum over the rows of every part and process."""
    levels = list(zip(*([level.logsumexp(0) for level in part()] for part in exponents), strict=True))
    local = torch.cat([torch.stack(level).logsumexp(0) for level in levels])
    highest = all_reduce_max(local)
    columns = highest + all_reduce_sum((local - highest).exp()).log()
    return (-columns).split([len(level[0]) for level in levels])


def _unscaled_offsets(exponents: Sequence[Part]) -> Levels:
    """The same without a guard. NaN where a sum overflows, as upstream's infinity over infinity is."""
    # QUIRK sinkhorn_unscaled: no division before the first iteration, valeoai/Franca mrl_dino_loss.py@24f8c60
    levels = list(zip(*([level.exp().sum(0) for level in part()] for part in exponents), strict=True))
    columns = all_reduce_sum(torch.cat([torch.stack(level).sum(0) for level in levels]))
    return (-columns.log()).where(columns.isfinite(), torch.nan).split([len(level[0]) for level in levels])


@torch.no_grad()
def _first_rows(exponents: Part, offsets: Levels) -> Levels:
    """The assignments after the first iteration."""
    return [level.add_(offset).softmax(1) for level, offset in zip(exponents(), offsets, strict=True)]


def _column_sums(rows: Sequence[Part], scales: Levels) -> Levels:
    """Each column's sum over the rows of every part and process; a row sums to one under the columns' scales."""
    totals = [torch.zeros_like(scale) for scale in scales]
    for part in rows:
        for total, level, scale in zip(totals, part(), scales, strict=True):
            total += (1 / (level @ scale)) @ level
    return all_reduce_sum(torch.cat(totals)).split([len(total) for total in totals])


@torch.no_grad()
def _assignments(rows: Part, scales: Levels) -> Levels:
    """The rows under the last scales of their columns; each then sums to one."""
    return [(level * scale).div_((level @ scale).unsqueeze(1)) for level, scale in zip(rows(), scales, strict=True)]
