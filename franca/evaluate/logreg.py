"""Logistic regression by DINOv2's protocol: a frozen backbone in, top-1 on the test split out.

The class token's features as they are, scikit-learn's L-BFGS in float64 for each strength C of a grid; the best on a
tenth of the train images trains once more on all of them (facebookresearch/dinov2 eval/log_regression.py@b8931f7, which
uses cuML's solver of the same objective). In one process, on the CPU: it is meant for sets up to some 100,000 images.
"""

import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from franca.config import ConfigError, TrainConfig
from franca.distributed import world_size
from franca.evaluate.features import Encode
from franca.evaluate.knn import replace_file
from franca.evaluate.protocol import extract, load_evaluation_sets

LOG = logging.getLogger(__name__)
STRENGTHS = tuple(10.0**power for power in np.linspace(-6, 5, 45).tolist())
ITERATIONS = 1_000
TOLERANCE = 1e-12
RESULTS = "results_eval_logreg.json"


@dataclass(frozen=True)
class LogisticEvaluation:
    """Top-1 and top-5 in percent on the test split with the strength that was best on the held-out train images.

    unfinished: how many of the fits ended at `ITERATIONS` iterations.
    """

    accuracy: float
    top_5: float
    strength: float
    held_out_accuracy: float
    unfinished: int
    train_images: int
    test_images: int
    unreadable: tuple[str, ...]


def evaluate_logistic(
    encode: Encode,
    *,
    config: TrainConfig,
    device: torch.device,
    folder: Path,
    strengths: tuple[float, ...] = STRENGTHS,
    iterations: int = ITERATIONS,
) -> LogisticEvaluation:
    """Choose the strength, train on all train images, measure; `folder` receives `results_eval_logreg.json`.

    Raises `ConfigError` in one of several processes and on a diverged model, `DataError` on missing data.
    """
    if world_size() > 1:
        raise ConfigError("logistic regression runs in one process: start it without torchrun")
    train, test = (extract(encode, part, config=config, device=device) for part in load_evaluation_sets(config))
    if not all(part.features.isfinite().all() for part in (train, test)):
        raise ConfigError("logistic regression of features that are not finite: the model has diverged")
    x, y = _arrays(train.features, train.labels)
    chosen, accuracy, unfinished = choose_strength(x, y, strengths=strengths, iterations=iterations)
    scores, cut = fit_scores(x, y, _arrays(test.features, test.labels)[0], strength=chosen, iterations=iterations)
    truth = test.labels.cpu().numpy()
    result = LogisticEvaluation(
        accuracy=top_accuracy(scores, truth, count=1),
        top_5=top_accuracy(scores, truth, count=5),
        strength=chosen,
        held_out_accuracy=accuracy,
        unfinished=unfinished + cut,
        train_images=len(y),
        test_images=len(truth),
        unreadable=train.unreadable + test.unreadable,
    )
    content = {"top-1": result.accuracy, "top-5": result.top_5, "best_C": result.strength}
    replace_file(folder / RESULTS, json.dumps(content) + "\n")
    return result


def choose_strength(
    x: NDArray[np.float64], y: NDArray[np.int64], *, strengths: tuple[float, ...], iterations: int
) -> tuple[float, float, int]:
    """The strength that is best on a tenth of the images, that accuracy in percent, and how many fits were cut off.

    The first of equals, the most strongly regularized, is taken.
    """
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).numpy()  # upstream's draw
    held_out, kept = order[: len(y) // 10], order[len(y) // 10 :]
    if not len(held_out):
        raise ConfigError(f"logistic regression holds out a tenth of the train images, and there are only {len(y)}")
    accuracies, unfinished = [], 0
    for strength in strengths:
        scores, cut = fit_scores(x[kept], y[kept], x[held_out], strength=strength, iterations=iterations)
        accuracies.append(top_accuracy(scores, y[held_out], count=1))
        unfinished += cut
        LOG.info("logistic regression: %.2f %% of the held-out images with C = %.3g", accuracies[-1], strength)
    best = int(np.argmax(accuracies))
    return strengths[best], accuracies[best], unfinished


def fit_scores(
    x: NDArray[np.float64],
    y: NDArray[np.int64],
    questions: NDArray[np.float64],
    *,
    strength: float,
    iterations: int,
) -> tuple[NDArray[np.float64], bool]:
    """Probabilities [images, class number] of `questions`, and whether the fit was cut off before it converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    estimator = LogisticRegression(C=strength, max_iter=iterations, tol=TOLERANCE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        estimator.fit(x, y)
    scores = np.zeros((len(questions), max(int(y.max()) + 1, 1)))
    scores[:, estimator.classes_] = estimator.predict_proba(questions)
    return scores, any(issubclass(item.category, ConvergenceWarning) for item in caught)


def top_accuracy(scores: NDArray[np.float64], truth: NDArray[np.int64], *, count: int) -> float:
    """Percent of images whose class is among the `count` of the largest scores."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return 100 * float((best == truth[:, None]).any(axis=1).mean())


def _arrays(features: Float[Tensor, "n d"], labels: Int[Tensor, "n"]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    return features.double().cpu().numpy(), labels.cpu().numpy()
