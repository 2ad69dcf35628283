"""The teacher's backbone as a file: written by a run at every evaluation, loaded again for the model of its recipe."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from franca.config import TrainConfig, recipe_fingerprint
from franca.models.vit import VisionTransformer
from franca.models.weights import WeightsError, load_backbone, load_weights

FILE = "teacher_checkpoint.safetensors"


@dataclass(frozen=True)
class Teacher:
    """A run's teacher after `iterations` iterations; `sha256` is that of its file."""

    model: VisionTransformer
    iterations: int
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


def load_newest_teacher(folder: Path, *, config: TrainConfig) -> Teacher:
    """The newest teacher of a run folder, on the CPU, in evaluation mode.

    Raises `WeightsError` where there is none and where the file is not of this configuration: another recipe's
    teacher can have the same shapes and give other features.
    """
    found = {_iterations(path): path for path in folder.glob(f"eval/training_*/{FILE}")}
    if not found:
        raise WeightsError(
            f"{folder}: no eval/training_*/{FILE}; the run writes one every "
            f"{config.recipe.evaluation.period_iterations} iterations"
        )
    iterations = max(found)
    path = found[iterations]
    weights = load_weights(path)
    _check_recipe(path, folder, config)
    model = VisionTransformer(config.recipe.model, grid=config.recipe.crops.global_px // config.recipe.model.patch_px)
    try:
        load_backbone(model, weights)
    except WeightsError as error:
        raise WeightsError(f"{path} is not a teacher of {folder / 'config.yaml'}: {error}") from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Teacher(model.eval(), iterations, path, digest)


def _iterations(path: Path) -> int:
    """Iterations done: the folder is named after the last one's index, as upstream's are."""
    match = re.fullmatch(r"training_(\d+)", path.parent.name)
    if not match:
        raise WeightsError(f"{path.parent}: a folder named training_<iteration> belongs here")
    return int(match[1]) + 1


def _check_recipe(path: Path, folder: Path, config: TrainConfig) -> None:
    """Raise `WeightsError` unless the file, the configuration's fingerprint and its recipe belong together."""
    actual = recipe_fingerprint(config.recipe)
    if config.fingerprint != actual:
        raise WeightsError(
            f"{folder / 'config.yaml'}: its fingerprint is {config.fingerprint} and its recipe's {actual}: it was "
            f"edited after the run; evaluate with the configuration that the teacher was trained by"
        )
    with safe_open(path, framework="pt") as file:
        trained = (file.metadata() or {}).get("fingerprint")
    if trained != config.fingerprint:
        raise WeightsError(f"{path}: was trained by recipe {trained}, not by this run's, {config.fingerprint}")
