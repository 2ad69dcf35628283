"""What dense features are taken of: a run folder or a weights file in, a backbone and its encoder of patches out.

Letters: n images, p patches of an image, d embedding dimensions.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from franca.config import ConfigError, Model, Precision, TrainConfig, load_config, make_config
from franca.evaluate.protocol import computing
from franca.evaluate.teacher import Teacher, file_sha256, grid_px, load_newest_teacher, load_released
from franca.hub import DESCRIPTION, WEIGHTS, load_description
from franca.models.rasa import load_rasa_head
from franca.models.vit import VisionTransformer
from franca.models.weights import WeightsError, load_backbone, load_weights, rename_upstream

# torchvision's values, with which every released weights file was trained; a run's are in its recipe
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

EncodePatches = Callable[[UInt8[Tensor, "n height width 3"]], Float[Tensor, "n p d"]]


@dataclass(frozen=True)
class Subject:
    """A trained backbone on the CPU, how its images were normalized, and the file it came from.

    `px` is the side of the images that its positions were made for.
    """

    model: VisionTransformer
    path: Path
    sha256: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    precision: Precision
    px: int


def add_subject_arguments(parser: argparse.ArgumentParser) -> None:
    """Let a command line name a subject, where to compute, and a RASA head."""
    parser.add_argument(
        "subject", type=Path, metavar="RUN_OR_WEIGHTS", help="run folder, exported folder or a weights file"
    )
    parser.add_argument("--config", type=Path, help="of a weights file: the config.yaml of its recipe")
    parser.add_argument("--model", type=Path, help="or, without a recipe, a YAML like experiments/model/*.yaml")
    parser.add_argument("--size", type=int, help="side of the images in pixels (default: what the model was made for)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to compute (default: CUDA where there is one)")


def load_subject(path: Path, *, config: Path | None = None, model: Path | None = None) -> Subject:
    """The newest teacher of a run folder, an exported folder's model, or a weights file's by `config` or `model`.

    Images are normalized as the recipe says, and as every released model's where there is none. Raises `ConfigError` on
    a description that is missing or does not fit, `WeightsError` on weights that are not of the configuration.
    """
    if path.is_dir() and (path / DESCRIPTION).is_file() and not (path / "config.yaml").exists():
        return _load_exported(path)
    if path.is_dir():
        recipe_path = path / "config.yaml"
        if not recipe_path.is_file():
            raise ConfigError(f"{recipe_path}: no such file; a run folder holds one, an exported folder {DESCRIPTION}")
        recipe = load_config(recipe_path)
        return _make_subject(load_newest_teacher(path, config=recipe), recipe)
    if config is not None:
        if not config.is_file():
            raise ConfigError(f"{config}: no such file")
        recipe = load_config(config)
        return _make_subject(load_released(path, config_path=config, config=recipe), recipe)
    if model is None:
        raise ConfigError(
            f"{path}: a weights file needs --config, its recipe, or --model, like experiments/model/vit_base_14.yaml"
        )
    backbone = _load_described(path, model)
    return Subject(backbone, path, file_sha256(path), IMAGENET_MEAN, IMAGENET_STD, "fp32", grid_px(backbone))


def make_patch_encoder(subject: Subject, *, device: torch.device, rasa: Path | None = None) -> EncodePatches:
    """Bytes of images in, their normalized patch tokens out, on `device`; less their positions by a head's file."""
    model = subject.model.to(device)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (subject.mean, subject.std))
    matrix = load_rasa_head(rasa, dim=model.model.embed_dim).fold().float().to(device) if rasa else None

    @torch.no_grad()
    def encode(images: UInt8[Tensor, "n height width 3"]) -> Float[Tensor, "n p d"]:
        pixels = images.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
        with computing(subject.precision, device=device):
            patches = model((pixels - mean) / std).patches
        return patches.float() if matrix is None else patches.float() @ matrix

    return encode


def choose_px(subject: Subject, px: int | None) -> int:
    """The side of the images to be seen: what was asked for, or what the model was made for.

    Raises `ConfigError` on one that is not of whole patches.
    """
    patch_px = subject.model.model.patch_px
    if px is not None and (px < patch_px or px % patch_px):
        raise ConfigError(f"--size: {px} is not a multiple of the patch, {patch_px} px")
    return px or subject.px


def make_device(name: str | None) -> torch.device:
    """The device of that name, or the best there is. Raises `ConfigError` where it is not here."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; --device cpu computes on the CPU")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def square_view(image: Image.Image, *, px: int) -> NDArray[np.uint8]:
    """A whole image [px, px, 3], its aspect given up (bilinear, antialiased)."""
    return np.asarray(image.resize((px, px), Image.Resampling.BILINEAR))


def _make_subject(teacher: Teacher, config: TrainConfig) -> Subject:
    data, precision = config.recipe.data, config.recipe.precision.backbone
    px = grid_px(teacher.model)
    return Subject(teacher.model, teacher.path, teacher.sha256, data.mean, data.std, precision, px)


def _load_exported(folder: Path) -> Subject:
    """What `franca export` wrote: the model and the normalization that its description tells."""
    description, path = folder / DESCRIPTION, folder / WEIGHTS
    model, weights = load_description(description), load_weights(path)
    try:
        content = json.loads(description.read_text())
        mean, std, px = tuple(content["mean"]), tuple(content["std"]), int(content["px"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{description}: no description of an exported model: {error!r}") from error
    backbone = VisionTransformer(model, grid=px // model.patch_px)
    try:
        load_backbone(backbone, weights)
    except WeightsError as error:
        raise WeightsError(f"{path} is not the model of {description}: {error}") from error
    return Subject(backbone.eval(), path, file_sha256(path), mean, std, "fp32", px)


def _load_described(path: Path, description: Path) -> VisionTransformer:
    """The backbone of a file, of the model that a YAML describes and the grid that its positions have."""
    weights = rename_upstream(load_weights(path))
    if "pos_embed" not in weights or weights["pos_embed"].ndim != 3:
        raise WeightsError(f"{path}: holds no backbone, which has positions (pos_embed)")
    grid = math.isqrt(max(weights["pos_embed"].shape[1] - 1, 0))
    backbone = VisionTransformer(_load_model(description), grid=grid)
    try:
        load_backbone(backbone, weights)
    except WeightsError as error:
        raise WeightsError(f"{path} is not a model of {description}: {error}") from error
    return backbone.eval()


def _load_model(path: Path) -> Model:
    try:
        return make_config(Model, yaml.safe_load(path.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from error
