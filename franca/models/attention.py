"""Self-attention over packed sequences: every token attends to the tokens of its own sequence and to no other.

In: one packed array of tokens and the groups of equally long sequences that lie in it, one after another. Out: one
packed array. `BACKENDS` lists the ways to compute it; all give the same numbers to rounding.

Letters: t tokens of all sequences, h heads, e dimensions of a head, d = h·e.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from torch import Tensor, nn

from franca.config import Backend, ConfigError

Groups = tuple[tuple[int, int], ...]
"""(number of sequences, tokens of each), in the order in which they are packed."""


def sdpa(qkv: Float[Tensor, "t 3 h e"], *, groups: Groups) -> Float[Tensor, "t h e"]:
    """One call of torch's scaled dot product attention for each group: no mask, on any device."""
    outputs = []
    for part, (sequences, length) in zip(qkv.split([n * length for n, length in groups]), groups, strict=True):
        q, k, v = part.unflatten(0, (sequences, length)).permute(2, 0, 3, 1, 4).unbind()
        outputs.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def xformers(qkv: Float[Tensor, "t 3 h e"], *, groups: Groups) -> Float[Tensor, "t h e"]:
    """xFormers' memory-efficient attention under a block-diagonal mask: CUDA only, one kernel for all groups."""
    from xformers.ops import memory_efficient_attention

    q, k, v = qkv.unsqueeze(0).unbind(2)
    return memory_efficient_attention(q, k, v, attn_bias=block_diagonal_mask(groups, qkv.device)).squeeze(0)


def varlen(qkv: Float[Tensor, "t 3 h e"], *, groups: Groups) -> Float[Tensor, "t h e"]:
    """torch's variable-length flash attention: CUDA and half precision only, one kernel for all groups."""
    from torch.nn.attention.varlen import varlen_attn

    bounds = sequence_bounds(groups, qkv.device)
    longest = max(length for _, length in groups)
    q, k, v = qkv.unbind(1)
    return varlen_attn(q, k, v, bounds, bounds, longest, longest)


# A run has few shapes and asks for each in every layer of every step: both are made once and stay on the device.
@functools.lru_cache(maxsize=16)
def block_diagonal_mask(groups: Groups, device: torch.device) -> Any:
    """xFormers' mask under which a token sees its own sequence."""
    from xformers.ops import fmha

    return fmha.BlockDiagonalMask.from_seqlens(_lengths(groups), device=device)


@functools.lru_cache(maxsize=16)
def sequence_bounds(groups: Groups, device: torch.device) -> Int32[Tensor, "_"]:
    """Where each sequence starts among the packed tokens, and at last where all end."""
    return torch.tensor([0, *itertools.accumulate(_lengths(groups))], dtype=torch.int32).to(device)


def _lengths(groups: Groups) -> list[int]:
    return [length for sequences, length in groups for _ in range(sequences)]


BACKENDS: dict[str, Callable[..., Tensor]] = {"sdpa": sdpa, "xformers": xformers, "varlen": varlen}

# Fastest first: one kernel for the crops of all sizes beats one for each size
PREFERRED = ("varlen", "xformers", "sdpa")


def choose_backend(asked: Backend, *, device: torch.device, dtype: torch.dtype, compiled: bool = False) -> str:
    """The backend to use: the one asked for, or for `auto` the first of `PREFERRED` that computes `dtype` on `device`.

    In compiled blocks `auto` is grouped SDPA: torch.compile would make the others' bounds anew in every block. Raises
    `ConfigError` on one that does not work.
    """
    if asked == "auto" and compiled:
        return "sdpa"
    if asked == "auto":
        return next(name for name in PREFERRED if _works(name, device=device, dtype=dtype))
    if not _works(asked, device=device, dtype=dtype):
        raise ConfigError(
            f"execution.attention: {asked} does not compute {dtype} on {device.type} with what is installed here; auto "
            f"takes one that does"
        )
    return asked


def _works(name: str, *, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a backend computes a small example forth and back: installed is not enough, kernels may be missing."""
    if name == "sdpa":
        return True
    if device.type != "cuda":
        return False
    qkv = torch.zeros(8, 3, 1, 64, device=device, dtype=dtype, requires_grad=True)
    try:
        BACKENDS[name](qkv, groups=((2, 4),)).sum().backward()
    except (AttributeError, ImportError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    return True


class Attention(nn.Module):
    """Multi-head self-attention within each packed sequence; `backend` is a key of `BACKENDS`."""

    def __init__(self, dim: int, *, heads: int, backend: str):
        super().__init__()
        self.heads = heads
        self.backend = backend
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "t d"], *, groups: Groups) -> Float[Tensor, "t d"]:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        return self.proj(BACKENDS[self.backend](qkv, groups=groups).flatten(1))
