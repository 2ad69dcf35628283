"""The parts of a vision transformer. Tokens of all crops travel in one packed array; see `attention.Groups`.

Letters: n images, c crops of one size, p patches of a crop, t tokens of all sequences, d embedding dimensions.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from franca.config import Model
from franca.models.attention import Attention, Groups

NORM_EPS = 1e-6  # dinov2 vision_transformer.py; torch's default is 1e-5

Subsets = tuple[Int[Tensor, "_"], ...]
"""For each group, the sequences that a branch of a block runs on."""

Branch = Callable[[Tensor, Groups], Tensor]
"""Attention or feed-forward: packed tokens and their groups in, what is added to the stream out."""


class PatchEmbed(nn.Module):
    """Each square of `patch_px` pixels becomes one token."""

    def __init__(self, dim: int, *, patch_px: int):
        super().__init__()
        self.patch_px = patch_px
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_px, stride=patch_px)

    def forward(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n p d"]:
        return self.proj(images).flatten(2).transpose(1, 2)


class LayerScale(nn.Module):
    """Adds a branch's output to the stream, each dimension scaled by a learned `gamma`."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(dim))

    def forward(
        self, x: Float[Tensor, "t d"], branch: Branch, *, groups: Groups, subsets: Subsets | None
    ) -> Float[Tensor, "t d"]:
        """With `subsets`, a draw of `draw_subsets`, the branch runs on those sequences alone (stochastic depth)."""
        if subsets is None:
            return torch.addcmul(x, branch(x, groups), self.gamma)
        return add_on_subsets(x, lambda part, kept: branch(part, kept) * self.gamma, groups=groups, subsets=subsets)


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, *, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "t d"]) -> Float[Tensor, "t d"]:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """w3(silu(w1 x) * (w2 x)), w1 and w2 in one matrix. Has `Mlp`'s parameter count at two thirds of its width."""

    def __init__(self, dim: int, *, hidden: int):
        super().__init__()
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8  # dinov2 swiglu_ffn.py: rounded up to a multiple of 8
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "t d"]) -> Float[Tensor, "t d"]:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


FFNS: dict[str, Callable[..., nn.Module]] = {"mlp": Mlp, "swiglu": SwiGLU}


class Block(nn.Module):
    """Attention and feed-forward, each on normalized tokens, each scaled and added to the stream.

    `kept` holds the sequences that each of the two runs on; None is all.
    """

    def __init__(self, model: Model, *, backend: str):
        super().__init__()
        dim = model.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, heads=model.heads, backend=backend)
        self.ls1 = LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = FFNS[model.ffn](dim, hidden=int(dim * model.ffn_ratio))
        self.ls2 = LayerScale(dim)

    def forward(
        self, x: Float[Tensor, "t d"], *, groups: Groups, kept: tuple[Subsets, Subsets] | None
    ) -> Float[Tensor, "t d"]:
        for_attention, for_feed_forward = kept or (None, None)
        x = self.ls1(x, self._attend, groups=groups, subsets=for_attention)
        return self.ls2(x, self._feed_forward, groups=groups, subsets=for_feed_forward)

    def _attend(self, x: Float[Tensor, "t d"], groups: Groups) -> Float[Tensor, "t d"]:
        return self.attn(self.norm1(x), groups=groups)

    def _feed_forward(self, x: Float[Tensor, "t d"], _: Groups) -> Float[Tensor, "t d"]:
        return self.mlp(self.norm2(x))


def draw_subsets(groups: Groups, *, rate: float, generator: torch.Generator | None, device: torch.device) -> Subsets:
    """For each group a random (1 - rate) of its sequences, rounded down, at least one.

    dinov2 block.py does so at any rate for lists of crops, which is how it trains. Drawn outside of the blocks: a block
    is a function of its inputs, and may be recomputed.
    """
    return tuple(
        torch.randperm(sequences, generator=generator, device=device)[: max(int(sequences * (1 - rate)), 1)]
        for sequences, _ in groups
    )


def add_on_subsets(
    x: Float[Tensor, "t d"], branch: Branch, *, groups: Groups, subsets: Subsets
) -> Float[Tensor, "t d"]:
    """x plus the branch's output on the subsets' sequences, scaled up by n / len(subset) so that its mean stays."""
    dim = x.shape[1]
    streams = [
        part.view(sequences, length * dim)
        for part, (sequences, length) in zip(x.split([n * length for n, length in groups]), groups, strict=True)
    ]
    kept = tuple((len(subset), length) for subset, (_, length) in zip(subsets, groups, strict=True))
    chosen = [stream.index_select(0, subset).view(-1, dim) for stream, subset in zip(streams, subsets, strict=True)]
    residual = branch(torch.cat(chosen), kept).to(x.dtype)
    residuals = residual.split([n * length for n, length in kept])
    added = [
        stream.index_add(0, subset, part.view(len(subset), -1), alpha=len(stream) / len(subset)).view(-1, dim)
        for stream, subset, part in zip(streams, subsets, residuals, strict=True)
    ]
    return torch.cat(added)


def interpolate_positions(
    positions: Float[Tensor, "1 _ d"], *, rows: int, columns: int, offset: float, antialias: bool = False
) -> Float[Tensor, "1 _ d"]:
    """Positions of a class token and a square grid of patches, resampled (bicubic) to rows × columns patches.

    A nonzero `offset` is added to the numbers of rows and columns before they become the scale, which shifts the
    sampling points: dinov2 trained with 0.1 and its weights expect it; its models with registers expect 0 and
    `antialias`. Computed in float32 or better.
    """
    grid = math.isqrt(positions.shape[1] - 1)
    if rows == columns == grid:
        return positions
    wide = positions.to(torch.promote_types(positions.dtype, torch.float32))
    image = wide[:, 1:].unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    if offset:
        scale = ((rows + offset) / grid, (columns + offset) / grid)
        image = F.interpolate(image, scale_factor=scale, mode="bicubic", antialias=antialias)
    else:
        image = F.interpolate(image, size=(rows, columns), mode="bicubic", antialias=antialias)
    patches = image.flatten(2).transpose(1, 2)
    return torch.cat([wide[:, :1], patches], dim=1).to(positions.dtype)
