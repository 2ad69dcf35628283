"""Parameter groups against upstream's rules by name, clipping against a naive loop, and the guard of a bad step."""

import copy
import math

import pytest
import torch
from recipes import make_recipe
from torch import Tensor, nn

from franca.config import Precisions
from franca.train.optim import (
    apply_schedules,
    clip_gradients,
    guarded_step,
    make_optimizer,
    make_scaler,
    parameter_groups,
)
from franca.train.self_distillation import SelfDistillation

RECIPE = make_recipe(
    model={"registers": 1},
    heads={"nesting": [12, 48]},
    optim={"layerwise_decay": 0.5, "patch_embed_lr_multiplier": 0.2},
)
FULL_PRECISION = make_scaler(RECIPE.precision, device=torch.device("cpu"))


def make_student() -> nn.ModuleDict:
    model = SelfDistillation(RECIPE)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.student


def treatment(module: nn.Module) -> dict[str, tuple[float, float, bool]]:
    """Each parameter's learning rate multiplier, weight decay multiplier, and whether it is of the last layer."""
    found = {}
    for group in parameter_groups(module, optim=RECIPE.optim):
        for name, parameter in module.named_parameters():
            if any(parameter is member for member in group["params"]):
                assert name not in found
                found[name] = (group["lr_multiplier"], group["wd_multiplier"], group["is_last_layer"])
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cls_token", (0.125, 1.0, False)),
        ("pos_embed", (0.125, 1.0, False)),
        ("mask_token", (0.125, 1.0, False)),
        ("register_tokens", (0.125, 1.0, False)),
        ("patch_embed.proj.weight", (0.125 * 0.2, 1.0, False)),
        ("patch_embed.proj.bias", (0.125 * 0.2, 0.0, False)),
        ("blocks.0.attn.qkv.weight", (0.25, 1.0, False)),
        ("blocks.0.norm1.weight", (0.25, 0.0, False)),
        ("blocks.1.mlp.fc1.weight", (0.5, 1.0, False)),
        ("blocks.1.mlp.fc1.bias", (0.5, 0.0, False)),
        ("blocks.1.ls2.gamma", (0.5, 0.0, False)),
        ("norm.weight", (1.0, 0.0, False)),
    ],
)
def test_backbone_parameters_are_treated_as_upstream_does(name: str, expected: tuple[float, float, bool]) -> None:
    """Of two blocks, the last learns at one decay, the embeddings at three; biases, norms and gammas do not decay."""
    assert treatment(make_student()["backbone"])[name] == pytest.approx(expected)


def test_head_parameters_are_treated_as_upstream_does() -> None:
    """A head learns at the full rate; its prototypes, lengths included, decay and follow the last layer's schedule."""
    found = treatment(make_student()["dino_head"])
    assert found["last_layers.1.weight_v"] == (1.0, 1.0, True)
    assert found["last_layers.1.weight_g"] == (1.0, 1.0, True)
    assert found["mlps.0.0.weight"] == (1.0, 1.0, False)
    assert found["mlps.0.0.bias"] == (1.0, 0.0, False)


def test_every_parameter_is_in_one_group() -> None:
    """The optimizer holds each parameter of the student once, in few groups."""
    student = make_student()
    optimizer = make_optimizer(student, optim=RECIPE.optim)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in student.parameters())
    assert len(optimizer.param_groups) <= 16


def test_schedules_reach_every_group() -> None:
    """Learning rate and weight decay are the iteration's times the group's multipliers."""
    optimizer = make_optimizer(make_student(), optim=RECIPE.optim)
    apply_schedules(optimizer, lr=0.1, weight_decay=0.04, last_layer_lr=0.0)
    for group in optimizer.param_groups:
        assert group["lr"] == (0.0 if group["is_last_layer"] else 0.1 * group["lr_multiplier"])
        assert group["weight_decay"] == 0.04 * group["wd_multiplier"]


def set_gradients(modules: list[nn.Module], *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for module in modules:
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_each_module_is_clipped_on_its_own() -> None:
    """A module's gradients are scaled to the limit if they exceed it, whatever the others' are; the norm is of all."""
    modules = [nn.Linear(5, 7), nn.Linear(2, 2)]
    set_gradients(modules, seed=0)
    modules[1].weight.grad *= 1e-3
    modules[1].bias.grad *= 1e-3
    before = [[parameter.grad.double().clone() for parameter in module.parameters()] for module in modules]
    norms = [math.sqrt(sum(float(value) ** 2 for grad in grads for value in grad.flatten())) for grads in before]
    total = clip_gradients(modules, clip_norm=3.0)
    assert total.item() == pytest.approx(math.hypot(*norms), rel=1e-5)
    assert norms[0] > 3.0 > norms[1]
    for module, grads, norm in zip(modules, before, norms, strict=True):
        for parameter, grad in zip(module.parameters(), grads, strict=True):
            torch.testing.assert_close(parameter.grad.double(), grad * min(3.0 / norm, 1.0), rtol=1e-5, atol=1e-8)


def test_no_clipping_at_zero() -> None:
    """A limit of zero means none."""
    modules = [nn.Linear(5, 7)]
    set_gradients(modules, seed=0)
    before = modules[0].weight.grad.clone()
    clip_gradients(modules, clip_norm=0.0)
    assert torch.equal(modules[0].weight.grad, before)


def parts_of(student: nn.ModuleDict, optimizer: torch.optim.AdamW) -> list[Tensor]:
    parameters = list(student.parameters())
    return [*parameters, *(value for parameter in parameters for value in optimizer.state[parameter].values())]


def test_steps_are_those_of_adamw() -> None:
    """Three guarded steps equal three of torch's plain AdamW with the same groups."""
    student = make_student()
    other = copy.deepcopy(student)
    optimizer = make_optimizer(student, optim=RECIPE.optim)
    groups = [group for module in other.values() for group in parameter_groups(module, optim=RECIPE.optim)]
    plain = torch.optim.AdamW(groups, betas=RECIPE.optim.betas, foreach=False, fused=False)
    for step in range(3):
        for network, chosen in ((student, optimizer), (other, plain)):
            set_gradients(list(network.values()), seed=step)
            apply_schedules(chosen, lr=1e-3 * (step + 1), weight_decay=0.04, last_layer_lr=1e-3)
        guarded_step(optimizer, scaler=FULL_PRECISION, healthy=torch.tensor(True))
        plain.step()
    for mine, reference in zip(student.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6)


def test_bad_step_leaves_weights_and_moments() -> None:
    """Where a step is not healthy nothing moves, not even the step count, and the next step goes on from there."""
    student = make_student()
    optimizer = make_optimizer(student, optim=RECIPE.optim)
    apply_schedules(optimizer, lr=1e-3, weight_decay=0.04, last_layer_lr=1e-3)
    set_gradients(list(student.values()), seed=0)
    guarded_step(optimizer, scaler=FULL_PRECISION, healthy=torch.tensor(True))
    before = [tensor.detach().clone() for tensor in parts_of(student, optimizer)]
    student["backbone"].cls_token.grad.fill_(math.nan)
    guarded_step(optimizer, scaler=FULL_PRECISION, healthy=torch.tensor(False))
    for tensor, kept in zip(parts_of(student, optimizer), before, strict=True):
        assert torch.equal(tensor, kept)
    set_gradients(list(student.values()), seed=1)
    guarded_step(optimizer, scaler=FULL_PRECISION, healthy=torch.tensor(True))
    assert all(tensor.isfinite().all() for tensor in parts_of(student, optimizer))
    assert optimizer.state[student["backbone"].cls_token]["step"] == 2


def test_scaler_works_on_cuda_alone() -> None:
    """A recipe in half precision scales its loss on CUDA; on the CPU, which computes in fp32, nothing is scaled."""
    half = Precisions(backbone="fp16", heads="fp16", reduce="fp16", grad_scaler=True)
    assert not make_scaler(half, device=torch.device("cpu")).is_enabled()
    loss = torch.tensor(2.0, requires_grad=True)
    assert make_scaler(half, device=torch.device("cpu")).scale(loss) is loss
