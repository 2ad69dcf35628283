"""Memory by formula: parameters against modules, activations against what autograd keeps, layouts by arithmetic."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import make_recipe, make_train_config
from torch import Tensor

from franca.config import FrozenTeacher, Recipe
from franca.flops import count_parameters
from franca.memory import activation_bytes, block_parameters, checkpoint_bytes, logit_bytes, plan_memory
from franca.models.vit import VisionTransformer
from franca.train.self_distillation import SelfDistillation
from reproduce.spec import load_spec

ROOT = Path(__file__).parents[1]
IMAGES = 6


def kept_bytes(recipe: Recipe) -> int:
    """The bytes of every tensor that autograd keeps in a forward pass of all crops, shared storage once."""
    model, crops = recipe.model, recipe.crops
    network = VisionTransformer(model, grid=crops.global_px // model.patch_px)
    network.init_weights(torch.Generator().manual_seed(0))
    network.train()
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)  # held, so that no address is used again
        return tensor

    pixels = [(2 * IMAGES, crops.global_px), (crops.local_number * IMAGES, crops.local_px)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = network.forward_packed(
            [torch.zeros(number, 3, px, px) for number, px in pixels], None, generator=torch.Generator().manual_seed(0)
        )
    assert out[0].cls.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"ffn": "swiglu"},
        {"drop_path": 0.4},
        {"drop_path": 0.2, "ffn": "swiglu", "registers": 3},
    ],
)
def test_blocks_keep_what_autograd_keeps(model: dict[str, Any]) -> None:
    """Two blocks more keep as many bytes more as the formula says, within 1 %."""
    few, many = (make_recipe(model={"embed_dim": 64, "depth": depth, **model}) for depth in (2, 4))
    counted = kept_bytes(many) - kept_bytes(few)
    formula = [activation_bytes(recipe, images=IMAGES, width=4) for recipe in (few, many)]
    assert formula[1] - formula[0] == pytest.approx(counted, rel=0.01)


def test_recomputation_keeps_inputs_alone() -> None:
    """A block more costs its input and nothing else."""
    few, many = (make_recipe(model={"embed_dim": 64, "depth": depth}) for depth in (2, 3))
    sizes = [activation_bytes(recipe, images=IMAGES, width=2, recompute=True) for recipe in (few, many)]
    tokens = IMAGES * (2 * (1 + 16) + 4 * (1 + 4))
    assert sizes[1] - sizes[0] == 2 * 64 * tokens


def test_block_has_the_parameters_of_the_module() -> None:
    """With either feed-forward."""
    for ffn in ("mlp", "swiglu"):
        model = make_recipe(model={"ffn": ffn}).model
        with torch.device("meta"):
            block = VisionTransformer(model, grid=4).blocks[0]
        assert block_parameters(model) == sum(parameter.numel() for parameter in block.parameters())


def test_checkpoint_holds_student_average_and_moments() -> None:
    """Four float32 values for each trained parameter, as the module and its optimizer have them."""
    recipe = make_recipe()
    model = SelfDistillation(recipe)
    students, teachers = (sum(p.numel() for p in part.parameters()) for part in (model.student, model.teacher))
    assert checkpoint_bytes(recipe) == 4 * (students + teachers + 2 * students)


def test_shards_share_what_is_kept_and_not_what_is_computed() -> None:
    """Under FSDP four processes hold a quarter each, within two nodes of two a half; under DDP each holds all."""
    recipe = make_recipe()
    whole = 4 * count_parameters(recipe).trainable
    execution = make_train_config(recipe).execution

    def parameters(**changes: Any) -> tuple[int, int, int]:
        memory = plan_memory(recipe, dataclasses.replace(execution, **changes))
        return memory.parameters, memory.optimizer, memory.activations

    alone = parameters()
    assert alone[:2] == (whole, 2 * whole)
    assert parameters(processes=4) == (whole // 4, whole // 2, alone[2])
    assert parameters(processes=4, shard_processes=2) == (whole // 2, whole, alone[2])
    assert parameters(processes=4, parallel="ddp") == alone


def test_frozen_teacher_is_held_beside_the_average() -> None:
    """Distillation holds a third network, at its own size."""
    small = make_recipe()
    large = dataclasses.replace(small.model, embed_dim=96)
    distilled = dataclasses.replace(small, frozen_teacher=FrozenTeacher("another", large))
    execution = make_train_config(small).execution
    frozen = count_parameters(make_recipe(model={"embed_dim": 96})).trainable
    more = plan_memory(distilled, execution).teachers - plan_memory(small, execution).teachers
    assert more == 4 * frozen


def test_logits_follow_prototypes_and_rows() -> None:
    """Twice the images or prototypes, twice the logits; Franca-B's take more than twenty gigabytes on a GPU."""
    recipe = make_recipe(masking={"kind": "cyclic"})
    one = logit_bytes(recipe, images=8)
    double = {"prototypes": 128, "hidden": 32, "bottleneck": 16, "layers": 3}
    assert logit_bytes(recipe, images=16) == pytest.approx(2 * one, rel=1e-4)
    wide = make_recipe(masking={"kind": "cyclic"}, heads={"dino": double, "ibot": double})
    assert logit_bytes(wide, images=8) == pytest.approx(2 * one, rel=1e-4)
    assert 20e9 < logit_bytes(load_spec("franca-B-in21k", root=ROOT).recipe, images=64) < 25e9
