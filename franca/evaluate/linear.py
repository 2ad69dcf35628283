"""The linear probe of DINOv2's protocol: a frozen backbone in, the best of 52 linear classifiers out.

All classifiers train at once on the same features: 13 learning rates, of the last one or four blocks, with the mean
patch token or without. SGD with momentum, cosine schedule, best by accuracy on the test split, which the published
numbers are too (facebookresearch/dinov2 eval/linear.py@b8931f7). A run that is killed goes on where it last measured.

Letters: n images, w values of an image, l learning rates, c classes.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from numpy.typing import NDArray
from torch import Tensor

from franca.config import Model, TrainConfig
from franca.data.datasets import Dataset
from franca.distributed import all_gather_texts, all_reduce_sum, rank
from franca.evaluate.features import Encode, Pace
from franca.evaluate.knn import replace_file
from franca.evaluate.probe_features import BLOCKS, Rows, augmented_batches, load_rows, make_probe_encoder
from franca.evaluate.protocol import load_evaluation_sets
from franca.models.vit import VisionTransformer

LOG = logging.getLogger(__name__)
LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)  # at a batch of 256
MOMENTUM = 0.9
INITIAL_STD = 0.01
TEST_CHUNK = 1024
RESULTS, CHECKPOINT = "results_eval_linear.json", "linear_checkpoint.pt"


@dataclass(frozen=True)
class Probe:
    """How the classifiers are trained; the defaults are DINOv2's in one process.

    `batch` counts the images of all processes; upstream's is 128 for each of eight. Augmented, every batch is read,
    cropped and encoded anew, as published; else center crops are encoded once. Features beyond `memory_bytes`, half of
    what is free where it is None, are kept on the disk.
    """

    iterations: int = 12_500
    batch: int = 128
    learning_rates: tuple[float, ...] = LEARNING_RATES
    evaluation_period: int = 1_250
    augment: bool = False
    seed: int = 0
    memory_bytes: int | None = None


@dataclass
class Classifiers:
    """Linear layers on one slice of the features, one per learning rate, and SGD's momentum of them."""

    blocks: int
    average_pool: bool
    columns: slice
    learning_rates: Float64[Tensor, "l"]
    weight: Float[Tensor, "l c w"]
    bias: Float[Tensor, "l c"]
    velocities: tuple[Tensor, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.velocities = torch.zeros_like(self.weight), torch.zeros_like(self.bias)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that changes in training."""
        return (self.weight, self.bias, *self.velocities)

    def logits(self, x: Float[Tensor, "n w"]) -> Float[Tensor, "n l c"]:
        """Of every classifier for every image."""
        rates, classes, _ = self.weight.shape
        return torch.addmm(self.bias.flatten(), x, self.weight.flatten(0, 1).T).view(-1, rates, classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Upstream's names, e.g. `classifier_4_blocks_avgpool_True_lr_0_02500`; more digits where five lose some."""
        stem = f"classifier_{self.blocks}_blocks_avgpool_{self.average_pool}_lr_"
        return tuple(stem + _decimal(rate).replace(".", "_") for rate in self.learning_rates.tolist())


@dataclass(frozen=True)
class LinearEvaluation:
    """The best classifier's top-1 in percent. `history` holds (iteration, name, top-1) of each measurement.

    features: on which images the classifiers were trained. learning_rate_scale: what the grid was multiplied by.
    """

    accuracy: float
    classifier: str
    history: tuple[tuple[int, str, float], ...]
    features: str
    learning_rate_scale: float
    train_images: int
    test_images: int
    unreadable: tuple[str, ...]


Batches = Callable[[int, int], Iterator[tuple[Float[Tensor, "n w"], Int[Tensor, "n"]]]]
"""This process's features and classes for the iterations from one number up to another."""


def evaluate_linear(
    model: VisionTransformer, *, config: TrainConfig, device: torch.device, probe: Probe, folder: Path, sha256: str
) -> LinearEvaluation:
    """Train and measure the classifiers; several processes share the images and get the same result.

    `folder` receives `results_eval_linear.json` and a checkpoint, from which a call for the same weights, of the hash
    `sha256`, with equal arguments goes on. Raises `DataError` on missing data.
    """
    train, test = load_evaluation_sets(config)
    encode = make_probe_encoder(model, config=config, device=device)
    options = {"config": config, "device": device, "folder": folder, "memory_bytes": probe.memory_bytes}
    questions = load_rows(encode, test, **options)
    rows = None if probe.augment else load_rows(encode, train, **options)
    groups = make_classifiers(model.model, classes=len(train.class_names), probe=probe, device=device)
    key = _key(probe, config=config, sha256=sha256, datasets=(train.fingerprint, test.fingerprint))
    progress = _load_progress(folder / CHECKPOINT, groups, key=key)
    if rows is None:
        batches = _augmented(encode, train, probe=probe, config=config, device=device, failures=progress.unreadable)
    else:
        batches = _cached(rows, probe=probe, device=device)
    while progress.done < probe.iterations:
        until = min(progress.done + probe.evaluation_period, probe.iterations)
        train_classifiers(groups, batches(progress.done, until), probe=probe, first=progress.done)
        name, accuracy = best_classifier(groups, questions)
        progress.history.append((until, name, accuracy))
        progress.done = until
        LOG.info("linear probe: %.2f %% after %d of %d iterations, %s", accuracy, until, probe.iterations, name)
        _save_progress(folder, groups, progress, key=key, iterations=probe.iterations)
    _, name, accuracy = progress.history[-1]
    return LinearEvaluation(
        accuracy=accuracy,
        classifier=name,
        history=tuple(progress.history),
        features="random crops, flipped every other time" if probe.augment else "center crops, encoded once",
        learning_rate_scale=probe.batch / 256,
        train_images=rows.total if rows is not None else len(train),
        test_images=questions.total,
        unreadable=(*(rows.unreadable if rows else dict.fromkeys(progress.unreadable)), *questions.unreadable),
    )


def make_classifiers(model: Model, *, classes: int, probe: Probe, device: torch.device) -> tuple[Classifiers, ...]:
    """The grid with its first values: weights of standard deviation 0.01, biases of zero."""
    dim, last = model.embed_dim, min(BLOCKS, model.depth)
    generator = torch.Generator().manual_seed(probe.seed)
    scaled = torch.tensor(probe.learning_rates, dtype=torch.float64) * probe.batch / 256
    groups = []
    for blocks in sorted({1, last}):
        for average_pool in (False, True):
            columns = slice((last - blocks) * dim, (last + average_pool) * dim)
            shape = (len(scaled), classes, columns.stop - columns.start)
            weight = torch.empty(shape).normal_(std=INITIAL_STD, generator=generator).to(device)
            bias = torch.zeros(shape[:2], device=device)
            groups.append(Classifiers(blocks, average_pool, columns, scaled, weight, bias))
    return tuple(groups)


def train_classifiers(
    groups: Sequence[Classifiers],
    batches: Iterable[tuple[Float[Tensor, "_ _"], Int[Tensor, "_"]]],
    *,
    probe: Probe,
    first: int,
) -> None:
    """Take a step for each batch, the first of which is iteration `first`."""
    pace = Pace()
    for iteration, (x, y) in enumerate(batches, start=first):
        factor = 0.5 * (1 + math.cos(math.pi * iteration / probe.iterations))
        for group in groups:
            step(group, x[:, group.columns], y, images=probe.batch, factor=factor)
        if pace.due():
            LOG.info("linear probe: %d of %d iterations", iteration + 1, probe.iterations)


def step(group: Classifiers, x: Float[Tensor, "n w"], y: Int[Tensor, "n"], *, images: int, factor: float) -> None:
    """One step of SGD with momentum on the mean cross-entropy of `images` images, of which these are this process's.

    Every classifier has its own loss, so the gradient of each is softmax - one-hot, without any graph.
    """
    rates, classes, _ = group.weight.shape
    errors = group.logits(x).softmax(dim=2)
    errors[torch.arange(len(y), device=y.device), :, y] -= 1
    errors = errors.flatten(1) / images
    gradients = (errors.T @ x).view_as(group.weight), errors.sum(dim=0).view(rates, classes)
    scale = group.learning_rates.to(x) * factor
    for parameter, velocity, gradient in zip((group.weight, group.bias), group.velocities, gradients, strict=True):
        velocity.mul_(MOMENTUM).add_(all_reduce_sum(gradient))
        parameter.sub_(velocity * scale.view(-1, *[1] * (parameter.ndim - 1)))


def best_classifier(groups: Sequence[Classifiers], rows: Rows) -> tuple[str, float]:
    """Name and top-1 in percent of the classifier that is right most often; the first of equals."""
    device = groups[0].weight.device
    names = [name for group in groups for name in group.names]
    right = torch.zeros(len(names), dtype=torch.long, device=device)
    for x, y in zip(rows.features.split(TEST_CHUNK), rows.labels.split(TEST_CHUNK), strict=True):
        x, y = x.to(device), y.to(device)
        answers = [group.logits(x[:, group.columns]).argmax(dim=2) for group in groups]
        right += (torch.cat(answers, dim=1) == y.unsqueeze(1)).sum(dim=0)
    right = all_reduce_sum(right)
    best = right.tolist().index(int(right.max()))
    return names[best], 100 * int(right[best]) / rows.total


def batch_indices(total: int, *, batch: int, seed: int, iteration: int) -> NDArray[np.int64]:
    """Which of `total` images an iteration trains on: one random order after another, without a gap between them."""
    places = np.arange(iteration * batch, (iteration + 1) * batch)
    orders = {epoch: _order(total, seed, epoch) for epoch in np.unique(places // total).tolist()}
    return np.array([orders[place // total][place % total] for place in places.tolist()])


@functools.lru_cache(maxsize=2)
def _order(total: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(total)


def _cached(rows: Rows, *, probe: Probe, device: torch.device) -> Batches:
    """Batches of encoded images, of which each process takes those that it holds."""

    def batches(start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        for iteration in range(start, stop):
            indices = batch_indices(rows.total, batch=probe.batch, seed=probe.seed, iteration=iteration) - rows.first
            own = torch.from_numpy(indices[(indices >= 0) & (indices < len(rows.features))])
            own = own.to(rows.features.device)
            yield rows.features[own].to(device), rows.labels[own.to(rows.labels.device)].to(device)

    return batches


def _augmented(
    encode: Encode,
    dataset: Dataset,
    *,
    probe: Probe,
    config: TrainConfig,
    device: torch.device,
    failures: list[str],
) -> Batches:
    """Batches that are read and encoded as they are asked for; what cannot be read goes to `failures`."""

    def batches(start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        numbers = [
            batch_indices(len(dataset), batch=probe.batch, seed=probe.seed, iteration=i) for i in range(start, stop)
        ]
        lines: list[str] = []
        for part in augmented_batches(dataset, numbers, first=start, config=config, seed=probe.seed):
            images = part.images if len(part.images) else part.images.new_zeros(1, *part.images.shape[1:])
            with torch.inference_mode():
                x = encode(images.to(device))[: len(part.images)]
            lines += part.unreadable
            yield x.clone(), part.labels.to(device)
        failures.extend(all_gather_texts(lines))

    return batches


@dataclass
class Progress:
    """How far the classifiers are, what was measured so far, and which images could not be read."""

    done: int = 0
    history: list[tuple[int, str, float]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def _key(probe: Probe, *, config: TrainConfig, sha256: str, datasets: tuple[str, str]) -> str:
    """What a checkpoint's classifiers depend on, as one hash."""
    settings = {name: value for name, value in dataclasses.asdict(probe).items() if name != "memory_bytes"}
    content = [settings, sha256, datasets, config.recipe.crops.global_px, config.recipe.precision.backbone]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _load_progress(path: Path, groups: Sequence[Classifiers], *, key: str) -> Progress:
    """Put a checkpoint's values into the classifiers; nothing is done yet where there is none of this `key`."""
    if not path.is_file():
        return Progress()
    content = torch.load(path, map_location="cpu", weights_only=True)
    if content["key"] != key:
        return Progress()
    for group, values in zip(groups, content["groups"], strict=True):
        for tensor, value in zip(group.tensors, values, strict=True):
            tensor.copy_(value)
    history = [(int(done), str(name), float(accuracy)) for done, name, accuracy in content["history"]]
    LOG.info("linear probe: going on after %d iterations", content["done"])
    return Progress(content["done"], history, list(content["unreadable"]))


def _save_progress(
    folder: Path, groups: Sequence[Classifiers], progress: Progress, *, key: str, iterations: int
) -> None:
    """Write the checkpoint and, as DINOv2 does, a line and an object for each measurement."""
    if rank():
        return
    folder.mkdir(parents=True, exist_ok=True)
    content = {**dataclasses.asdict(progress), "key": key, "groups": [list(group.tensors) for group in groups]}
    temporary = folder / f".{CHECKPOINT}.tmp"
    torch.save(content, temporary)
    temporary.replace(folder / CHECKPOINT)
    lines = []
    for done, name, accuracy in progress.history:
        best = {"best_classifier": {"name": name, "accuracy": accuracy / 100}}
        lines.append(f"iter: {done if done == iterations else done - 1}\n{json.dumps(best)}\n\n")
    replace_file(folder / RESULTS, "".join(lines))


def _decimal(rate: float) -> str:
    """Five decimals as upstream prints, more where those are another number."""
    text = f"{rate:.5f}"
    return text if math.isclose(float(text), rate, rel_tol=1e-9) else f"{rate:.12f}".rstrip("0")
