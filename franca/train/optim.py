"""The optimizer of a run: a student's parameters in; AdamW with its schedules, clipping and guard out."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from franca.config import Optim, Precisions
from franca.distributed import whole

# Of a backbone's parameters, those that belong to no block count as layer 0 (dinov2 `get_vit_lr_decay_rate`).
EMBEDDING = re.compile(r"pos_embed|patch_embed|mask_token|cls_token|register_tokens")
BLOCK = re.compile(r"^blocks\.(\d+)\.")


def make_optimizer(student: nn.ModuleDict, *, optim: Optim) -> AdamW:
    """AdamW over the groups of every submodule. Its state exists from the start, so that a checkpoint can be filled in.

    Fused: one kernel per group, which also skips the update where `found_inf` is set (see `guarded_step`).
    """
    groups = [group for module in student.values() for group in parameter_groups(module, optim=optim)]
    optimizer = AdamW(groups, lr=0.0, betas=optim.betas, fused=True)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer


def parameter_groups(module: nn.Module, *, optim: Optim) -> list[dict[str, Any]]:
    """One submodule's parameters, those with equal treatment together (dinov2 `utils/param_groups.py`).

    Biases, norms and LayerScale's gamma do not decay; everything else does, position embedding and tokens included.
    Block l of a backbone of L learns at `layerwise_decay ** (L - l)`, its embeddings at `** (L + 1)`, and the patch
    embedding at `patch_embed_lr_multiplier` of that; a head learns at 1, its last layers by a schedule of their own.
    """
    depth = len(module.blocks) if hasattr(module, "blocks") else 0
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        lr = optim.layerwise_decay ** (depth + 1 - _layer(name, depth=depth))
        if "patch_embed" in name:
            lr *= optim.patch_embed_lr_multiplier
        decay = 0.0 if name.endswith(".bias") or "norm" in name or "gamma" in name else 1.0
        key = (lr, decay, "last_layer" in name)
        treatment = dict(zip(("lr_multiplier", "wd_multiplier", "is_last_layer"), key, strict=True))
        groups.setdefault(key, {"params": [], **treatment})["params"].append(parameter)
    return list(groups.values())


def apply_schedules(optimizer: AdamW, *, lr: float, weight_decay: float, last_layer_lr: float) -> None:
    """Set this iteration's learning rate and weight decay in every group."""
    for group in optimizer.param_groups:
        group["lr"] = (last_layer_lr if group["is_last_layer"] else lr) * group["lr_multiplier"]
        group["weight_decay"] = weight_decay * group["wd_multiplier"]


def clip_gradients(modules: Iterable[nn.Module], *, clip_norm: float) -> Tensor:
    """Clip each module's gradients to `clip_norm` on their own (0: not at all); the norm of all of them before that."""
    norms = []
    for module in modules:
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        if not gradients:  # an iBOT head that no patch is masked for
            continue
        norms.append(whole(torch.nn.utils.get_total_norm(gradients, foreach=True)))
        if clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(module.parameters(), clip_norm, norms[-1], foreach=True)
    return torch.linalg.vector_norm(torch.stack(norms))


def make_scaler(precision: Precisions, *, device: torch.device) -> torch.amp.GradScaler:
    """The loss scaler that half precision needs; it does nothing where the recipe or the device has no use for it."""
    return torch.amp.GradScaler(device.type, enabled=precision.grad_scaler and device.type == "cuda")


def guarded_step(optimizer: AdamW, *, scaler: torch.amp.GradScaler, healthy: Tensor) -> None:
    """Step where `healthy` (a bool on the device) holds; else leave weights and moments as they are, without a wait."""
    if scaler.is_enabled():
        scaler.step(optimizer)
        scaler.update()
        return
    optimizer.found_inf = healthy.logical_not().float()
    optimizer.step()
    del optimizer.found_inf


def _layer(name: str, *, depth: int) -> int:
    """0 for a backbone's embeddings, l + 1 for its block l, depth + 1 for all else and for every head."""
    block = BLOCK.match(name)
    if block and depth:
        return int(block[1]) + 1
    return 0 if depth and EMBEDDING.search(name) else depth + 1
