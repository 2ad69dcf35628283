"""What a recipe costs to compute: a recipe in, its parameters and floating-point operations out. Pure: no torch.

Counted are the multiplications and additions of matrix products (2 m n k each), as in the model FLOPs of PaLM, appendix
B: nothing that is computed twice to save memory, no norm, softmax, optimizer or average, and neither Sinkhorn-Knopp nor
KoLeo, whose nearest neighbors are a share of 1e-6.
"""

import dataclasses
import itertools
from dataclasses import dataclass

from franca.config import Head, Model, Precision, Quirks, Recipe, prototypes_per_level

# Dense matrix products with float32 accumulation, in TFLOP/s by (bfloat16, float16), for what torch calls the device.
# From NVIDIA's data sheets, without their sparsity: A100, H100, H200, GH200, H20, B200, V100, L40S, L40, L4, A30, A40,
# A10, T4, RTX A6000, and the Ada and Ampere whitepapers; AMD's for the MI300X. The first name that is found counts.
PEAKS: tuple[tuple[str, float | None, float | None], ...] = (
    ("GB200", 2500.0, 2500.0),
    ("B200", 2250.0, 2250.0),
    ("GH200", 989.4, 989.4),
    ("H200 NVL", 835.5, 835.5),
    ("H200", 989.4, 989.4),
    ("H100 PCIe", 756.0, 756.0),
    ("H100 NVL", 835.5, 835.5),
    ("H100", 989.4, 989.4),
    ("H800", 989.4, 989.4),
    ("H20", 148.0, 148.0),
    ("A100", 312.0, 312.0),
    ("A800", 312.0, 312.0),
    ("V100 PCIE", None, 112.0),
    ("V100", None, 125.0),
    ("L40S", 362.05, 362.05),
    ("L40", 181.05, 181.05),
    ("L4", 121.0, 121.0),
    ("RTX 6000 Ada", 364.2, 364.2),
    ("RTX A6000", 154.8, 154.8),
    ("A30", 165.0, 165.0),
    ("A40", 149.7, 149.7),
    ("A10", 125.0, 125.0),
    ("T4", None, 65.0),
    ("RTX 4090", 165.2, 165.2),
    ("RTX 3090", 71.0, 71.0),
    ("MI300X", 1307.4, 1307.4),
)
PARTIAL = {"MIG", "Laptop"}  # less than the whole card of that name


@dataclass(frozen=True)
class Parameters:
    """Values of one copy of the networks. The student's are all trained; the teacher holds as many."""

    backbone: int
    dino_head: int
    ibot_head: int

    @property
    def heads(self) -> int:
        return self.dino_head + self.ibot_head

    @property
    def trainable(self) -> int:
        return self.backbone + self.heads


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one training step for one image: the teacher forward, the student forward and backward.

    A backward pass is two forwards: a product for the gradient of each of its factors. The patch embedding's is one,
    since no gradient flows into the image.
    """

    teacher_backbone: float
    teacher_heads: float
    student_backbone: float
    student_heads: float

    @property
    def total(self) -> float:
        return self.teacher_backbone + self.teacher_heads + self.student_backbone + self.student_heads


@dataclass(frozen=True)
class CropFlops:
    """FLOPs of one forward pass of the backbone over one crop."""

    patch_embed: int
    blocks: int


def ffn_hidden(model: Model) -> int:
    """Hidden width of the feed-forward layer; SwiGLU's rule is facebookresearch/dinov2 layers/swiglu_ffn.py@b8931f7."""
    hidden = int(model.embed_dim * model.ffn_ratio)
    return hidden if model.ffn == "mlp" else (int(hidden * 2 / 3) + 7) // 8 * 8


def teacher_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the networks that give the targets: of a frozen teacher, whose levels have the student's shares."""
    if recipe.frozen_teacher is None:
        return recipe
    model = recipe.frozen_teacher.model
    nesting = tuple(width * model.embed_dim // recipe.model.embed_dim for width in recipe.heads.nesting)
    return dataclasses.replace(recipe, model=model, heads=dataclasses.replace(recipe.heads, nesting=nesting))


def count_parameters(recipe: Recipe) -> Parameters:
    """The parameters of the recipe's networks, of the student or the average of it."""
    model = recipe.model
    dino, ibot = (
        _head_parameters(head, embed_dim=model.embed_dim, nesting=recipe.heads.nesting, quirks=recipe.quirks)
        for head in (recipe.heads.dino, recipe.heads.ibot)
    )
    return Parameters(_backbone_parameters(model, grid=recipe.crops.global_px // model.patch_px), dino, ibot)


def crop_flops(model: Model, *, px: int) -> CropFlops:
    """One crop of `px` × `px` pixels through the backbone, no path dropped.

    A token costs 2 FLOPs for each weight of a block's four linear layers, and 4 d for each token it attends to.
    """
    dim, patches = model.embed_dim, (px // model.patch_px) ** 2
    tokens = 1 + model.registers + patches
    linear = 2 * tokens * (4 * dim * dim + _ffn_weights(model))
    attention = 4 * tokens * tokens * dim
    return CropFlops(2 * patches * 3 * model.patch_px**2 * dim, model.depth * (linear + attention))


def head_flops(head: Head, *, embed_dim: int, nesting: tuple[int, ...], quirks: Quirks) -> int:
    """One token through a projection head, forward: 2 FLOPs for each weight, on every nesting level."""
    levels = _levels(head, embed_dim=embed_dim, nesting=nesting, quirks=quirks)
    return 2 * sum(_level_weights(head, *level) for level in levels)


def masked_patches(recipe: Recipe) -> float:
    """How many patches of an image's two global crops are masked on average; block masks hide at most as many.

    A share `sample_probability` of the batch's crops is masked, rounded down, each by a ratio that is uniform in its
    range; without a frozen teacher, whose student sees and is compared on every patch.
    """
    patches = (recipe.crops.global_px // recipe.model.patch_px) ** 2
    if recipe.frozen_teacher is not None:
        return 2.0 * patches
    masked_crops = int(2 * recipe.global_batch * recipe.masking.sample_probability)
    return masked_crops / recipe.global_batch * patches * sum(recipe.masking.ratio) / 2


def step_flops(recipe: Recipe, *, images: int, patches: float | None = None) -> StepFlops:
    """FLOPs for one image of a training step in which a process takes `images` at a time.

    `images` decide how many sequences stochastic depth keeps, a share of them rounded down. `patches` are those that
    iBOT compares for an image, on average `masked_patches`.
    """
    student, crops = recipe.model, recipe.crops
    teacher = teacher_recipe(recipe)
    patches = masked_patches(recipe) if patches is None else patches
    patches = patches if recipe.losses.ibot_weight > 0 else 0.0
    seen = crop_flops(teacher.model, px=crops.global_px)
    student_backbone = 0.0
    for number, px in ((2, crops.global_px), (crops.local_number, crops.local_px)):
        crop = crop_flops(student, px=px)
        kept = kept_share(student.drop_path, sequences=number * images)
        student_backbone += number * (2 * crop.patch_embed + 3 * kept * crop.blocks)
    return StepFlops(
        teacher_backbone=2.0 * (seen.patch_embed + seen.blocks),
        teacher_heads=_heads_flops(teacher, classes=2, patches=patches),
        student_backbone=student_backbone,
        student_heads=3 * _heads_flops(recipe, classes=2 + crops.local_number, patches=patches),
    )


def kept_share(rate: float, *, sequences: int) -> float:
    """The share of sequences that a branch runs on under stochastic depth: rounded down, at least one."""
    return max(int(sequences * (1 - rate)), 1) / sequences if rate else 1.0


def peak_tflops(device: str, *, precision: Precision) -> float | None:
    """The dense peak of a device, by torch's name of it, in TFLOP/s; None where it is not known, as of a CPU."""
    words = set(device.replace("-", " ").split())
    if precision == "fp32" or words & PARTIAL:
        return None
    found = ((bf16, fp16) for name, bf16, fp16 in PEAKS if words.issuperset(name.split()))
    bf16, fp16 = next(found, (None, None))
    return bf16 if precision == "bf16" else fp16


def _heads_flops(recipe: Recipe, *, classes: int, patches: float) -> float:
    """Both heads, forward: DINO's on class tokens, iBOT's on patches."""
    dim, nesting, quirks = recipe.model.embed_dim, recipe.heads.nesting, recipe.quirks
    dino = head_flops(recipe.heads.dino, embed_dim=dim, nesting=nesting, quirks=quirks)
    ibot = head_flops(recipe.heads.ibot, embed_dim=dim, nesting=nesting, quirks=quirks)
    return classes * dino + patches * ibot


def _ffn_weights(model: Model) -> int:
    """SwiGLU has a matrix for the gate beside that for the value."""
    return (3 if model.ffn == "swiglu" else 2) * model.embed_dim * ffn_hidden(model)


def _backbone_parameters(model: Model, *, grid: int) -> int:
    """The vision transformer, mask token and position embedding included."""
    dim, hidden = model.embed_dim, ffn_hidden(model)
    biases = 4 * dim + (2 * hidden if model.ffn == "swiglu" else hidden) + dim
    block = 4 * dim * dim + _ffn_weights(model) + biases + 6 * dim  # two norms of 2 d, two LayerScales
    tokens = (1 + grid * grid) + 1 + 1 + model.registers  # position embedding, class token, mask token
    return 3 * model.patch_px**2 * dim + dim + tokens * dim + model.depth * block + 2 * dim


def _head_parameters(head: Head, *, embed_dim: int, nesting: tuple[int, ...], quirks: Quirks) -> int:
    """Weights, a bias for each output of a linear layer, and a length for each prototype."""
    total = 0
    for seen, width, prototypes in _levels(head, embed_dim=embed_dim, nesting=nesting, quirks=quirks):
        projection = width if seen else 0
        biases = projection + head.hidden * (head.layers - 1) + head.bottleneck
        total += _level_weights(head, seen, width, prototypes) + biases + prototypes
    return total


def _levels(head: Head, *, embed_dim: int, nesting: tuple[int, ...], quirks: Quirks) -> list[tuple[int, int, int]]:
    """For each level its projection's inputs (0 where a plain head has none), its width, its prototypes."""
    counts = prototypes_per_level(head, nesting)
    if not nesting:
        return [(0, embed_dim, counts[0])]
    return [
        (embed_dim if quirks.matryoshka_full_input else width, width, count)
        for width, count in zip(nesting, counts, strict=True)
    ]


def _level_weights(head: Head, seen: int, width: int, prototypes: int) -> int:
    """The weights of one level's projection, MLP and prototypes."""
    widths = [width] + [head.hidden] * (head.layers - 1) + [head.bottleneck, prototypes]
    return seen * width + sum(before * after for before, after in itertools.pairwise(widths))
