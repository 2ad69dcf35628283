"""The teacher's backbone as a file: written by a run at every evaluation, loaded again for the model of its recipe."""

import hashlib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from franca.config import TrainConfig, recipe_fingerprint
from franca.models.vit import VisionTransformer
from franca.models.weights import WeightsError, load_backbone, load_weights, rename_upstream

FILE = "teacher_checkpoint.safetensors"
UNTRAINED = "untrained"  # the folder in `eval` of what was measured before the first iteration


@dataclass(frozen=True)
class Teacher:
    """A run's teacher after `iterations` iterations, None of a file that is no run's; `sha256` is that of its file."""

    model: VisionTransformer
    iterations: int | None
    path: Path
    sha256: str


def save_teacher(model: VisionTransformer, *, path: Path, config: TrainConfig) -> None:
    """Write a backbone, whole or not at all, with the fingerprint of the recipe that it was trained by.

    Equal weights make equal files: the fingerprint is the only entry because safetensors orders several at random.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    save_file(weights, temporary, metadata={"fingerprint": config.fingerprint})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def list_teachers(folder: Path) -> dict[int, Path]:
    """The teachers that a run has written, by the iterations done, in their order."""
    return dict(sorted((_iterations(path), path) for path in folder.glob(f"eval/training_*/{FILE}")))


def load_newest_teacher(folder: Path, *, config: TrainConfig) -> Teacher:
    """The newest teacher of a run folder, as `load_teacher`. Raises `WeightsError` where there is none."""
    found = list_teachers(folder)
    if not found:
        raise WeightsError(
            f"{folder}: no eval/training_*/{FILE}; the run writes one every "
            f"{config.recipe.evaluation.period_iterations} iterations"
        )
    return load_teacher(found[max(found)], folder=folder, config=config)


def load_teacher(path: Path, *, folder: Path, config: TrainConfig) -> Teacher:
    """One teacher of a run folder, on the CPU, in evaluation mode.

    Raises `WeightsError` where the file is not of this configuration: another recipe's teacher can have the same shapes
    and give other features.
    """
    weights = load_weights(path)
    _check_config(folder / "config.yaml", config)
    _check_trained_by(path, config)
    model = VisionTransformer(config.recipe.model, grid=config.recipe.crops.global_px // config.recipe.model.patch_px)
    try:
        load_backbone(model, weights)
    except WeightsError as error:
        raise WeightsError(f"{path} is not a teacher of {folder / 'config.yaml'}: {error}") from error
    return Teacher(model.eval(), _iterations(path), path, file_sha256(path))


def load_released(path: Path, *, config_path: Path, config: TrainConfig) -> Teacher:
    """A weights file that is no part of a run folder, under upstream's names or ours; its grid of positions is kept.

    Raises `WeightsError` where its tensors, or the recipe that it says it was trained by, are not the configuration's.
    """
    weights = rename_upstream(load_weights(path))
    _check_config(config_path, config)
    if path.suffix == ".safetensors" and _fingerprint(path) is not None:
        _check_trained_by(path, config)
    patches = weights["pos_embed"].shape[1] - 1 if "pos_embed" in weights and weights["pos_embed"].ndim == 3 else 0
    model = VisionTransformer(config.recipe.model, grid=math.isqrt(max(patches, 0)))
    try:
        load_backbone(model, weights)
    except WeightsError as error:
        raise WeightsError(f"{path} is not a model of {config_path}: {error}") from error
    return Teacher(model.eval(), None, path, file_sha256(path))


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def grid_px(model: VisionTransformer) -> int:
    """The side of the images that a model's positions were made for."""
    return math.isqrt(model.pos_embed.shape[1] - 1) * model.model.patch_px


def _iterations(path: Path) -> int:
    """Iterations done: the folder is named after the last one's index, as upstream's are."""
    match = re.fullmatch(r"training_(\d+)", path.parent.name)
    if not match:
        raise WeightsError(f"{path.parent}: a folder named training_<iteration> belongs here")
    return int(match[1]) + 1


def _check_config(path: Path, config: TrainConfig) -> None:
    """Raise `WeightsError` unless a configuration's fingerprint and its recipe belong together."""
    actual = recipe_fingerprint(config.recipe)
    if config.fingerprint != actual:
        raise WeightsError(
            f"{path}: its fingerprint is {config.fingerprint} and its recipe's {actual}: it was edited after the run; "
            f"evaluate with the configuration that the teacher was trained by"
        )


def _check_trained_by(path: Path, config: TrainConfig) -> None:
    """Raise `WeightsError` unless the file says that this recipe trained it."""
    trained = _fingerprint(path)
    if trained != config.fingerprint:
        raise WeightsError(f"{path}: was trained by recipe {trained}, not by this run's, {config.fingerprint}")


def _fingerprint(path: Path) -> str | None:
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("fingerprint")
