"""The vision transformer of DINOv2 and Franca. Images in, normalized class, register and patch tokens out.

Parameters have upstream's names. Crops of several sizes run in one forward: linear layers and norms see one packed
array of tokens, attention stays within each crop.

Letters: n images, g global crops, p patches of a crop, r registers, t tokens of all sequences, d embedding dimensions.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from franca.config import ConfigError, Model
from franca.distributed import fill
from franca.models.attention import BACKENDS
from franca.models.layers import (
    NORM_EPS,
    Block,
    LayerScale,
    PatchEmbed,
    Subsets,
    draw_subsets,
    interpolate_positions,
)


class Features(NamedTuple):
    """Tokens of n images of one size, after the final norm. A tuple: FSDP2 finds the tensors in those."""

    cls: Float[Tensor, "n d"]
    registers: Float[Tensor, "n r d"]
    patches: Float[Tensor, "n p d"]


class VisionTransformer(nn.Module):
    """A ViT whose learned positions are those of a crop of `grid` × `grid` patches.

    `__init__` makes shapes (it may run on the meta device), `init_weights` makes values. Raises `ConfigError` on a
    model that cannot be built. With `recompute` the activations of a block are made again in the backward pass.
    """

    def __init__(self, model: Model, *, grid: int, attention: str = "sdpa", recompute: bool = False):
        super().__init__()
        if model.embed_dim % model.heads:
            raise ConfigError(f"model.heads: {model.heads} does not divide model.embed_dim, {model.embed_dim}")
        if attention not in BACKENDS:
            raise ConfigError(f"attention: {attention!r} is not one of {', '.join(BACKENDS)}")
        self.model = model
        self.recompute = recompute
        dim = model.embed_dim
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid * grid, dim))
        self.register_tokens = nn.Parameter(torch.empty(1, model.registers, dim)) if model.registers else None
        self.mask_token = nn.Parameter(torch.empty(1, dim))
        self.patch_embed = PatchEmbed(dim, patch_px=model.patch_px)
        self.blocks = nn.ModuleList([Block(model, backend=attention) for _ in range(model.depth)])
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Give every parameter its first value (dinov2 vision_transformer.py; the patch embedding has torch's own)."""
        fill(self.cls_token, nn.init.normal_, std=1e-6, generator=generator)
        fill(self.pos_embed, nn.init.trunc_normal_, std=0.02, generator=generator)
        fill(self.mask_token, nn.init.zeros_)
        if self.register_tokens is not None:
            fill(self.register_tokens, nn.init.normal_, std=1e-6, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                fill(module.weight, nn.init.trunc_normal_, std=0.02, generator=generator)
                fill(module.bias, nn.init.zeros_)
            elif isinstance(module, nn.Conv2d):
                bound = module.weight.shape[1:].numel() ** -0.5
                fill(module.weight, nn.init.uniform_, a=-bound, b=bound, generator=generator)
                fill(module.bias, nn.init.uniform_, a=-bound, b=bound, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                fill(module.weight, nn.init.ones_)
                fill(module.bias, nn.init.zeros_)
            elif isinstance(module, LayerScale):
                fill(module.gamma, nn.init.constant_, val=self.model.layerscale)

    def forward(self, images: Float[Tensor, "n 3 height width"]) -> Features:
        """Features of images of one size, none of them masked."""
        return self.forward_packed([images], None)[0]

    def forward_packed(
        self,
        crops: list[Float[Tensor, "_ 3 _ _"]],
        masks: Bool[Tensor, "g p"] | None,
        *,
        generator: torch.Generator | None = None,
        first_only: bool = False,
    ) -> list[Features]:
        """Features of each array of crops. `masks` hides patches of the first one, the global crops.

        In training, stochastic depth draws from `generator` (on the crops' device), or from torch's own if it is
        None: the same state, the same sequences. `first_only` leaves out all but the first array, under these draws.
        """
        kept = self._draw(crops, generator) if self.training and self.model.drop_path else [None] * len(self.blocks)
        if first_only:
            crops = crops[:1]
            kept = [draw and (draw[0][:1], draw[1][:1]) for draw in kept]
        tokens = [self._embed(images, masks if i == 0 else None) for i, images in enumerate(crops)]
        groups = tuple((part.shape[0], part.shape[1]) for part in tokens)
        x = torch.cat([part.flatten(0, 1) for part in tokens])
        for block, draw in zip(self.blocks, kept, strict=True):
            if self.recompute and torch.is_grad_enabled():
                # Its draws are arguments: there is no random state to keep
                x = checkpoint(block, x, groups=groups, kept=draw, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, groups=groups, kept=draw)
        parts = self.norm(x).split([n * length for n, length in groups])
        return [self._features(part.unflatten(0, group)) for part, group in zip(parts, groups, strict=True)]

    def intermediate_tokens(
        self,
        images: Float[Tensor, "n 3 height width"],
        *,
        blocks: Sequence[int],
        masks: Bool[Tensor, "n p"] | None = None,
    ) -> list[Float[Tensor, "n _ d"]]:
        """All tokens of each image as they leave the blocks of these numbers (from 0, ascending), before the norm."""
        tokens = self._embed(images, masks)
        shape = tokens.shape[:2]
        x, taken = tokens.flatten(0, 1), []
        for number, block in enumerate(self.blocks):
            x = block(x, groups=(tuple(shape),), kept=None)
            if number in blocks:
                taken.append(x.unflatten(0, shape))
        return taken

    def intermediate_features(self, images: Float[Tensor, "n 3 height width"], *, blocks: int = 4) -> list[Features]:
        """Features of the last `blocks` blocks, the last one's last, each after the final norm.

        What the linear probe and dense tasks see: dinov2 `get_intermediate_layers`.
        """
        numbers = range(self.model.depth - blocks, self.model.depth)
        return [self._features(self.norm(tokens)) for tokens in self.intermediate_tokens(images, blocks=numbers)]

    def _embed(
        self, images: Float[Tensor, "n 3 height width"], masks: Bool[Tensor, "n p"] | None
    ) -> Float[Tensor, "n _ d"]:
        """Class token, registers and patches of each image, with positions; registers have none."""
        n, _, height, width = images.shape
        patch_px = self.model.patch_px
        if height % patch_px or width % patch_px:
            raise ValueError(f"a crop of {height} × {width} px cannot be cut into patches of {patch_px} px")
        patches = self.patch_embed(images)
        if masks is not None:
            patches = torch.where(masks.unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        positions = interpolate_positions(
            self.pos_embed,
            rows=height // patch_px,
            columns=width // patch_px,
            offset=self.model.interpolate_offset,
            antialias=self.model.interpolate_antialias,
        )
        tokens = [(self.cls_token + positions[:, :1]).expand(n, -1, -1), patches + positions[:, 1:]]
        if self.register_tokens is not None:
            tokens.insert(1, self.register_tokens.expand(n, -1, -1))
        return torch.cat(tokens, dim=1)

    def _draw(
        self, crops: list[Float[Tensor, "_ 3 _ _"]], generator: torch.Generator | None
    ) -> list[tuple[Subsets, Subsets]]:
        """For each block, the sequences that its two branches run on; the rate is the same in every block."""
        groups = tuple((len(images), 0) for images in crops)
        draw = functools.partial(
            draw_subsets, groups, rate=self.model.drop_path, generator=generator, device=crops[0].device
        )
        return [(draw(), draw()) for _ in self.blocks]

    def _features(self, tokens: Float[Tensor, "n _ d"]) -> Features:
        first_patch = 1 + self.model.registers
        parts = (tokens[:, 0], tokens[:, 1:first_patch], tokens[:, first_patch:])
        # Copies: hooks of FSDP2 on a view would not survive an operation in place
        return Features(*(part.clone(memory_format=torch.contiguous_format) for part in parts))
