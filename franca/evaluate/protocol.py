"""The k-NN evaluation of a recipe: an encoder in, its accuracies on the evaluation dataset out."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from franca.config import ConfigError, Precision, TrainConfig
from franca.data.datasets import DataError, Dataset, load_dataset
from franca.distributed import all_gather_rows, all_reduce_sum
from franca.evaluate.features import Encode, FeatureSet, extract_features
from franca.evaluate.knn import few_shot_accuracies, knn_accuracy
from franca.models.vit import VisionTransformer

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class KnnEvaluation:
    """Top-1 in percent for each k, on how many readable images, and a line for each that could not be read.

    few_shot: (train images per class, k) → the same of so few, the mean over several draws.
    """

    accuracies: dict[int, float]
    train_images: int
    test_images: int
    unreadable: tuple[str, ...]
    few_shot: dict[tuple[int, int], float]


@dataclass(frozen=True)
class FewShot:
    """k-NN with few train images: how many of each class, each number drawn `tries` times."""

    per_class: tuple[int, ...] = ()
    tries: int = 1


def evaluate_knn(
    encode: Encode, *, config: TrainConfig, device: torch.device, few_shot: FewShot | None = None
) -> KnnEvaluation:
    """Run the recipe's k-NN evaluation of an encoder; several processes share the work and get the same result.

    Images are those of the recipe's evaluation dataset: neighbors from its train split, questions from its test split.
    Raises `DataError` on missing data, `ConfigError` on more neighbors than images.
    """
    evaluation = config.recipe.evaluation
    train, test = load_evaluation_sets(config)
    if max(evaluation.knn_k) > len(train):
        raise ConfigError(f"recipe.evaluation.knn_k: {max(evaluation.knn_k)}, but {train.name} has {len(train)} images")
    memory, questions = (extract(encode, dataset, config=config, device=device) for dataset in (train, test))
    questions_x, questions_y = all_gather_rows(questions.features), all_gather_rows(questions.labels)
    sets = (memory.features, memory.labels, questions_x, questions_y)
    options = {"k": evaluation.knn_k, "temperature": evaluation.knn_temperature, "classes": len(train.class_names)}
    few_shot = few_shot or FewShot()
    return KnnEvaluation(
        accuracies=knn_accuracy(*sets, **options),
        train_images=int(all_reduce_sum(torch.tensor(len(memory.labels)))),
        test_images=len(questions_y),
        unreadable=memory.unreadable + questions.unreadable,
        few_shot=few_shot_accuracies(*sets, **options, per_class=few_shot.per_class, tries=few_shot.tries),
    )


def describe_knn(accuracies: Mapping[int, float] | Mapping[str, float]) -> str:
    """The accuracies in one line: `81.94 % (k = 10), 80.28 % (k = 20)`."""
    return ", ".join(f"{accuracy:.2f} % (k = {k})" for k, accuracy in accuracies.items())


def load_evaluation_sets(config: TrainConfig) -> tuple[Dataset, Dataset]:
    """The train and test split of the recipe's evaluation dataset. Raises `DataError` where they do not go together.

    A run asks for them at each of its evaluations, and listing a million files takes minutes: they are opened once.
    """
    return _open_sets(config.recipe.data.evaluation_dataset, config.execution.evaluation_root)


@functools.lru_cache(maxsize=1)
def _open_sets(name: str, root: str) -> tuple[Dataset, Dataset]:
    train, test = (load_dataset(name, root=root, split=split) for split in ("train", "test"))
    if train.class_names != test.class_names:
        raise DataError(f"{root}: the train and test folders of {train.name} hold different classes")
    return train, test


def make_encoder(model: VisionTransformer, *, config: TrainConfig, device: torch.device) -> Encode:
    """The normalized class token, computed on `device` in the precision of the recipe's backbone."""
    precision = config.recipe.precision.backbone
    model = model.to(device).eval()

    def encode(images: Float[Tensor, "b 3 px px"]) -> Float[Tensor, "b d"]:
        with computing(precision, device=device):
            return model(images).cls

    return encode


def computing(precision: Precision, *, device: torch.device) -> torch.autocast:
    """Within it, models compute on `device` as training does there: in the recipe's precision, on a CPU in float32."""
    dtype = DTYPES[precision] if device.type == "cuda" else torch.float32
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def encode_pixels(images: Float[Tensor, "b 3 px px"]) -> Float[Tensor, "b d"]:
    """The baseline that a model must beat: the images themselves."""
    return images.flatten(1)


def extract(encode: Encode, dataset: Dataset, *, config: TrainConfig, device: torch.device) -> FeatureSet:
    """Features of a dataset's images at the size of the recipe's global crops."""
    return extract_features(
        encode,
        dataset,
        data=config.recipe.data,
        px=config.recipe.crops.global_px,
        workers=config.execution.workers,
        device=device,
    )
