"""The k-NN evaluation of a recipe: an encoder in, its accuracies on the evaluation dataset out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from franca.config import ConfigError, Precision, TrainConfig
from franca.data.datasets import DataError, Dataset, load_dataset
from franca.evaluate.features import FeatureSet, extract_features
from franca.evaluate.knn import knn_accuracy
from franca.models.vit import VisionTransformer

Encode = Callable[[Float[Tensor, "b 3 px px"]], Float[Tensor, "b d"]]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class KnnEvaluation:
    """Top-1 in percent for each k, on how many readable images, and a line for each that could not be read."""

    accuracies: dict[int, float]
    train_images: int
    test_images: int
    unreadable: tuple[str, ...]


def evaluate_knn(encode: Encode, *, config: TrainConfig, device: torch.device) -> KnnEvaluation:
    """Run the recipe's k-NN evaluation of an encoder on one device.

    Images are those of the recipe's evaluation dataset: neighbors from its train split, questions from its test split.
    Raises `DataError` on missing data, `ConfigError` on more neighbors than images.
    """
    data, evaluation = config.recipe.data, config.recipe.evaluation
    root = config.execution.evaluation_root
    train, test = (load_dataset(data.evaluation_dataset, root=root, split=split) for split in ("train", "test"))
    if train.class_names != test.class_names:
        raise DataError(f"{root}: the train and test folders of {train.name} hold different classes")
    if max(evaluation.knn_k) > len(train):
        raise ConfigError(f"recipe.evaluation.knn_k: {max(evaluation.knn_k)}, but {train.name} has {len(train)} images")
    memory, questions = (_extract(encode, dataset, config=config, device=device) for dataset in (train, test))
    accuracies = knn_accuracy(
        memory.features,
        memory.labels,
        questions.features,
        questions.labels,
        k=evaluation.knn_k,
        temperature=evaluation.knn_temperature,
        classes=len(train.class_names),
    )
    return KnnEvaluation(
        accuracies, len(memory.labels), len(questions.labels), memory.unreadable + questions.unreadable
    )


def make_encoder(model: VisionTransformer, *, config: TrainConfig, device: torch.device) -> Encode:
    """The normalized class token, computed on `device` in the precision of the recipe's backbone."""
    dtype = DTYPES[config.recipe.precision.backbone]
    model = model.to(device).eval()

    def encode(images: Float[Tensor, "b 3 px px"]) -> Float[Tensor, "b d"]:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return model(images).cls

    return encode


def encode_pixels(images: Float[Tensor, "b 3 px px"]) -> Float[Tensor, "b d"]:
    """The baseline that a model must beat: the images themselves."""
    return images.flatten(1)


def _extract(encode: Encode, dataset: Dataset, *, config: TrainConfig, device: torch.device) -> FeatureSet:
    recipe = config.recipe
    return extract_features(
        encode,
        dataset,
        data=recipe.data,
        px=recipe.crops.global_px,
        workers=config.execution.workers,
        device=device,
    )
