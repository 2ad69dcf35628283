"""k-nearest-neighbor classification by DINOv2's protocol: features and labels in, top-1 accuracies in percent out.

Neighbors vote with weights exp(cosine similarity / temperature); the class with the largest sum wins
(facebookresearch/dinov2 eval/knn.py@b8931f7; upstream divides the weights by their sum, which moves no vote).

Several processes hold the train features in parts: each finds the neighbors in its own, and all agree on the nearest.

Letters: n train images of this process, m test images, d features, c test images at a time, k neighbors.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from franca.distributed import all_gather_rows, all_reduce_sum, any_process, rank, world_size

TEST_CHUNK = 256  # test images at a time; with TRAIN_CHUNK, 64 MB of similarities, however large the sets are
TRAIN_CHUNK = 2**16


def knn_accuracy(
    train_x: Float[Tensor, "n d"],
    train_y: Int[Tensor, "n"],
    test_x: Float[Tensor, "m d"],
    test_y: Int[Tensor, "m"],
    *,
    k: Sequence[int],
    temperature: float,
    classes: int,
) -> dict[int, float]:
    """Top-1 accuracy in percent for each number of neighbors in `k`.

    Of several processes each brings its own part of the train images, the same test images, and gets the same result.
    Features are normalized here. Raises `ValueError` on a k that the train set cannot give and on features that are
    not finite.
    """
    images = int(all_reduce_sum(torch.tensor(len(train_x))))
    if not 1 <= min(k) <= max(k) <= images:
        raise ValueError(f"k-NN with k = {', '.join(map(str, k))} needs 1 to {images} neighbors, the train images")
    train_x, test_x = (functional.normalize(x, dim=1) for x in (train_x, test_x))
    if any_process(not bool(train_x.isfinite().all() and test_x.isfinite().all())):
        raise ValueError("k-NN of features that are not finite: the model has diverged")
    correct = dict.fromkeys(k, 0)
    for queries, truth in zip(test_x.split(TEST_CHUNK), test_y.split(TEST_CHUNK), strict=True):
        with _full_precision():
            similarities, neighbors = nearest_neighbors(queries, train_x, k=min(max(k), len(train_x)))
        similarities, labels = _merge_processes(similarities, train_y[neighbors], k=max(k))
        weights = (similarities.double() / temperature).softmax(dim=1)
        for count in k:
            votes = weights.new_zeros(len(queries), classes)
            votes.scatter_add_(1, labels[:, :count], weights[:, :count])
            correct[count] += int((votes.argmax(dim=1) == truth).sum())
    return {count: 100 * right / len(test_y) for count, right in correct.items()}


def few_shot_accuracies(
    train_x: Float[Tensor, "n d"],
    train_y: Int[Tensor, "n"],
    test_x: Float[Tensor, "m d"],
    test_y: Int[Tensor, "m"],
    *,
    per_class: Sequence[int],
    tries: int,
    k: Sequence[int],
    temperature: float,
    classes: int,
) -> dict[tuple[int, int], float]:
    """(images per class, k) → top-1 in percent, the mean over `tries` draws of that many train images of each class.

    k is each of `k` that is not above the images per class, and that number itself. Draw t has the seed t. Processes
    are as in `knn_accuracy`.
    """
    labels = all_gather_rows(train_y).cpu()
    sizes = all_gather_rows(torch.tensor([len(train_y)]))
    start = int(sizes[: rank()].sum())
    options = {"temperature": temperature, "classes": classes}
    means: dict[tuple[int, int], float] = {}
    for count in per_class:
        ks = sorted({*(value for value in k if value <= count), count})
        sums = dict.fromkeys(ks, 0.0)
        for draw in range(tries):
            rows = draw_per_class(labels, count=count, seed=draw) - start
            mine = rows[(rows >= 0) & (rows < len(train_y))].to(train_y.device)
            found = knn_accuracy(train_x[mine], train_y[mine], test_x, test_y, k=ks, **options)
            sums = {value: total + found[value] for value, total in sums.items()}
        means |= {(count, value): total / tries for value, total in sums.items()}
    return means


def draw_per_class(labels: Int[Tensor, "n"], *, count: int, seed: int) -> Int[Tensor, "_"]:
    """Indices of `count` images of each class, all of a class that has fewer; classes ascending.

    The draw is that of dinov2 eval/knn.py `filter_train` with the same seed: one stream, a permutation for each class.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique():
        own = (labels == label).nonzero().flatten()
        chosen.append(own[torch.randperm(len(own), generator=generator)[:count]])
    return torch.cat(chosen)


def nearest_neighbors(
    queries: Float[Tensor, "c d"], train_x: Float[Tensor, "n d"], *, k: int, chunk: int = TRAIN_CHUNK
) -> tuple[Float[Tensor, "c k"], Int[Tensor, "c k"]]:
    """The k largest dot products with the train features, largest first, and whose they are.

    Train features are taken `chunk` at a time, so that memory does not grow with n.
    """
    similarities = queries.new_empty(len(queries), 0)
    neighbors = queries.new_empty(len(queries), 0, dtype=torch.long)
    for start in range(0, len(train_x), chunk):
        here = queries @ train_x[start : start + chunk].T
        columns = torch.arange(start, start + here.shape[1], device=here.device).expand(len(queries), -1)
        candidates = torch.cat([similarities, here], dim=1)
        similarities, best = candidates.topk(min(k, candidates.shape[1]), dim=1)
        neighbors = torch.cat([neighbors, columns], dim=1).gather(1, best)
    return similarities, neighbors


def _merge_processes(
    similarities: Float[Tensor, "c _"], labels: Int[Tensor, "c _"], *, k: int
) -> tuple[Float[Tensor, "c _"], Int[Tensor, "c _"]]:
    """The k nearest of all processes' neighbors; a process may have fewer than k."""
    if world_size() == 1:
        return similarities, labels
    all_similarities, all_labels = all_gather_rows(similarities.T).T, all_gather_rows(labels.T).T
    nearest, best = all_similarities.topk(k, dim=1)
    return nearest, all_labels.gather(1, best)


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32, which a trainer may have allowed: its 10 bits of mantissa confuse neighbors."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def write_knn_results(
    path: Path, accuracies: Mapping[int, float], *, few_shot: Mapping[tuple[int, int], float] | None = None
) -> None:
    """Write `results_eval_knn.json` as DINOv2 does, a line per k: `{"('full', 10) Top 1": 91.759}`."""
    entries = {f"('full', {k}) Top 1": value for k, value in accuracies.items()}
    entries |= {f"('{count} per class', {k}) Top 1": value for (count, k), value in (few_shot or {}).items()}
    lines = [json.dumps({key: value}) + "\n" for key, value in entries.items()]
    replace_file(path, "".join(lines))


def replace_file(path: Path, text: str) -> None:
    """Write a file so that it is complete or absent, even if the machine stops; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
