"""Self-distillation with no labels (DINOv2, Franca): a batch of crops in, the losses of one step out.

The student sees masked global crops and local crops; the teacher, an average of past students, sees the global crops
whole. DINO compares class tokens across views, iBOT compares masked patches, KoLeo spreads the student's class tokens.

Letters: b images, g = 2 b global crops, n local crops of an image, p patches of a global crop, m masked patches of the
batch, d embedding dimensions, k prototypes of a level.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from franca.config import Precision, Recipe, prototypes_per_level
from franca.data.loader import Batch
from franca.losses.center import softmax_center, update_center
from franca.losses.dino import dino_loss
from franca.losses.ibot import ibot_loss
from franca.losses.koleo import koleo_loss
from franca.losses.sinkhorn import sinkhorn
from franca.models.heads import make_head
from franca.models.vit import Features, VisionTransformer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Levels = tuple[Tensor, ...]
"""One tensor per nesting level, narrowest first; one where nothing is nested."""


@dataclass(frozen=True)
class Views:
    """A batch on the device, with where its masked patches lie among all [g p] and how much each one weighs.

    `padding` is the number of empty rows that upstream's buffer held after them.
    """

    global_crops: Float[Tensor, "g 3 _ _"]
    local_crops: Float[Tensor, "_ 3 _ _"]
    masks: Bool[Tensor, "g p"]
    masked: Int[Tensor, " m"]
    weights: Float[Tensor, " m"]
    padding: int


@dataclass(frozen=True)
class Targets:
    """What the student is to predict: per level, [g k] for the global crops (each the other view's) and [m k]."""

    dino: Levels
    ibot: Levels


@dataclass(frozen=True)
class Losses:
    """The terms as DINOv2 logs them, and their weighted sum, whose gradient is taken."""

    logged: dict[str, Tensor]
    optimized: Float[Tensor, ""]


class SelfDistillation(nn.Module):
    """Student and teacher, each a backbone with a DINO and an iBOT head; the teacher has no gradient."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.student = _make_networks(recipe)
        self.teacher = _make_networks(recipe).requires_grad_(False)
        self.train()
        # iBOT is off where it weighs nothing or where the share of masked crops rounds down to none.
        masked_crops = int(2 * recipe.global_batch * recipe.masking.sample_probability)
        self.has_ibot = recipe.losses.ibot_weight > 0 and masked_crops > 0
        if recipe.losses.centering == "softmax":
            for name, head in (("dino", recipe.heads.dino), ("ibot", recipe.heads.ibot)):
                for level, prototypes in enumerate(prototypes_per_level(head, recipe.heads.nesting)):
                    self.register_buffer(f"{name}_center_{level}", torch.zeros(prototypes))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Give the student its first values and the teacher the same."""
        for module in self.student.values():
            module.init_weights(generator)
        self.teacher.load_state_dict(self.student.state_dict())

    def train(self, mode: bool = True) -> "SelfDistillation":
        """The teacher stays in evaluation mode: it drops no paths."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def make_targets(self, views: Sequence[Views], *, temperature: float) -> list[Targets]:
        """The teacher's targets for each part of a batch. Centering sees the parts together: the split is invisible."""
        parts = [self._teacher_logits(view) for view in views]
        dino = self._center("dino", [part.dino for part in parts], temperature=temperature)
        if not self.has_ibot:
            return [Targets(part, ()) for part in dino]
        ibot = self._center("ibot", [part.ibot for part in parts], temperature=temperature)
        rows = [len(view.masked) for view in views]
        return [
            Targets(of_cls, tuple(level[:count] for level in of_patches))
            for of_cls, of_patches, count in zip(dino, ibot, rows, strict=True)
        ]

    def forward(self, views: Views, targets: Targets, *, generator: torch.Generator | None = None) -> Losses:
        """The losses of one batch under the teacher's targets; `generator` draws the student's dropped paths."""
        recipe, losses = self.recipe, self.recipe.losses
        with self._autocast(recipe.precision.backbone):
            crops = [views.global_crops, views.local_crops]
            features = self.student["backbone"].forward_packed(crops, views.masks, generator=generator)
        dino_local, dino_global = self._dino(features, targets)
        koleo = losses.koleo_weight * self._koleo(features[0].cls)
        patch = self._ibot(features[0], views, targets) if self.has_ibot else torch.zeros_like(koleo)
        logged = {
            "dino_local_crops_loss": dino_local,
            "dino_global_crops_loss": dino_global,
            "koleo_loss": koleo / 2,
            "ibot_loss": patch / 2,
        }
        optimized = losses.dino_weight * (dino_local + dino_global) + koleo + losses.ibot_weight * patch
        return Losses({name: value.detach() for name, value in logged.items()}, optimized)

    @torch.no_grad()
    def update_teacher(self, *, momentum: float) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student, in every parameter of backbone and heads."""
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)

    def _teacher_logits(self, view: Views) -> Targets:
        """Logits in place of targets: of each global crop's other view, and of the masked patches and their padding."""
        with self._autocast(self.recipe.precision.backbone):
            features = self.teacher["backbone"](view.global_crops)
        first, second = features.cls.chunk(2)
        dino = self._head(self.teacher["dino_head"], torch.cat((second, first)))
        if not self.has_ibot:
            return Targets(dino, ())
        patches = features.patches.flatten(0, 1)[view.masked]
        if self.recipe.quirks.sinkhorn_padding_rows:
            # QUIRK sinkhorn_padding_rows: valeoai/Franca ssl_meta_arch.py@24f8c60 slices the head's tuple, not its rows
            patches = torch.cat((patches, patches.new_zeros(view.padding, patches.shape[1])))
        return Targets(dino, self._head(self.teacher["ibot_head"], patches))

    def _center(self, name: str, parts: Sequence[Levels], *, temperature: float) -> list[Levels]:
        """Logits to targets, level by level over all parts at once; softmax centering then moves its center."""
        losses, quirks = self.recipe.losses, self.recipe.quirks
        sizes = [len(part[0]) for part in parts]
        levels = parts[0] if len(parts) == 1 else [torch.cat(level) for level in zip(*parts, strict=True)]
        centered = []
        for level, logits in enumerate(levels):
            if losses.centering == "softmax":
                center = self.get_buffer(f"{name}_center_{level}")
                targets = softmax_center(logits, center, temperature=temperature)
                center.copy_(update_center(center, logits))
            else:
                # QUIRK sinkhorn_unscaled is DINO's alone: Franca's iBOT loss has the first division
                unscaled = quirks.sinkhorn_unscaled and name == "dino"
                targets = sinkhorn(
                    logits, temperature=temperature, iterations=losses.sinkhorn_iterations, unscaled=unscaled
                )
            centered.append(targets.split(sizes))
        return list(zip(*centered, strict=True))

    def _dino(self, features: Sequence[Features], targets: Targets) -> tuple[Tensor, Tensor]:
        """Local and global terms, summed over levels: every pair of a student's crop and another teacher's view.

        Of 2 n local and 2 global pairs, each term is its pairs' share (dinov2 `ssl_meta_arch.py`).
        """
        locals_ = self.recipe.crops.local_number
        temperature = self.recipe.losses.student_temperature
        pairs = 2 * locals_ + 2
        tokens = torch.cat([part.cls for part in features])
        rows = len(features[0].cls)
        dino_local = dino_global = tokens.new_zeros((), dtype=torch.float32)
        for logits, target in zip(self._head(self.student["dino_head"], tokens), targets.dino, strict=True):
            dino_global = dino_global + 2 * dino_loss(logits[:rows], target, temperature=temperature) / pairs
            both_views = sum(target.chunk(2))
            crops = logits[rows:].unflatten(0, (locals_, rows // 2))
            dino_local = dino_local + locals_ * dino_loss(crops, both_views, temperature=temperature) / pairs
        return dino_local, dino_global

    def _koleo(self, cls: Float[Tensor, "g d"]) -> Float[Tensor, ""]:
        """Summed over the two views: crops of one image are no neighbors."""
        return sum(koleo_loss(view, half=self.recipe.quirks.koleo_half) for view in cls.chunk(2))

    def _ibot(self, features: Features, views: Views, targets: Targets) -> Float[Tensor, ""]:
        """The loss on the masked patches of the global crops, summed over levels."""
        patches = features.patches.flatten(0, 1)[views.masked]
        temperature = self.recipe.losses.student_temperature
        levels = zip(self._head(self.student["ibot_head"], patches), targets.ibot, strict=True)
        return sum(
            ibot_loss(logits, target, views.weights, temperature=temperature, images=len(views.masks))
            for logits, target in levels
        )

    def _head(self, head: nn.Module, tokens: Float[Tensor, "_ d"]) -> Levels:
        with self._autocast(self.recipe.precision.heads):
            return head(tokens)

    def _autocast(self, precision: Precision) -> contextlib.AbstractContextManager[None]:
        """Lower precision on CUDA as the recipe states it; a CPU computes in fp32."""
        if precision == "fp32" or self.student["backbone"].cls_token.device.type == "cpu":
            return contextlib.nullcontext()
        return torch.autocast("cuda", dtype=DTYPES[precision])


def make_views(batch: Batch, *, device: torch.device) -> Views:
    """Move a batch to the device. Its masked patches are found before that, where counting them waits for nothing."""
    masked = batch.masks.flatten().nonzero().squeeze(1)
    share = 1.0 / batch.masks.sum(1).clamp(min=1)
    weights = share[masked // batch.masks.shape[1]]
    moved = batch.to(device)
    return Views(
        global_crops=moved.global_crops,
        local_crops=moved.local_crops,
        masks=moved.masks,
        masked=masked.to(device, non_blocking=True),
        weights=weights.to(device, non_blocking=True),
        padding=max(batch.mask_bound - len(masked), 0),
    )


def _make_networks(recipe: Recipe) -> nn.ModuleDict:
    """A backbone and its two heads, in upstream's names."""
    model, heads, quirks = recipe.model, recipe.heads, recipe.quirks
    grid = recipe.crops.global_px // model.patch_px
    networks = {"backbone": VisionTransformer(model, grid=grid)}
    for name, head in (("dino_head", heads.dino), ("ibot_head", heads.ibot)):
        networks[name] = make_head(head, embed_dim=model.embed_dim, nesting=heads.nesting, quirks=quirks)
    return nn.ModuleDict(networks)
