"""What a recipe takes of a GPU's memory and of the disk: recipe and execution in, bytes out. Pure: no torch.

Parameters, gradients, optimizer and average are exact; activations are what autograd keeps for the backward pass under
attention that keeps no scores (FlashAttention), logits those of the losses' peak. The allocator's own share, a tenth or
so, the loader's crops and the kernels' workspace come on top.
"""

import dataclasses
from dataclasses import dataclass

from franca.config import Execution, Head, Model, Precision, Recipe, prototypes_per_level
from franca.flops import count_parameters, ffn_hidden, kept_share, masked_patches, teacher_recipe

BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
FULL = BYTES["fp32"]

# Values of d dimensions that a block keeps for each token: the inputs of both norms, what they give, queries, keys and
# values, attention's output before and after the groups are joined, and both branches' output, which LayerScale needs.
KEPT = 11
KEPT_ON_SUBSETS = 13  # stochastic depth adds both branches' output, scaled, to the stream
GATHERED_BLOCKS = 2  # FSDP2 fetches one block while it computes another


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU. `gathered` are the whole parameters that a shard computes with, one part at a time."""

    parameters: int
    gradients: int
    optimizer: int
    teachers: int
    gathered: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def plan_memory(recipe: Recipe, execution: Execution, *, recompute: bool | None = None) -> Memory:
    """The memory of one process of a run. `recompute` stands in place of its `activation_checkpointing`."""
    recompute = execution.activation_checkpointing if recompute is None else recompute
    spread = execution.parallel == "fsdp" and execution.processes > 1
    shards = (execution.shard_processes or execution.processes) if spread else 1
    count = count_parameters(recipe)
    frozen = count_parameters(teacher_recipe(recipe)).trainable if recipe.frozen_teacher else 0
    share = -(-FULL * count.trainable // shards)
    added_up = execution.accumulation > 1  # gradients of earlier parts stay whole until the last one's are reduced
    width = BYTES[recipe.precision.backbone] if execution.device == "cuda" else FULL
    head_width = BYTES[recipe.precision.heads] if execution.device == "cuda" else FULL
    block = width * block_parameters(recipe.model)
    heads = max(count.dino_head, count.ibot_head) * head_width
    gathered = max(GATHERED_BLOCKS * block, heads) if spread else width * count.backbone if width < FULL else 0
    return Memory(
        parameters=share,
        gradients=FULL * count.trainable if added_up else share,
        optimizer=2 * share,
        teachers=share + -(-FULL * frozen // shards),
        gathered=gathered,
        activations=activation_bytes(recipe, images=execution.batch_per_process, width=width, recompute=recompute)
        + head_activation_bytes(recipe, images=execution.batch_per_process, width=head_width),
        logits=logit_bytes(recipe, images=execution.batch_per_process),
    )


def checkpoint_bytes(recipe: Recipe) -> int:
    """One checkpoint on disk: the student, its average, and AdamW's two moments of every parameter, in float32."""
    return 4 * FULL * count_parameters(recipe).trainable


def block_parameters(model: Model) -> int:
    """The parameters of one block: four linear layers with biases, two norms, two LayerScales."""
    dim, hidden = model.embed_dim, ffn_hidden(model)
    weights = 4 * dim * dim + (3 if model.ffn == "swiglu" else 2) * dim * hidden
    return weights + 4 * dim + (2 * hidden if model.ffn == "swiglu" else hidden) + dim + 6 * dim


def activation_bytes(recipe: Recipe, *, images: int, width: int, recompute: bool = False) -> int:
    """What the student's blocks keep for the backward pass of `images` images, in values of `width` bytes.

    With `recompute` every block keeps its input alone, and one at a time all of it.
    """
    model, crops = recipe.model, recipe.crops
    tokens, kept = 0, 0.0
    for number, px in ((2, crops.global_px), (crops.local_number, crops.local_px)):
        length = 1 + model.registers + (px // model.patch_px) ** 2
        tokens += number * images * length
        kept += number * images * length * kept_share(model.drop_path, sequences=number * images)
    streams = KEPT_ON_SUBSETS if model.drop_path else KEPT
    ffn = 4 if model.ffn == "swiglu" else 2  # before and after the GELU; or both halves, the gate, and their product
    statistics = 4 + model.heads  # mean and deviation of both norms, attention's normalization of each head
    block = kept * (width * (streams * model.embed_dim + ffn * ffn_hidden(model)) + FULL * statistics)
    stream = tokens * model.embed_dim * width
    return round(model.depth * stream + block if recompute else model.depth * block) + stream


def head_activation_bytes(recipe: Recipe, *, images: int, width: int) -> int:
    """What the student's heads keep before their logits: each linear layer's input and each GELU's, at every level."""
    rows = _rows(recipe, images=images)
    nesting, dim = recipe.heads.nesting, recipe.model.embed_dim
    values = 0.0
    for head, count in ((recipe.heads.dino, rows.student), (recipe.heads.ibot, rows.patches)):
        hidden = 2 * head.hidden * (head.layers - 1) + 3 * head.bottleneck
        inputs = sum(dim + level for level in nesting) if nesting else dim
        values += count * (inputs + hidden * len(nesting or (dim,)))
    return round(values * width)


def logit_bytes(recipe: Recipe, *, images: int) -> int:
    """Logits at the peak, when iBOT's loss is taken: all targets, and of both heads the student's log-probabilities.

    In float32. To them come iBOT's logits and one more copy of its widest level on the way to its log-probabilities.
    """
    rows = _rows(recipe, images=images)
    dino, ibot = _prototypes(recipe, recipe.heads.dino), _prototypes(recipe, recipe.heads.ibot)
    of_dino = (rows.teacher + rows.student) * sum(dino)
    of_ibot = rows.patches * (3 * sum(ibot) + max(ibot))
    return round(FULL * (of_dino + of_ibot))


@dataclass(frozen=True)
class _Rows:
    """Tokens that meet the prototypes: the teacher's class tokens, the student's, the patches of both."""

    teacher: int
    student: int
    patches: float


def _rows(recipe: Recipe, *, images: int) -> _Rows:
    patches = masked_patches(recipe) * images if recipe.losses.ibot_weight > 0 else 0.0
    return _Rows(2 * images, (2 + recipe.crops.local_number) * images, patches)


def _prototypes(recipe: Recipe, head: Head) -> tuple[int, ...]:
    return prototypes_per_level(head, recipe.heads.nesting)
