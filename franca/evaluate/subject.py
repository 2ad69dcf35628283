"""What dense features are taken of: a run folder or a weights file in, a backbone and its encoder of patches out.

Letters: n images, p patches of an image, d embedding dimensions.
"""

import argparse
import hashlib
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

from franca.config import ConfigError, Model, Precision, load_config, make_config
from franca.evaluate.protocol import DTYPES
from franca.evaluate.teacher import load_newest_teacher
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

    `px` is the side of the crops that its positions were learned on.
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
    parser.add_argument("subject", type=Path, metavar="RUN_OR_WEIGHTS", help="run folder, or a weights file")
    parser.add_argument("--model", type=Path, help="YAML of a weights file's model, like experiments/model/*.yaml")
    parser.add_argument("--px", type=int, help="side of the images (default: that of the crops it was trained on)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to compute (default: CUDA where there is one)")


def load_subject(path: Path, *, model: Path | None = None) -> Subject:
    """The newest teacher of a run folder, or the backbone of a weights file that `model` describes.

    Raises `ConfigError` on a description that is missing or does not fit, `WeightsError` on weights that are not of
    the configuration.
    """
    if path.is_dir():
        return _load_run(path)
    if model is None:
        raise ConfigError(f"{path}: a weights file needs --model, a YAML like experiments/model/vit_base_14.yaml")
    weights = rename_upstream(load_weights(path))
    if "pos_embed" not in weights or weights["pos_embed"].ndim != 3:
        raise WeightsError(f"{path}: holds no backbone, which has positions (pos_embed)")
    description = _load_model(model)
    grid = math.isqrt(max(weights["pos_embed"].shape[1] - 1, 0))
    backbone = VisionTransformer(description, grid=grid)
    try:
        load_backbone(backbone, weights)
    except WeightsError as error:
        raise WeightsError(f"{path} is not a model of {model}: {error}") from error
    px = grid * description.patch_px
    return Subject(backbone.eval(), path, file_sha256(path), IMAGENET_MEAN, IMAGENET_STD, "fp32", px)


def make_patch_encoder(subject: Subject, *, device: torch.device, rasa: Path | None = None) -> EncodePatches:
    """Bytes of images in, their normalized patch tokens out, on `device`; less their positions by a head's file."""
    model = subject.model.to(device)
    dtype = DTYPES[subject.precision]
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (subject.mean, subject.std))
    matrix = load_rasa_head(rasa, dim=model.model.embed_dim).fold().float().to(device) if rasa else None

    @torch.no_grad()
    def encode(images: UInt8[Tensor, "n height width 3"]) -> Float[Tensor, "n p d"]:
        pixels = images.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            patches = model((pixels - mean) / std).patches
        return patches.float() if matrix is None else patches.float() @ matrix

    return encode


def choose_px(subject: Subject, px: int | None) -> int:
    """The side of the images to be seen: what was asked for, or the crops'. Raises `ConfigError` on a cut patch."""
    patch_px = subject.model.model.patch_px
    if px is not None and (px < patch_px or px % patch_px):
        raise ConfigError(f"--px: {px} is not a multiple of the patch, {patch_px} px")
    return px or subject.px


def make_device(name: str | None) -> torch.device:
    """The device of that name, or the best there is. Raises `ConfigError` where it is not here."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; --device cpu computes on the CPU")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def square_view(image: Image.Image, *, px: int) -> NDArray[np.uint8]:
    """A whole image [px, px, 3], its aspect given up (bilinear, antialiased)."""
    return np.asarray(image.resize((px, px), Image.Resampling.BILINEAR))


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load_run(folder: Path) -> Subject:
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; a run folder holds one")
    config = load_config(path)
    teacher = load_newest_teacher(folder, config=config)
    data, recipe = config.recipe.data, config.recipe
    return Subject(
        teacher.model,
        teacher.path,
        teacher.sha256,
        data.mean,
        data.std,
        recipe.precision.backbone,
        recipe.crops.global_px,
    )


def _load_model(path: Path) -> Model:
    try:
        return make_config(Model, yaml.safe_load(path.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from error
