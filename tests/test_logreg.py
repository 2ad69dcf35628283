"""Logistic regression follows DINOv2's protocol: strength by a tenth of the train images, then all of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from test_evaluate import CONFIG, CPU, make_imagenet
from torch import Tensor

from franca.config import ConfigError
from franca.data.datasets import load_dataset
from franca.evaluate.logreg import RESULTS, STRENGTHS, evaluate_logistic, fit_scores, top_accuracy
from franca.evaluate.protocol import encode_pixels

GRID = (1e-3, 1e-1, 1e1)


def encode_coarse(images: Tensor) -> Tensor:
    """The digits' own 64 pixels, nearly."""
    return images[:, 0, ::2, ::2].flatten(1)


def pixels(split: str) -> tuple[np.ndarray, np.ndarray]:
    """What `encode_coarse` gives for a split, and its classes."""
    dataset = load_dataset("digits", root="", split=split)
    images, labels = zip(*(dataset.read(index) for index in range(len(dataset))), strict=True)
    resized = [np.asarray(image.resize((16, 16), 3), np.float64)[::2, ::2, 0].ravel() / 255 for image in images]
    return np.array(resized), np.array(labels)


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")  # of the estimators below
def test_pixels_of_the_digits_are_classified_as_by_scikit_learn(tmp_path: Path) -> None:
    """The whole protocol equals its steps written down: hold out a tenth, choose, train again on all, measure."""
    x, y = pixels("train")
    questions, truth = pixels("test")
    torch.manual_seed(0)
    order = torch.randperm(len(y)).numpy()
    held_out, kept = order[:143], order[143:]
    scores = [LogisticRegression(C=c, max_iter=1000, tol=1e-12).fit(x[kept], y[kept]).score(x[held_out], y[held_out])
              for c in GRID]  # fmt: skip
    chosen = GRID[int(np.argmax(scores))]
    final = LogisticRegression(C=chosen, max_iter=1000, tol=1e-12).fit(x, y)
    found = evaluate_logistic(encode_coarse, config=CONFIG, device=CPU, folder=tmp_path, strengths=GRID)
    assert found.strength == chosen
    assert found.held_out_accuracy == pytest.approx(100 * max(scores))
    assert found.accuracy == pytest.approx(100 * final.score(questions, truth), abs=0.3)
    assert found.accuracy > 94
    assert found.accuracy <= found.top_5 <= 100
    assert (found.train_images, found.test_images, found.unreadable) == (1437, 360, ())
    written = json.loads((tmp_path / RESULTS).read_text())
    assert written == {"top-1": found.accuracy, "top-5": found.top_5, "best_C": chosen}


def test_grid_is_dinov2s() -> None:
    """45 strengths from 10^-6 to 10^5, evenly in their exponents."""
    assert len(STRENGTHS) == 45
    assert (STRENGTHS[0], STRENGTHS[-1]) == (1e-6, 1e5)
    np.testing.assert_allclose(np.diff(np.log10(STRENGTHS)), 0.25)


def test_fits_that_were_cut_off_are_counted(tmp_path: Path) -> None:
    """Too few iterations are no warning on the screen but a number in the result."""
    found = evaluate_logistic(encode_coarse, config=CONFIG, device=CPU, folder=tmp_path, strengths=GRID, iterations=2)
    assert found.unfinished == len(GRID) + 1


def test_a_class_without_train_images_has_no_probability() -> None:
    """Scores stand in the columns of the classes' own numbers."""
    x = np.array([[0.0], [0.1], [1.0], [1.1]])
    scores, _ = fit_scores(x, np.array([0, 0, 3, 3]), np.array([[1.0]]), strength=1e3, iterations=100)
    assert scores.shape == (1, 4)
    assert scores[0, 1] == scores[0, 2] == 0
    assert scores[0, 3] > 0.9


def test_top_accuracy_counts_the_largest_scores() -> None:
    """The true class among the first one, two or three."""
    scores = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.5, 0.3]])
    truth = np.array([0, 1, 0])
    assert [top_accuracy(scores, truth, count=count) for count in (1, 2, 3)] == pytest.approx([100 / 3, 200 / 3, 100])


def test_too_few_images_and_a_diverged_model_are_refused(tmp_path: Path) -> None:
    """Nine images have no tenth; features that are not finite have no classifier."""
    config = make_imagenet(
        tmp_path / "images", broken=tuple(f"train/{c}/{i}" for c in ("dark", "light") for i in (0, 1))
    )
    with pytest.raises(ConfigError, match="holds out a tenth of the train images, and there are only 8"):
        evaluate_logistic(encode_pixels, config=config, device=CPU, folder=tmp_path)

    def diverged(images: Tensor) -> Tensor:
        return encode_pixels(images) * float("nan")

    with pytest.raises(ConfigError, match="not finite"):
        evaluate_logistic(diverged, config=CONFIG, device=CPU, folder=tmp_path)
