"""Self-distillation with no labels (DINOv2, Franca): a batch of crops in, the losses of one step out.

The student sees masked global crops and local crops; the teacher, an average of past students, sees the global crops
whole. DINO compares class tokens across views, iBOT compares masked patches, KoLeo spreads the student's class tokens.
In distillation the teacher is a larger model that stays as it is, nothing is masked, and iBOT compares all patches.

Letters: b images, g = 2 b global crops, n local crops of an image, p patches of a global crop, m masked patches of the
batch, d embedding dimensions, k prototypes of a level.
"""

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from franca.config import ConfigError, Model, Precision, Recipe, koleo_group, prototypes_per_level
from franca.data.loader import Batch
from franca.distributed import all_gather, local_part
from franca.flops import teacher_recipe
from franca.losses.center import softmax_centers, update_centers
from franca.losses.dino import dino_loss
from franca.losses.ibot import ibot_loss
from franca.losses.koleo import koleo_loss_in_groups
from franca.losses.sinkhorn import Levels, Part, sinkhorn_parts
from franca.models.heads import make_head
from franca.models.vit import Features, VisionTransformer

HEADS = ("dino_head", "ibot_head")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Views:
    """A batch on the device, with where its masked patches lie among all [g p] and how much each one weighs.

    `padding` is the number of empty rows that upstream's buffer held after them. In distillation every patch counts as
    masked and none is hidden.
    """

    global_crops: Float[Tensor, "g 3 _ _"]
    local_crops: Float[Tensor, "_ 3 _ _"]
    masks: Bool[Tensor, "g p"]
    masked: Int[Tensor, " m"]
    weights: Float[Tensor, " m"]
    padding: int


@dataclass(frozen=True)
class Targets:
    """What the student is to predict, made when asked for: [g k] of global crops (each the other view's), and [m k]."""

    dino: Part
    ibot: Part


@dataclass(frozen=True)
class Losses:
    """The terms as DINOv2 logs them, and their weighted sum, whose gradient is taken."""

    logged: dict[str, Tensor]
    optimized: Float[Tensor, ""]


class SelfDistillation(nn.Module):
    """Student and teacher, each a backbone with a DINO and an iBOT head; the teacher has no gradient.

    The teacher is the average of past students, evaluated and kept; beside a frozen teacher it gives no targets.
    `autocast` says whether lower precision is reached by autocasting, or by what spreads the module over processes.
    Raises `ConfigError` where a frozen teacher does not fit.
    """

    def __init__(self, recipe: Recipe, *, attention: str = "sdpa", recompute: bool = False) -> None:
        super().__init__()
        self.recipe = recipe
        self.autocast = True
        self.student = make_networks(recipe, attention=attention, recompute=recompute)
        self.teacher = make_networks(recipe, attention=attention).requires_grad_(False)
        self.frozen_teacher: nn.ModuleDict | None = None
        if recipe.frozen_teacher:
            _check_frozen_teacher(recipe.frozen_teacher.model, recipe=recipe)
            self.frozen_teacher = make_networks(teacher_recipe(recipe), attention=attention).requires_grad_(False)
        self.train()
        # iBOT is off where it weighs nothing or where the share of masked crops rounds down to none.
        masked_crops = int(2 * recipe.global_batch * recipe.masking.sample_probability)
        self.has_ibot = recipe.losses.ibot_weight > 0 and (masked_crops > 0 or recipe.frozen_teacher is not None)
        self.student["ibot_head"].requires_grad_(self.has_ibot)
        if recipe.losses.centering == "softmax":
            for name, head in (("dino", recipe.heads.dino), ("ibot", recipe.heads.ibot)):
                for level, prototypes in enumerate(prototypes_per_level(head, recipe.heads.nesting)):
                    self.register_buffer(f"{name}_center_{level}", torch.zeros(prototypes))

    @property
    def guide(self) -> nn.ModuleDict:
        """The networks that give the targets."""
        return self.frozen_teacher or self.teacher

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Give the student its first values, the teacher the same, and centers zero; a frozen teacher is loaded."""
        for module in self.student.values():
            module.init_weights(generator)
        torch._foreach_copy_(*self._averaged())
        for center in self.buffers():
            center.zero_()

    def train(self, mode: bool = True) -> "SelfDistillation":
        """Teachers stay in evaluation mode: they drop no paths."""
        super().train(mode)
        self.teacher.eval()
        self.guide.eval()
        return self

    @torch.no_grad()
    def make_targets(self, views: Sequence[Views], *, temperature: float) -> list[Targets]:
        """The teacher's targets for each part of a batch. Centering sees the parts together: the split is invisible.

        Of several parts only the bottlenecks are kept, and their logits made again when they are needed.
        """
        seen = [self._teacher_bottlenecks(view) for view in views]
        dino = self._center("dino", [part.dino for part in seen], temperature=temperature)
        if not self.has_ibot:
            return [Targets(part, tuple) for part in dino]
        ibot = self._center("ibot", [part.ibot for part in seen], temperature=temperature)
        return [
            Targets(of_cls, functools.partial(_first, len(view.masked), of_patches))
            for of_cls, of_patches, view in zip(dino, ibot, views, strict=True)
        ]

    def forward(
        self,
        views: Views,
        targets: Targets,
        *,
        first_image: int = 0,
        neighbors: Float[Tensor, "2 _ d"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Losses:
        """The losses of a part of a batch under the teacher's targets; `generator` draws the student's dropped paths.

        `first_image` is the part's place in the global batch and `neighbors` that batch's class tokens, a view in each
        row, where `koleo_tokens` has made them.
        """
        recipe, losses = self.recipe, self.recipe.losses
        features = self._student_features(views, generator=generator)
        dino_local, dino_global = self._dino(features, targets)
        koleo = losses.koleo_weight * self._koleo(features[0].cls, first_image=first_image, neighbors=neighbors)
        patch = self._ibot(features[0], views, targets) if self.has_ibot else torch.zeros_like(koleo)
        logged = {
            "dino_local_crops_loss": dino_local,
            "dino_global_crops_loss": dino_global,
            "koleo_loss": koleo / 2,
            "ibot_loss": patch / 2,
        }
        optimized = losses.dino_weight * (dino_local + dino_global) + koleo + recipe.losses.ibot_weight * patch
        return Losses({name: value.detach() for name, value in logged.items()}, optimized)

    @torch.no_grad()
    def koleo_tokens(self, views: Views, *, generator: torch.Generator) -> Float[Tensor, "2 b d"]:
        """The student's class tokens of the global crops, a view in each row, without a gradient.

        For `neighbors`, under the draws that `forward` will make.
        """
        return torch.stack(self._student_features(views, generator=generator, first_only=True)[0].cls.chunk(2))

    def koleo_spans(self, images: int) -> bool:
        """Whether KoLeo's groups are wider than a part of so many images, and so need `neighbors`."""
        return self.recipe.losses.koleo_weight > 0 and images % koleo_group(self.recipe) > 0

    @torch.no_grad()
    def update_teacher(self, *, momentum: float) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student, in every parameter of backbone and heads."""
        torch._foreach_lerp_(*self._averaged(), 1 - momentum)

    def _averaged(self) -> tuple[list[Tensor], list[Tensor]]:
        """What this process holds of the teacher's parameters and of the student's, which are spread alike."""
        teacher, student = (
            [local_part(parameter) for parameter in networks.parameters()] for networks in (self.teacher, self.student)
        )
        return teacher, student

    def _student_features(
        self, views: Views, *, generator: torch.Generator | None, first_only: bool = False
    ) -> list[Features]:
        with self._autocast(self.recipe.precision.backbone):
            return self.student["backbone"].forward_packed(
                [views.global_crops, views.local_crops], views.masks, generator=generator, first_only=first_only
            )

    def _teacher_bottlenecks(self, view: Views) -> "_Bottlenecks":
        """Of each global crop's other view, and of the masked patches and their padding."""
        with self._autocast(self.recipe.precision.backbone):
            features = self.guide["backbone"](view.global_crops)
        first, second = features.cls.chunk(2)
        dino = self._bottlenecks("dino_head", torch.cat((second, first)))
        if not self.has_ibot:
            return _Bottlenecks(dino, ())
        patches = features.patches.flatten(0, 1)[view.masked]
        if self.recipe.quirks.sinkhorn_padding_rows:
            # QUIRK sinkhorn_padding_rows: valeoai/Franca ssl_meta_arch.py@24f8c60 slices the head's tuple, not its rows
            patches = torch.cat((patches, patches.new_zeros(view.padding, patches.shape[1])))
        return _Bottlenecks(dino, self._bottlenecks("ibot_head", patches))

    def _center(self, name: str, parts: Sequence[Levels], *, temperature: float) -> list[Part]:
        """Bottlenecks to targets, over all parts at once; softmax centering then moves its centers."""
        losses = self.recipe.losses
        logits = [functools.partial(self._classify, f"{name}_head", part) for part in parts]
        if losses.centering == "sinkhorn":
            # QUIRK sinkhorn_unscaled is DINO's alone: Franca's iBOT loss has the first division
            unscaled = self.recipe.quirks.sinkhorn_unscaled and name == "dino"
            return sinkhorn_parts(
                logits, temperature=temperature, iterations=losses.sinkhorn_iterations, unscaled=unscaled
            )
        centers = [self.get_buffer(f"{name}_center_{level}") for level in range(len(parts[0]))]
        before = [center.clone() for center in centers]
        for center, moved in zip(centers, update_centers(before, logits), strict=True):
            center.copy_(moved)
        return [functools.partial(softmax_centers, part, before, temperature=temperature) for part in logits]

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
        for logits, target in zip(self._head(self.student["dino_head"], tokens), targets.dino(), strict=True):
            dino_global = dino_global + 2 * dino_loss(logits[:rows], target, temperature=temperature) / pairs
            both_views = sum(target.chunk(2))
            crops = logits[rows:].unflatten(0, (locals_, rows // 2))
            dino_local = dino_local + locals_ * dino_loss(crops, both_views, temperature=temperature) / pairs
        return dino_local, dino_global

    def _koleo(
        self, cls: Float[Tensor, "g d"], *, first_image: int, neighbors: Float[Tensor, "2 _ d"] | None
    ) -> Float[Tensor, ""]:
        """Summed over the two views: crops of one image are no neighbors."""
        if not self.recipe.losses.koleo_weight:
            return cls.new_zeros((), dtype=torch.float32)
        own = torch.stack(cls.chunk(2))
        if neighbors is None and self.koleo_spans(own.shape[1]):
            neighbors = gather_parts([own])
        return sum(
            koleo_loss_in_groups(
                view,
                images=koleo_group(self.recipe),
                others=None if neighbors is None else neighbors[number],
                first=first_image,
                half=self.recipe.quirks.koleo_half,
            )
            for number, view in enumerate(own)
        )

    def _ibot(self, features: Features, views: Views, targets: Targets) -> Float[Tensor, ""]:
        """The loss on the masked patches of the global crops, summed over levels."""
        patches = features.patches.flatten(0, 1)[views.masked]
        temperature = self.recipe.losses.student_temperature
        levels = zip(self._head(self.student["ibot_head"], patches), targets.ibot(), strict=True)
        return sum(
            ibot_loss(logits, target, views.weights, temperature=temperature, images=len(views.masks))
            for logits, target in levels
        )

    def _head(self, head: nn.Module, tokens: Float[Tensor, "_ d"]) -> Levels:
        with self._autocast(self.recipe.precision.heads):
            return head(tokens)

    def _bottlenecks(self, head: str, tokens: Float[Tensor, "_ d"]) -> Levels:
        with self._autocast(self.recipe.precision.heads):
            return self.guide[head].bottlenecks(tokens)

    @torch.no_grad()
    def _classify(self, head: str, bottlenecks: Levels) -> Levels:
        with self._autocast(self.recipe.precision.heads):
            return self.guide[head].classify(bottlenecks)

    def _autocast(self, precision: Precision) -> contextlib.AbstractContextManager[None]:
        """Lower precision on CUDA as the recipe states it; a CPU computes in fp32."""
        if precision == "fp32" or not self.autocast or self.student["backbone"].cls_token.device.type == "cpu":
            return contextlib.nullcontext()
        return torch.autocast("cuda", dtype=DTYPES[precision])


@dataclass(frozen=True)
class _Bottlenecks:
    """What the teacher's heads make of a part, before its prototypes."""

    dino: Levels
    ibot: Levels


def make_views(batch: Batch, *, device: torch.device, every_patch: bool = False) -> Views:
    """Move a batch to the device. Its masked patches are found before that, where counting them waits for nothing.

    `every_patch`: no patch is hidden and all are compared, as distillation does.
    """
    chosen = torch.ones_like(batch.masks) if every_patch else batch.masks
    masked = chosen.flatten().nonzero().squeeze(1)
    share = 1.0 / chosen.sum(1).clamp(min=1)
    weights = share[masked // batch.masks.shape[1]]
    moved = batch.to(device)
    return Views(
        global_crops=moved.global_crops,
        local_crops=moved.local_crops,
        masks=moved.masks,
        masked=_send(masked, device),
        weights=_send(weights, device),
        padding=max(batch.mask_bound - len(masked), 0),
    )


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device that nothing waits for; from pageable memory it would wait for the device's work."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def gather_parts(parts: Sequence[Float[Tensor, "2 b d"]]) -> Float[Tensor, "2 _ d"]:
    """The parts of every process side by side, in the order of the global batch: a process has consecutive images."""
    return torch.cat(list(all_gather(torch.cat(list(parts), dim=1))), dim=1)


def make_networks(recipe: Recipe, *, attention: str = "sdpa", recompute: bool = False) -> nn.ModuleDict:
    """A backbone and its two heads, in upstream's names."""
    model, heads, quirks = recipe.model, recipe.heads, recipe.quirks
    grid = recipe.crops.global_px // model.patch_px
    networks: dict[str, nn.Module] = {
        "backbone": VisionTransformer(model, grid=grid, attention=attention, recompute=recompute)
    }
    for name, head in (("dino_head", heads.dino), ("ibot_head", heads.ibot)):
        networks[name] = make_head(head, embed_dim=model.embed_dim, nesting=heads.nesting, quirks=quirks)
    return nn.ModuleDict(networks)


def _check_frozen_teacher(teacher: Model, *, recipe: Recipe) -> None:
    """Raise `ConfigError` where a teacher's patches or the nesting of its heads cannot be the student's."""
    if teacher.patch_px != recipe.model.patch_px:
        raise ConfigError(
            f"recipe.frozen_teacher.model.patch_px: {teacher.patch_px}, but the student's patches, which are "
            f"compared with the teacher's, have {recipe.model.patch_px}"
        )
    widths = [width * teacher.embed_dim / recipe.model.embed_dim for width in recipe.heads.nesting]
    if any(width != int(width) for width in widths):
        raise ConfigError(f"recipe.heads.nesting: these shares of the teacher's width would be {widths}")


def _first(count: int, part: Part) -> Levels:
    """The first rows of each level: those of the masked patches, without their padding."""
    return [level[:count] for level in part()]
