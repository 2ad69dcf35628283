"""k-NN accuracies equal those of a naive float64 vote over all neighbors."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from test_distributed import run_processes
from torch import Tensor

from franca.distributed import rank, world_size
from franca.evaluate.knn import (
    draw_per_class,
    few_shot_accuracies,
    knn_accuracy,
    nearest_neighbors,
    replace_file,
    write_knn_results,
)
from reproduce.logs import parse_knn

PUBLISHED = (10, 20, 100, 200)


def naive_accuracies(train_x, train_y, test_x, test_y, *, k, temperature: float) -> dict[int, float]:
    """One test image at a time: sort all train images by cosine similarity, let the first k vote, in float64."""
    train_x, test_x = (np.asarray(x, np.float64) for x in (train_x, test_x))
    right = dict.fromkeys(k, 0)
    for x, truth in zip(test_x, test_y, strict=True):
        cosine = train_x @ x / (np.linalg.norm(train_x, axis=1) * np.linalg.norm(x))
        order = sorted(range(len(cosine)), key=lambda i: -cosine[i])
        for count in k:
            votes: dict[int, float] = {}
            for i in order[:count]:
                label = int(train_y[i])
                votes[label] = votes.get(label, 0.0) + math.exp((cosine[i] - 1) / temperature)
            right[count] += max(votes, key=lambda label: votes[label]) == int(truth)
    return {count: 100 * hits / len(test_y) for count, hits in right.items()}


def digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    return torch.tensor(bunch.data, dtype=torch.float32), torch.tensor(bunch.target)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_accuracy_on_the_digits_equals_the_naive_one(temperature: float) -> None:
    """All 1,797 digits by the published k: each half votes on the other, and no image is judged otherwise."""
    x, y = digits()
    half = torch.arange(len(x)) % 2 == 0
    for train, test in ((half, ~half), (~half, half)):
        found = knn_accuracy(x[train], y[train], x[test], y[test], k=PUBLISHED, temperature=temperature, classes=10)
        assert found == naive_accuracies(x[train], y[train], x[test], y[test], k=PUBLISHED, temperature=temperature)


@given(
    seed=st.integers(0, 999),
    n=st.integers(1, 30),
    m=st.integers(1, 20),
    classes=st.integers(1, 5),
    temperature=st.floats(0.02, 2.0),
    data=st.data(),
)
def test_accuracy_equals_the_naive_one(seed: int, n: int, m: int, classes: int, temperature: float, data) -> None:
    """Features of any length, any classes and temperature; the k's come in any order."""
    generator = torch.Generator().manual_seed(seed)
    train_x, test_x = (torch.randn(count, 4, generator=generator, dtype=torch.float64) * 7 for count in (n, m))
    train_y, test_y = (torch.randint(classes, (count,), generator=generator) for count in (n, m))
    k = data.draw(st.lists(st.integers(1, n), min_size=1, max_size=3, unique=True))
    found = knn_accuracy(train_x, train_y, test_x, test_y, k=k, temperature=temperature, classes=classes)
    assert found == naive_accuracies(train_x, train_y, test_x, test_y, k=k, temperature=temperature)


@given(st.integers(0, 99), st.integers(1, 40), st.integers(1, 50), st.data())
def test_neighbors_do_not_depend_on_the_chunks(seed: int, n: int, chunk: int, data) -> None:
    """Searching the train set in pieces, even of fewer than k images, finds what searching it whole finds."""
    generator = torch.Generator().manual_seed(seed)
    queries, train_x = torch.randn(5, 3, generator=generator), torch.randn(n, 3, generator=generator)
    k = data.draw(st.integers(1, n))
    expected = (queries @ train_x.T).topk(k)
    similarities, neighbors = nearest_neighbors(queries, train_x, k=k, chunk=chunk)
    assert torch.equal(neighbors, expected.indices)
    torch.testing.assert_close(similarities, expected.values)


def naive_draw(labels: list[int], *, count: int, seed: int) -> list[int]:
    """`count` of each class by torch's global generator, as upstream seeds it for every draw."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        chosen = []
        for label in sorted(set(labels)):
            own = [i for i, other in enumerate(labels) if other == label]
            chosen += [own[i] for i in torch.randperm(len(own)).tolist()[:count]]
        return chosen


def test_few_images_of_each_class_equal_the_naive_mean_over_draws() -> None:
    """1, 2, 5 and 10 digits of each class: every k that they can give, averaged over three draws."""
    x, y = digits()
    train, test = slice(0, 1200), slice(1200, None)
    found = few_shot_accuracies(
        x[train],
        y[train],
        x[test],
        y[test],
        per_class=(1, 2, 5, 10),
        tries=3,
        k=(2, 10, 20),
        temperature=0.07,
        classes=10,
    )
    assert list(found) == [(1, 1), (2, 2), (5, 2), (5, 5), (10, 2), (10, 10)]
    for (count, k), accuracy in found.items():
        tries = []
        for seed in range(3):
            rows = naive_draw(y[train].tolist(), count=count, seed=seed)
            tries.append(naive_accuracies(x[rows], y[rows], x[test], y[test], k=(k,), temperature=0.07)[k])
        assert accuracy == pytest.approx(sum(tries) / 3)


def test_a_class_with_fewer_images_gives_all_it_has() -> None:
    """Two images of a class are drawn where five are asked for, and none twice."""
    labels = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 2])
    rows = draw_per_class(labels, count=5, seed=0).tolist()
    assert sorted(labels[rows].tolist()) == [0, 0, 1, 1, 1, 1, 1, 2]
    assert len(set(rows)) == len(rows)


def shared_accuracies() -> dict[str, object]:
    """k-NN of the digits by processes that hold uneven parts of them; the last ones have only a few."""
    x, y = digits()
    bounds = [*[0, 1300, 1305, 1400][: world_size()], 1400]
    mine = slice(bounds[rank()], bounds[rank() + 1])
    sets = (x[mine], y[mine], x[1400:], y[1400:])
    options = {"k": PUBLISHED, "temperature": 0.07, "classes": 10}
    return {
        "full": knn_accuracy(*sets, **options),
        "few": few_shot_accuracies(*sets, **options, per_class=(1, 3), tries=2),
    }


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    """Neighbors are searched in parts of the train set, one smaller than k, and agreed on."""
    expected = shared_accuracies()
    assert run_processes(shared_accuracies, processes=2, folder=tmp_path) == [expected, expected]


def test_accuracy_ignores_the_length_of_features() -> None:
    """Scaling every feature by a factor of its own changes nothing."""
    x, y = digits()
    scale = torch.rand(len(x), 1, generator=torch.Generator().manual_seed(0)) * 99 + 1
    options = {"k": (10,), "temperature": 0.07, "classes": 10}
    assert knn_accuracy(x[:900], y[:900], x[900:], y[900:], **options) == knn_accuracy(
        (x * scale)[:900], y[:900], (x * scale)[900:], y[900:], **options
    )


def test_own_neighbor_is_always_right() -> None:
    """Among themselves, the digits' nearest neighbor is the digit itself."""
    x, y = digits()
    assert knn_accuracy(x, y, x, y, k=(1,), temperature=0.07, classes=10) == {1: 100.0}


@pytest.mark.parametrize("k", [(10, 0), (10, 21)])
def test_impossible_number_of_neighbors_is_refused(k: tuple[int, ...]) -> None:
    """k must be at least 1 and at most the number of train images."""
    x, y = digits()
    with pytest.raises(ValueError, match="needs 1 to 20 neighbors"):
        knn_accuracy(x[:20], y[:20], x, y, k=k, temperature=0.07, classes=10)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    """A diverged model has no accuracy."""
    x, y = digits()
    x[7, 7] = value
    with pytest.raises(ValueError, match="not finite"):
        knn_accuracy(x[:100], y[:100], x[100:], y[100:], k=(10,), temperature=0.07, classes=10)


def test_precision_of_the_trainers_products_is_left_as_it_was() -> None:
    """A trainer that allows TF32 still allows it after an evaluation."""
    x, y = digits()
    torch.set_float32_matmul_precision("high")
    try:
        knn_accuracy(x[:100], y[:100], x[100:], y[100:], k=(10,), temperature=0.07, classes=10)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_results_file_is_dinov2s(tmp_path: Path) -> None:
    """One JSON object of one key per line, under upstream's names; the harness reads it; writing again replaces it."""
    path = tmp_path / "eval" / "training_599" / "results_eval_knn.json"
    write_knn_results(path, {10: 1.0})
    write_knn_results(path, {10: 91.75929427146912, 200: 90.5})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"('full', 10) Top 1": 91.75929427146912}, {"('full', 200) Top 1": 90.5}]
    assert parse_knn(path) == ({10: 91.75929427146912, 200: 90.5}, ())


def test_results_file_has_the_keys_of_a_real_one(tmp_path: Path) -> None:
    """The keys are those in a file that DINOv2 wrote."""
    real = Path(__file__).parents[1] / "../shared/logs/eval/results_eval_knn.json"
    if not real.exists():
        pytest.skip("the published example ../shared/logs/eval/results_eval_knn.json is not here")
    keys = {key for line in real.read_text().splitlines() for key in json.loads(line) if key.endswith("Top 1")}
    write_knn_results(tmp_path / "mine.json", dict.fromkeys(PUBLISHED, 50.0))
    mine = {key for line in (tmp_path / "mine.json").read_text().splitlines() for key in json.loads(line)}
    assert mine == keys


def test_results_of_few_images_have_lines_of_their_own(tmp_path: Path) -> None:
    """They stand beside the full set's under upstream's names, and the harness takes none of them for it."""
    path = tmp_path / "results_eval_knn.json"
    write_knn_results(path, {10: 91.5}, few_shot={(1, 1): 40.25})
    assert path.read_text().splitlines()[1] == """{"('1 per class', 1) Top 1": 40.25}"""
    assert parse_knn(path) == ({10: 91.5}, ())


def test_file_is_replaced_whole(tmp_path: Path) -> None:
    """Nothing but the file itself is left in its folder."""
    replace_file(tmp_path / "a" / "b.json", "old")
    replace_file(tmp_path / "a" / "b.json", "new")
    assert [(path.name, path.read_text()) for path in (tmp_path / "a").iterdir()] == [("b.json", "new")]
