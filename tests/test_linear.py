"""The linear probe trains as torch's own layers and optimizer do, goes on after a kill, and is shared by processes."""

import dataclasses
import json
import logging
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression
from test_distributed import run_processes
from test_evaluate import CONFIG, CPU, make_imagenet, make_teacher
from torch import Tensor, nn

from franca.evaluate.linear import (
    CHECKPOINT,
    LEARNING_RATES,
    RESULTS,
    LinearEvaluation,
    Probe,
    batch_indices,
    best_classifier,
    evaluate_linear,
    make_classifiers,
    train_classifiers,
)
from franca.evaluate.probe_features import augmented_batches, crop_and_flip, load_rows, make_probe_encoder
from franca.evaluate.protocol import load_evaluation_sets

PROBE = Probe(iterations=60, batch=64, learning_rates=(0.01, 0.1), evaluation_period=20)
MODEL = CONFIG.recipe.model


def evaluate(folder: Path, *, probe: Probe = PROBE, sha256: str = "abc") -> LinearEvaluation:
    options = {"config": CONFIG, "device": CPU, "probe": probe, "folder": folder, "sha256": sha256}
    return evaluate_linear(make_teacher(CONFIG), **options)


def naive_probe(
    batches: list[tuple[Tensor, Tensor]], *, columns: slice, weight: Tensor, rate: float, of: int
) -> tuple[Tensor, Tensor]:
    """One classifier trained by torch's layer, loss, SGD and cosine schedule."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight.clone(), torch.zeros(weight.shape[0])
    optimizer = torch.optim.SGD(layer.parameters(), rate, momentum=0.9, weight_decay=0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, of, eta_min=0)
    for x, y in batches:
        loss = nn.functional.cross_entropy(layer(x[:, columns]), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return layer.weight.data, layer.bias.data


def encode_coarse(images: Tensor) -> Tensor:
    """The digits' own 64 pixels, nearly."""
    return images[:, 0, ::2, ::2].flatten(1)


def test_all_classifiers_train_as_each_would_alone() -> None:
    """Every weight of every classifier is that of torch's own training of it, over a whole schedule."""
    model = dataclasses.replace(MODEL, embed_dim=6, depth=5)
    probe = Probe(iterations=30, batch=16, learning_rates=(0.1, 2.0))
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(16, 30, generator=generator), torch.randint(3, (16,), generator=generator)) for _ in range(30)
    ]
    groups = make_classifiers(model, classes=3, probe=probe, device=CPU)
    assert [group.columns for group in groups] == [slice(18, 24), slice(18, 30), slice(0, 24), slice(0, 30)]
    initial = [group.weight.clone() for group in groups]
    train_classifiers(groups, batches[:12], probe=probe, first=0)
    train_classifiers(groups, batches[12:], probe=probe, first=12)
    for group, weights in zip(groups, initial, strict=True):
        assert weights.std().item() == pytest.approx(0.01, rel=0.2)
        for number, rate in enumerate(probe.learning_rates):
            weight, bias = naive_probe(
                batches, columns=group.columns, weight=weights[number], rate=rate * 16 / 256, of=30
            )
            torch.testing.assert_close(group.weight[number], weight, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(group.bias[number], bias, rtol=1e-4, atol=1e-6)


def test_grid_and_names_are_dinov2s() -> None:
    """13 rates, scaled by batch / 256, for 1 and 4 blocks with and without pooled patches: 52 names, none twice."""
    groups = make_classifiers(dataclasses.replace(MODEL, depth=12), classes=2, probe=Probe(), device=CPU)
    names = [name for group in groups for name in group.names]
    assert len(set(names)) == len(names) == 4 * len(LEARNING_RATES) == 52
    assert "classifier_1_blocks_avgpool_True_lr_0_00250" in names
    assert "classifier_4_blocks_avgpool_False_lr_0_05000" in names
    assert "classifier_4_blocks_avgpool_True_lr_0_000005" in names


def test_encoder_gives_class_tokens_and_the_mean_patch() -> None:
    """Class tokens of the last four blocks after the final norm, oldest first, then the last block's mean patch."""
    config = dataclasses.replace(
        CONFIG, recipe=dataclasses.replace(CONFIG.recipe, model=dataclasses.replace(MODEL, depth=6, registers=2))
    )
    model = make_teacher(config).eval()
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = make_probe_encoder(model, config=config, device=CPU)(images)
        features = model.intermediate_features(images, blocks=4)
    expected = [part.cls for part in features] + [features[-1].patches.mean(1)]
    assert torch.equal(found, torch.cat(expected, dim=1))


@given(total=st.integers(1, 50), batch=st.integers(1, 70), seed=st.integers(0, 5))
def test_every_image_comes_once_in_each_round(total: int, batch: int, seed: int) -> None:
    """The stream of batches is one order of all images after another, whatever the batch."""
    stream = np.concatenate([batch_indices(total, batch=batch, seed=seed, iteration=i) for i in range(3 * total)])
    for start in range(0, 2 * total + 1, total):
        assert sorted(stream[start : start + total]) == list(range(total))


def test_probe_reaches_logistic_regression() -> None:
    """On the same features, the digits' pixels, it is within a point of scikit-learn's best over a grid of C."""
    train, test = load_evaluation_sets(CONFIG)
    options = {"config": CONFIG, "device": CPU, "folder": Path(), "memory_bytes": 2**30}
    rows, questions = load_rows(encode_coarse, train, **options), load_rows(encode_coarse, test, **options)
    probe = Probe(iterations=4_000, batch=128)
    model = dataclasses.replace(MODEL, embed_dim=32, depth=1)  # class token and mean patch: the halves of 64 pixels
    groups = make_classifiers(model, classes=10, probe=probe, device=CPU)
    indices = (batch_indices(rows.total, batch=128, seed=0, iteration=i) for i in range(probe.iterations))
    train_classifiers(groups, ((rows.features[i], rows.labels[i]) for i in indices), probe=probe, first=0)
    _, found = best_classifier(groups, questions)
    scores = []
    for strength in (0.01, 0.1, 1.0):
        estimator = LogisticRegression(C=strength, max_iter=1_000).fit(rows.features.numpy(), rows.labels.numpy())
        scores.append(100 * estimator.score(questions.features.numpy(), questions.labels.numpy()))
    assert max(scores) > 95
    assert found > max(scores) - 1


def test_results_file_is_dinov2s(tmp_path: Path) -> None:
    """`iter: N` and an object in turn, the index of the last iteration but at the end its number, shares of one."""
    result = evaluate(tmp_path)
    text = (tmp_path / RESULTS).read_text()
    found = re.findall(r"iter: (\d+)\n(.+)\n\n", text)
    assert "".join(f"iter: {number}\n{line}\n\n" for number, line in found) == text
    assert [int(number) for number, _ in found] == [19, 39, 60]
    best = [json.loads(line)["best_classifier"] for _, line in found]
    assert best[-1] == {"name": result.classifier, "accuracy": result.accuracy / 100}
    assert [(done, name, pytest.approx(100 * entry["accuracy"])) for (done, name, _), entry in
            zip(result.history, best, strict=True)] == list(result.history)  # fmt: skip
    real = Path(__file__).parents[1] / "../shared/logs/eval/results_eval_linear.json"
    if real.exists():
        assert re.sub(r"[\d.]+", "0", real.read_text().split("\n\n")[0].split("_lr_")[0]) == re.sub(
            r"[\d.]+", "0", text.split("\n\n")[0].split("_lr_")[0].replace("avgpool_False", "avgpool_True")
        )


class KilledError(Exception):
    """Raised in the middle of an evaluation."""


class KillAfter(logging.Handler):
    """Ends the evaluation at a measurement, before it is saved."""

    def __init__(self, measurements: int) -> None:
        super().__init__(logging.INFO)
        self.left = measurements

    def emit(self, record: logging.LogRecord) -> None:
        self.left -= " % after " in record.getMessage()
        if self.left == 0:
            self.left = -1
            raise KilledError


@pytest.mark.parametrize("augment", [False, True])
def test_killed_evaluation_goes_on_to_the_same_result(augment: bool, tmp_path: Path) -> None:
    """What was not saved is done again, and every weight and measurement is that of an uninterrupted one."""
    probe = dataclasses.replace(PROBE, augment=augment)
    expected = evaluate(tmp_path / "whole", probe=probe)
    log = logging.getLogger("franca.evaluate.linear")
    handler, level = KillAfter(2), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with pytest.raises(KilledError):
            evaluate(tmp_path / "cut", probe=probe)
        assert torch.load(tmp_path / "cut" / CHECKPOINT)["done"] == 20
        assert evaluate(tmp_path / "cut", probe=probe) == expected
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    assert (tmp_path / "cut" / RESULTS).read_bytes() == (tmp_path / "whole" / RESULTS).read_bytes()
    whole, cut = (torch.load(tmp_path / name / CHECKPOINT)["groups"] for name in ("whole", "cut"))
    assert all(
        torch.equal(a, b) for ours, theirs in zip(whole, cut, strict=True) for a, b in zip(ours, theirs, strict=True)
    )


def test_checkpoint_of_another_evaluation_is_not_gone_on_with(tmp_path: Path) -> None:
    """Other weights, another grid: the evaluation starts from its beginning."""
    first = evaluate(tmp_path, probe=dataclasses.replace(PROBE, iterations=20))
    other = evaluate(tmp_path, probe=dataclasses.replace(PROBE, iterations=20), sha256="def")
    assert other == first
    assert torch.load(tmp_path / CHECKPOINT)["done"] == 20
    assert len(evaluate(tmp_path, probe=PROBE).history) == 3


def test_features_on_the_disk_are_those_in_memory(tmp_path: Path) -> None:
    """Without memory for the features the result is the same, and no file is left of them."""
    expected = evaluate(tmp_path / "memory")
    assert evaluate(tmp_path / "disk", probe=dataclasses.replace(PROBE, memory_bytes=0)) == expected
    assert (tmp_path / "disk" / RESULTS).read_bytes() == (tmp_path / "memory" / RESULTS).read_bytes()
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == [CHECKPOINT, RESULTS]


def shared_evaluation() -> dict[str, list[tuple[int, str, float]]]:
    """The measurements of both kinds of training, in this process or in it and its fellows."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            str(augment): list(evaluate(Path(folder), probe=dataclasses.replace(PROBE, augment=augment)).history)
            for augment in (False, True)
        }


def test_two_processes_measure_what_one_measures(tmp_path: Path) -> None:
    """Each trains on the images that it holds or reads; the classifiers are those of one process."""
    expected = shared_evaluation()
    assert run_processes(shared_evaluation, processes=2, folder=tmp_path) == [expected, expected]


def test_training_on_augmented_images_is_another(tmp_path: Path) -> None:
    """The result says on which images the classifiers were trained."""
    cached, augmented = (
        evaluate(tmp_path / str(augment), probe=dataclasses.replace(PROBE, augment=augment))
        for augment in (False, True)
    )
    assert (cached.features, augmented.features) == (
        "center crops, encoded once",
        "random crops, flipped every other time",
    )
    assert cached.learning_rate_scale == 0.25
    assert (cached.train_images, augmented.train_images, cached.test_images) == (1437, 1437, 360)
    assert cached.history != augmented.history


def test_augmentation_depends_on_the_place_alone() -> None:
    """A batch is the same whenever it is made, and no two places of it are cropped alike."""
    train, _ = load_evaluation_sets(CONFIG)
    indices = [np.full(8, 5), np.full(8, 5)]
    first, second = augmented_batches(train, indices, first=7, config=CONFIG, seed=1)
    (again,) = augmented_batches(train, indices[1:], first=8, config=CONFIG, seed=1)
    assert torch.equal(second.images, again.images)
    both = torch.cat([first.images, second.images]).flatten(1)
    assert len(both.unique(dim=0)) == 16
    (other,) = augmented_batches(train, indices[1:], first=8, config=CONFIG, seed=2)
    assert not torch.equal(other.images, again.images)


def read_in_workers() -> list[torch.Tensor]:
    """The images of two batches of eight that this process reads, in a worker."""
    config = dataclasses.replace(CONFIG, execution=dataclasses.replace(CONFIG.execution, workers=1))
    train, _ = load_evaluation_sets(config)
    batches = [np.arange(8), np.arange(8, 16)]
    return [batch.images for batch in augmented_batches(train, batches, first=0, config=config, seed=1)]


def test_workers_read_the_part_of_their_process(tmp_path: Path) -> None:
    """A worker is in no group of processes: each of two would read, and train on, whole batches."""
    expected = read_in_workers()
    for rank, found in enumerate(run_processes(read_in_workers, processes=2, folder=tmp_path)):
        torch.testing.assert_close(found, [batch[rank::2] for batch in expected], rtol=0, atol=0)


@given(seed=st.integers(0, 999))
def test_crops_are_parts_of_the_image_and_half_are_mirrored(seed: int) -> None:
    """On a slope in both directions a crop rises from its top and, but for mirrored ones, from its left."""
    slope = np.add.outer(np.arange(60), np.arange(80) / 2).astype(np.uint8)
    image = Image.fromarray(np.stack([slope] * 3, axis=2))
    crop = crop_and_flip(image, px=16, generator=np.random.default_rng(seed)).astype(int)[..., 0]
    assert crop.shape == (16, 16)
    assert (np.diff(crop.mean(axis=1)) >= 0).all()
    rises = np.diff(crop.mean(axis=0))
    assert (rises >= 0).all() or (rises <= 0).all()


def test_about_half_of_the_crops_are_mirrored() -> None:
    """Of 400, some 200 fall to the right."""
    image = Image.fromarray(np.stack([np.tile(np.arange(80, dtype=np.uint8), (60, 1))] * 3, axis=2))
    crops = [crop_and_flip(image, px=8, generator=np.random.default_rng(seed)).astype(int) for seed in range(400)]
    assert 160 < sum(crop[0, 0, 0] > crop[0, -1, 0] for crop in crops) < 240


@pytest.mark.parametrize("augment", [False, True])
def test_unreadable_images_are_left_out_and_named(augment: bool, tmp_path: Path) -> None:
    """A broken train image trains nothing, a broken test image asks nothing; each is named once."""
    config = make_imagenet(tmp_path / "images", broken=("train/dark/2", "val/light/0"))
    probe = dataclasses.replace(PROBE, iterations=4, evaluation_period=2, batch=12, augment=augment)
    result = evaluate_linear(
        make_teacher(config), config=config, device=CPU, probe=probe, folder=tmp_path / "out", sha256="abc"
    )
    assert result.test_images == 5
    assert [Path(line.split(":")[0]).relative_to(tmp_path / "images").as_posix() for line in result.unreadable] == [
        "train/dark/2.png",
        "val/light/0.png",
    ]
