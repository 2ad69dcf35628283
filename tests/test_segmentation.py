"""Segmentation scores equal those of naive loops, and images whose right answer is known get it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fabricated_scenes import make_ade20k, make_voc
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from franca.config import ConfigError
from franca.data.pixel_labels import IGNORED, load_segmentation
from franca.evaluate.segmentation import (
    Geometry,
    InContext,
    Memory,
    choose_patches,
    class_iou,
    count_confusion,
    enlarge,
    evaluate_in_context,
    make_memory,
    mean_iou,
    patch_shares,
    read_batches,
    recall,
)
from franca.models.weights import WeightsError

CPU = torch.device("cpu")
GEOMETRY = Geometry(px=48, patch_px=2, batch=5)
PROTOCOL = InContext(memory=4000, k=10)


def encode_color(images: UInt8[Tensor, "n 48 48 3"]) -> Float[Tensor, "n 576 3"]:
    """The mean color of each patch of 2 × 2 pixels, less gray: enough to tell the scenes' things apart."""
    pooled = functional.avg_pool2d(images.permute(0, 3, 1, 2).float(), 2)
    return pooled.flatten(2).transpose(1, 2) - 110


def encode_nothing(images: UInt8[Tensor, "n 48 48 3"]) -> Float[Tensor, "n 576 3"]:
    """Features that tell patches apart by nothing."""
    return torch.ones(len(images), 576, 3)


def naive_ious(predicted: Tensor, truth: Tensor, classes: int) -> list[float]:
    """Pixel by pixel, class by class; NaN where a class is nowhere."""
    ious = []
    for number in range(classes):
        intersection = union = 0
        for guess, right in zip(predicted.flatten().tolist(), truth.flatten().tolist(), strict=True):
            if right != IGNORED:
                intersection += guess == number == right
                union += number in (guess, right)
        ious.append(intersection / union if union else math.nan)
    return ious


@given(st.integers(0, 999), st.integers(1, 6), st.floats(0, 1))
def test_iou_equals_the_naive_one(seed: int, classes: int, ignored: float) -> None:
    """Any predictions and masks, some pixels without a class, some classes nowhere; in one batch or in several."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 5, 4)
    predicted = torch.randint(classes, shape, generator=generator)
    truth = torch.randint(classes, shape, generator=generator).to(torch.uint8)
    truth[torch.rand(shape, generator=generator) < ignored] = IGNORED
    parts = [count_confusion(guess, right, classes=classes) for guess, right in zip(predicted, truth, strict=True)]
    confusion = count_confusion(predicted, truth, classes=classes)
    assert torch.equal(sum(parts), confusion)
    expected = naive_ious(predicted, truth, classes)
    np.testing.assert_allclose(class_iou(confusion), expected)
    present = [value for value in expected if not math.isnan(value)]
    assert mean_iou(confusion) == pytest.approx(100 * np.mean(present) if present else math.nan, nan_ok=True)


def test_class_that_is_nowhere_does_not_count() -> None:
    """A class neither true nor predicted leaves the mean alone; one that is only predicted counts as 0."""
    truth = torch.tensor([0, 0, 1, 1], dtype=torch.uint8)
    assert mean_iou(count_confusion(torch.tensor([0, 0, 1, 1]), truth, classes=9)) == 100
    assert mean_iou(count_confusion(torch.tensor([0, 0, 1, 5]), truth, classes=9)) == pytest.approx(100 * 1.5 / 3)


@given(st.integers(0, 99), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_shares_equal_naive_counts(seed: int, patch_px: int, rows: int, columns: int) -> None:
    """For each patch, the share of each class among the pixels that have one; zeros where none has."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(4, (2, rows * patch_px, columns * patch_px), generator=generator).to(torch.uint8)
    masks[masks == 3] = IGNORED
    found = patch_shares(masks, patch_px=patch_px, classes=3)
    assert found.shape == (2, rows * columns, 3)
    for image, mask in enumerate(masks.tolist()):
        for row in range(rows):
            for column in range(columns):
                inside = [
                    mask[row * patch_px + y][column * patch_px + x] for y in range(patch_px) for x in range(patch_px)
                ]
                labeled = [number for number in inside if number != IGNORED]
                expected = [labeled.count(number) / max(len(labeled), 1) for number in range(3)]
                np.testing.assert_allclose(found[image, row * columns + column], expected, rtol=1e-6)


@given(st.integers(0, 99), st.integers(1, 30), st.floats(0.02, 1), st.data())
def test_recall_equals_brute_force(seed: int, remembered: int, temperature: float, data) -> None:
    """Each query's neighbors by cosine among all patches, their shares weighted in float64."""
    generator = torch.Generator().manual_seed(seed)
    k = data.draw(st.integers(1, remembered))
    features = functional.normalize(torch.randn(remembered, 5, generator=generator), dim=1)
    shares = torch.rand(remembered, 3, generator=generator)
    queries = 9 * torch.randn(7, 5, generator=generator)
    found = recall(queries, Memory(features, shares), k=k, temperature=temperature)
    for query, given_shares in zip(queries.double().numpy(), found, strict=True):
        cosines = features.double().numpy() @ query / np.linalg.norm(query)
        nearest = np.argsort(-cosines)[:k]
        weights = np.exp((cosines[nearest] - cosines.max()) / temperature)
        expected = weights @ shares.double().numpy()[nearest] / weights.sum()
        np.testing.assert_allclose(given_shares, expected, rtol=2e-4, atol=1e-6)


def test_recall_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries in pieces recall what they recall at once."""
    generator = torch.Generator().manual_seed(0)
    memory = Memory(functional.normalize(torch.randn(50, 4, generator=generator), dim=1), torch.eye(50))
    queries = torch.randn(33, 4, generator=generator)
    whole = recall(queries, memory, k=5, temperature=0.1)
    monkeypatch.setattr("franca.evaluate.segmentation.QUERY_CHUNK", 7)
    torch.testing.assert_close(recall(queries, memory, k=5, temperature=0.1), whole)


def test_patches_of_rare_classes_are_remembered_first() -> None:
    """Of many patches of one class and few of another the few are kept, and never one without a class."""
    shares = torch.zeros(200, 3)
    shares[:150, 0] = 1
    shares[150:160, 1] = 1
    generator = torch.Generator().manual_seed(0)
    kept = choose_patches(shares, quota=30, generator=generator)
    assert len(set(kept.tolist())) == 30
    assert (kept < 160).all()
    assert ((kept >= 150) & (kept < 160)).sum() >= 8
    assert len(choose_patches(shares, quota=190, generator=generator)) == 160
    assert len(choose_patches(torch.zeros(9, 3), quota=4, generator=generator)) == 0


def test_memory_is_bounded_and_repeatable(tmp_path: Path) -> None:
    """At most as many patches as there is room for, the same ones for the same seed, others for another."""
    train = load_segmentation("voc", root=str(make_voc(tmp_path, val=1)), split="train")
    memories = [
        make_memory(encode_color, train, protocol=InContext(memory=480, k=5, seed=seed), geometry=GEOMETRY, device=CPU)
        for seed in (0, 0, 1)
    ]
    assert [len(memory.features) for memory in memories] == [480] * 3
    assert torch.equal(memories[0].features, memories[1].features)
    assert not torch.equal(memories[0].features, memories[2].features)
    torch.testing.assert_close(memories[0].features.norm(dim=1), torch.ones(480))
    torch.testing.assert_close(memories[0].shares.sum(dim=1), torch.ones(480))


def test_enlarged_scores_are_bilinear() -> None:
    """A ramp over patches is a ramp over pixels, halfway between two patches' centers halfway between their scores."""
    geometry = Geometry(px=12, patch_px=3)
    ramp = torch.arange(4.0).repeat_interleave(4).view(1, 16, 1)  # grows with the row
    large = enlarge(ramp, geometry=geometry)
    assert large.shape == (1, 1, 12, 12)
    expected = ((torch.arange(12.0) + 0.5) / 3 - 0.5).clamp(0, 3)
    torch.testing.assert_close(large[0, 0], expected.view(12, 1).expand(12, 12))


@pytest.mark.parametrize(("name", "make"), [("voc", make_voc), ("ade20k", make_ade20k)])
def test_scenes_that_color_tells_apart_are_segmented(name: str, make, tmp_path: Path) -> None:
    """By colors nearly every pixel is right, whatever the batch; by features that say nothing all is ground."""
    make(tmp_path)
    train, test = (load_segmentation(name, root=str(tmp_path), split=split) for split in ("train", "val"))
    options = {"protocol": PROTOCOL, "device": CPU}
    found = evaluate_in_context(encode_color, train, test, geometry=GEOMETRY, **options)
    assert mean_iou(found) > 85
    assert class_iou(found)[4:].isnan().all()
    single = evaluate_in_context(encode_color, train, test, geometry=Geometry(px=48, patch_px=2, batch=1), **options)
    assert torch.equal(found, single)
    blind = evaluate_in_context(encode_nothing, train, test, geometry=GEOMETRY, **options)
    assert mean_iou(blind) < 30


def test_workers_read_the_same_batches(tmp_path: Path) -> None:
    """Images and masks come in their order, whoever reads them."""
    dataset = load_segmentation("voc", root=str(make_voc(tmp_path, train=1, val=5)), split="val")
    alone, helped = (
        list(read_batches(dataset, geometry=Geometry(px=8, patch_px=2, batch=2, workers=workers))) for workers in (0, 1)
    )
    assert [len(images) for images, _ in alone] == [2, 2, 1]
    for (images, masks), (others, other_masks) in zip(alone, helped, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(masks, other_masks)


def test_more_neighbors_than_memories_are_refused(tmp_path: Path) -> None:
    """A memory smaller than k is an error that names both."""
    make_voc(tmp_path, train=2, val=1)
    train, test = (load_segmentation("voc", root=str(tmp_path), split=split) for split in ("train", "val"))
    with pytest.raises(ConfigError, match="30 neighbors of 20 remembered patches"):
        evaluate_in_context(encode_color, train, test, protocol=InContext(memory=20), geometry=GEOMETRY, device=CPU)


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """A diverged model has no score."""
    train = load_segmentation("voc", root=str(make_voc(tmp_path, train=2, val=1)), split="train")
    with pytest.raises(WeightsError, match="not finite"):
        make_memory(lambda images: encode_color(images) / 0, train, protocol=PROTOCOL, geometry=GEOMETRY, device=CPU)
