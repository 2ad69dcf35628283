"""The linear head learns what is there to be learnt from frozen features, by the schedule that is written down."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fabricated_scenes import make_voc
from test_segmentation import CPU, GEOMETRY, encode_color, encode_nothing

from franca.data.pixel_labels import IGNORED, load_segmentation
from franca.evaluate.segmentation import mean_iou
from franca.evaluate.segmentation_probe import (
    LinearProbe,
    SegmentationProbe,
    evaluate_probe,
    learning_rate,
    pixel_loss,
    read_crops,
    train_probe,
)

SHORT = LinearProbe(iterations=60, batch=6, lr=0.05, warmup_iterations=5)


def test_scenes_that_color_tells_apart_are_segmented(tmp_path: Path) -> None:
    """A linear map of colors segments the scenes; one of features that say nothing calls everything ground."""
    make_voc(tmp_path)
    train, test = (load_segmentation("voc", root=str(tmp_path), split=split) for split in ("train", "val"))
    options = {"protocol": SHORT, "geometry": GEOMETRY, "device": CPU}
    assert mean_iou(evaluate_probe(encode_color, train, test, **options)) > 80
    assert mean_iou(evaluate_probe(encode_nothing, train, test, **options)) < 30


def test_training_repeats_itself(tmp_path: Path) -> None:
    """The same seed gives the same head to the bit, another seed another one."""
    train = load_segmentation("voc", root=str(make_voc(tmp_path, train=8, val=1)), split="train")
    heads = [
        train_probe(
            encode_color, train, protocol=LinearProbe(iterations=5, batch=4, seed=seed), geometry=GEOMETRY, device=CPU
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(heads[0].classify.weight, heads[1].classify.weight)
    assert not torch.equal(heads[0].classify.weight, heads[2].classify.weight)
    assert not heads[0].training


def test_loss_is_that_of_labeled_pixels() -> None:
    """The mean of -log softmax over the pixels that have a class, and zero where none has."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    masks = torch.randint(3, (2, 4, 4), generator=generator).to(torch.uint8)
    masks[0, :2] = IGNORED
    losses = []
    for image in range(2):
        for row in range(4):
            for column in range(4):
                if (right := int(masks[image, row, column])) != IGNORED:
                    logits = scores[image, :, row, column].numpy()
                    losses.append(np.log(np.exp(logits).sum()) - logits[right])
    assert float(pixel_loss(scores, masks)) == pytest.approx(np.mean(losses))
    assert float(pixel_loss(scores, torch.full_like(masks, IGNORED))) == 0


def test_learning_rate_warms_up_and_decays() -> None:
    """A linear way up over the warm-up, a linear way down over the whole, zero after the last iteration."""
    protocol = LinearProbe(iterations=100, lr=2.0, warmup_iterations=10)
    rates = [learning_rate(iteration, protocol=protocol) for iteration in range(100)]
    assert rates[0] == pytest.approx(2.0 / 10)
    assert rates[9] == pytest.approx(2.0 * 0.91)
    assert rates[50] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(0.02)


def test_crops_cut_and_mirror_image_and_mask_alike(tmp_path: Path) -> None:
    """What is red in a crop is what its mask calls red."""
    train = load_segmentation("voc", root=str(make_voc(tmp_path, train=7, val=1)), split="train")
    batches = list(read_crops(train, protocol=LinearProbe(iterations=7, batch=3), geometry=GEOMETRY))
    assert [tuple(images.shape) for images, _ in batches] == [(3, 48, 48, 3)] * 7
    for images, masks in batches:
        red = (images[..., 0].int() - images[..., 2].int() > 60) & (images[..., 1] < 120)
        found = masks[red & (masks != IGNORED)]
        assert not len(found) or (found == 1).float().mean() > 0.9


def test_scores_of_a_patch_depend_on_it_alone() -> None:
    """In evaluation mode the head maps each patch for itself, wherever it stands."""
    probe = SegmentationProbe(5, classes=4)
    probe.init_weights(torch.Generator().manual_seed(0))
    patches = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1))
    probe.train()(patches)
    probe.eval()
    torch.testing.assert_close(probe(patches[:, 3:4]), probe(patches)[:, 3:4])
