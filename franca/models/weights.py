"""Weights files: those that upstream released, and our own, into our backbone and heads. Strict: every name must fit.

A name is `blocks.3.attn.qkv.weight` here and in our files. Upstream's files may hold the blocks in chunks
(`blocks.0.3.attn.qkv.weight`), and a backbone as a part of a teacher or of a wrapped module.
"""

import math
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from franca.distributed import fill_all
from franca.models.heads import ProjectionHead
from franca.models.layers import interpolate_positions
from franca.models.vit import VisionTransformer

WRAPPERS = ("teacher", "model")  # keys under which upstream's files hold a state dict
FOREIGN = ("rasa_head.",)  # trained after pretraining, on top of it: valeoai/Franca vision_transformer.py@24f8c60
HEAD_NAMES = (  # upstream's spelling, ours
    (r"^(mlp|mlps\.\d+)\.(weight|bias)$", r"\1.0.\2"),
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
)
NAMES_SHOWN = 8


class WeightsError(ValueError):
    """Weights that cannot be read, or that are not this model's; the message names the file or the keys."""


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of one that torch wrote, on the CPU. Executes nothing from the file.

    Raises `WeightsError` on a file that is absent, damaged or holds anything but tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path}: holds more than tensors, or is damaged; it was not executed") from error
    except Exception as error:  # what damaged bytes raise in torch's unpickler is any of a dozen types
        raise WeightsError(f"{path}: not a weights file, or damaged: {_first_sentence(error)}") from error
    return _state_dict(content, path)


def rename_upstream(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone among upstream's tensors, under our names. Ours pass unchanged.

    Of a whole checkpoint the teacher's backbone is taken; heads and the RASA head are not part of it.
    """
    names = {name: re.sub(r"^(module\.)+", "", name) for name in state_dict}
    for prefix in ("teacher.", "backbone."):
        if any(name.startswith(prefix) for name in names.values()):
            names = {key: name.removeprefix(prefix) for key, name in names.items() if name.startswith(prefix)}
    return {
        re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): state_dict[key]
        for key, name in names.items()
        if not name.startswith(FOREIGN)
    }


def load_backbone(model: VisionTransformer, state_dict: Mapping[str, Tensor], *, interpolate: bool = False) -> None:
    """Copy a backbone's weights, under upstream's names or ours, into `model`.

    Positions of another grid are resampled if `interpolate`. Raises `WeightsError` where they differ otherwise, and
    on every missing, unexpected or differently shaped tensor.
    """
    weights = rename_upstream(state_dict)
    own = model.state_dict()
    _check_names(own, weights)
    patch_px = model.model.patch_px
    grid, found = _grid(own["pos_embed"]), _grid(weights["pos_embed"])
    if grid != found and _square(weights["pos_embed"], dim=model.model.embed_dim):
        if not interpolate:
            raise WeightsError(
                f"pos_embed: the weights have a grid of {found} × {found} patches ({found * patch_px} px), the model "
                f"one of {grid} × {grid} ({grid * patch_px} px); make the model with grid={found}, or interpolate"
            )
        weights["pos_embed"] = interpolate_positions(
            weights["pos_embed"],
            rows=grid,
            columns=grid,
            offset=model.model.interpolate_offset,
            antialias=model.model.interpolate_antialias,
        )
    _check_shapes(own, weights)
    fill_all(model, weights)


def rename_upstream_head(state_dict: Mapping[str, Tensor], *, name: str) -> dict[str, Tensor]:
    """The head `name` (`dino_head` or `ibot_head`) among upstream's tensors, under our names. Ours pass unchanged.

    Of a whole checkpoint the teacher's head is taken. Upstream's MLP of one layer is that layer itself; torch writes
    the parts of a weight-normed layer as `weight_g` and `weight_v`, or, since 2.0, as parametrizations.
    """
    names = {key: re.sub(r"^(module\.)+", "", key) for key in state_dict}
    for prefix in ("teacher.", f"{name}."):
        if any(own.startswith(prefix) for own in names.values()):
            names = {key: own.removeprefix(prefix) for key, own in names.items() if own.startswith(prefix)}
    for pattern, ours in HEAD_NAMES:
        names = {key: re.sub(pattern, ours, own) for key, own in names.items()}
    return {own: state_dict[key] for key, own in names.items()}


def load_head(head: ProjectionHead, state_dict: Mapping[str, Tensor], *, name: str) -> None:
    """Copy the weights of the head `name` (`dino_head` or `ibot_head`), under upstream's names or ours, into `head`.

    Raises `WeightsError` on every missing, unexpected or differently shaped tensor.
    """
    weights = rename_upstream_head(state_dict, name=name)
    own = head.state_dict()
    _check_names(own, weights)
    _check_shapes(own, weights)
    fill_all(head, weights)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what torch read, out of the wrapper that upstream may have put around it."""
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__} where named tensors belong")
    strangers = [str(k) for k, v in content.items() if not isinstance(k, str) or not isinstance(v, Tensor)]
    if strangers:
        raise WeightsError(f"{path}: not named tensors: {_listed(strangers)}")
    return dict(content)


def _check_names(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    missing, unexpected = own.keys() - weights.keys(), weights.keys() - own.keys()
    complaints = [
        f"{len(names)} {word}: {_listed(names)}"
        for word, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if complaints:
        raise WeightsError("the weights are not those of this model; " + "; ".join(complaints))


def _check_shapes(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    wrong = [
        f"{name} is {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if own[name].shape != weights[name].shape
    ]
    if wrong:
        raise WeightsError(f"the weights are not those of this model; {len(wrong)} of another shape: {_listed(wrong)}")


def _grid(positions: Tensor) -> int:
    """Patches per side of a square grid behind a class token."""
    return math.isqrt(max(positions.shape[1] - 1, 0)) if positions.ndim == 3 else 0


def _square(positions: Tensor, *, dim: int) -> bool:
    return positions.shape == (1, 1 + _grid(positions) ** 2, dim)


def _listed(names: Iterable[str]) -> str:
    """Names in the order of their numbers, cut where they become many."""
    ordered = sorted(
        names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    )
    return ", ".join(ordered[:NAMES_SHOWN]) + (", …" if len(ordered) > NAMES_SHOWN else "")


def _first_sentence(error: Exception) -> str:
    """A type and what it says, for what is raised may say no more than a number; torch goes on with advice."""
    return ": ".join([type(error).__name__, *str(error).partition(". ")[0].splitlines()[:1]])
