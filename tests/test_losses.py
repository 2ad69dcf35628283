"""Each loss and target equals the naive loop of its docstring in float64, keeps its invariants and never overflows."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_distributed import run_processes
from torch import Tensor

from franca import distributed
from franca.config import Head, Quirks
from franca.losses.center import softmax_center, update_centers
from franca.losses.dino import dino_loss
from franca.losses.ibot import ibot_loss
from franca.losses.koleo import koleo_loss, koleo_loss_in_groups
from franca.losses.sinkhorn import sinkhorn, sinkhorn_parts
from franca.models.heads import make_head

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 6))


def make_logits(n: int, k: int, *, seed: int = 0, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_probabilities(n: int, k: int, *, seed: int = 1) -> Tensor:
    return make_logits(n, k, seed=seed).softmax(1)


def naive_sinkhorn(logits: Tensor, *, temperature: float, iterations: int) -> Tensor:
    q = (logits / temperature).exp()
    n, k = q.shape
    q /= q.sum()
    for _ in range(iterations):
        for j in range(k):
            q[:, j] /= q[:, j].sum() * k
        for i in range(n):
            q[i, :] /= q[i, :].sum() * n
    return q * n


def naive_log_sinkhorn(logits: Tensor, *, temperature: float, iterations: int) -> Tensor:
    """The same iterations on logarithms, where nothing can overflow."""
    q = logits / temperature
    for _ in range(iterations):
        q = q - q.logsumexp(0, keepdim=True)
        q = q - q.logsumexp(1, keepdim=True)
    return q.exp()


def naive_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_p = (student / temperature) - (student / temperature).exp().sum().log()
    return -sum(teacher[j] * log_p[j] for j in range(len(teacher)))


@pytest.mark.parametrize("unscaled", [False, True])
@given(shape=SHAPES, iterations=st.integers(1, 4), seed=st.integers(0, 99))
def test_sinkhorn_equals_the_naive_loop(unscaled: bool, shape: tuple[int, int], iterations: int, seed: int) -> None:
    """With and without the first division, the assignments are those of the definition."""
    logits = make_logits(*shape, seed=seed)
    result = sinkhorn(logits, temperature=0.3, iterations=iterations, unscaled=unscaled)
    torch.testing.assert_close(result, naive_sinkhorn(logits, temperature=0.3, iterations=iterations))


@given(shape=SHAPES, spread=st.sampled_from([0.1, 10.0, 1000.0]), seed=st.integers(0, 99))
def test_rows_of_sinkhorn_sum_to_one(shape: tuple[int, int], spread: float, seed: int) -> None:
    """In float32, with logits thousands of temperatures apart, every row is still a distribution."""
    logits = make_logits(*shape, seed=seed, spread=spread)
    result = sinkhorn(logits.float(), temperature=0.04, iterations=3)
    assert result.dtype == torch.float32
    assert (result >= 0).all()
    torch.testing.assert_close(result.sum(1), torch.ones(shape[0]))


@given(shape=SHAPES, seed=st.integers(0, 99))
def test_sinkhorn_of_extreme_logits_equals_the_loop_on_logarithms(shape: tuple[int, int], seed: int) -> None:
    """Where exponentials overflow or vanish, prototypes and samples far from all others keep their share."""
    logits = make_logits(*shape, seed=seed, spread=100.0)
    result = sinkhorn(logits, temperature=0.04, iterations=3)
    torch.testing.assert_close(result, naive_log_sinkhorn(logits, temperature=0.04, iterations=3))


def test_unscaled_sinkhorn_overflows_where_upstream_does() -> None:
    """The quirk keeps upstream's range too: a logit of 4 at temperature 0.04 is beyond float32."""
    logits = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    assert sinkhorn(logits, temperature=0.04, iterations=3, unscaled=True).isnan().any()
    torch.testing.assert_close(sinkhorn(logits, temperature=0.04, iterations=3), torch.eye(2))


def test_padding_rows_change_the_targets_where_they_enter() -> None:
    """Upstream's quirk is not void: zero rows among the others take their part of the prototypes."""
    logits = torch.cat([make_logits(4, 3), torch.zeros(2, 3, dtype=torch.float64)])
    with_padding = sinkhorn(logits, temperature=0.1, iterations=3)
    torch.testing.assert_close(with_padding, naive_sinkhorn(logits, temperature=0.1, iterations=3))
    assert not torch.allclose(with_padding[:4], sinkhorn(logits[:4], temperature=0.1, iterations=3))


@given(shape=SHAPES, seed=st.integers(0, 99))
def test_sinkhorn_follows_permutations_and_ignores_biases(shape: tuple[int, int], seed: int) -> None:
    """Samples and prototypes permuted permute the result; a constant added to a prototype's logits changes nothing."""
    n, k = shape
    logits = make_logits(n, k, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(n, generator=generator), torch.randperm(k, generator=generator)
    result = sinkhorn(logits, temperature=0.1, iterations=3)
    permuted = sinkhorn(logits[rows][:, columns], temperature=0.1, iterations=3)
    torch.testing.assert_close(permuted, result[rows][:, columns])
    biased = sinkhorn(logits + make_logits(1, k, seed=seed + 1), temperature=0.1, iterations=3)
    torch.testing.assert_close(biased, result)


@pytest.mark.parametrize("unscaled", [False, True])
def test_sinkhorn_over_parts_equals_the_whole(unscaled: bool) -> None:
    """Rows that come in parts, made anew each time, get the targets that they get together, level by level."""
    levels = [make_logits(11, 4), make_logits(11, 7, seed=1)]
    parts = [lambda a=a, b=b: [level[a:b] for level in levels] for a, b in ((0, 3), (3, 3), (3, 11))]
    options = {"temperature": 0.3, "iterations": 3, "unscaled": unscaled}
    found = [torch.cat(level) for level in zip(*(part() for part in sinkhorn_parts(parts, **options)), strict=True)]
    for level, logits in zip(found, levels, strict=True):
        torch.testing.assert_close(level, sinkhorn(logits, **options))


def test_many_iterations_use_every_prototype_alike() -> None:
    """In the limit each prototype has n / k samples."""
    result = sinkhorn(make_logits(12, 4), temperature=0.3, iterations=200)
    torch.testing.assert_close(result.sum(0), torch.full((4,), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_assigned_in_single(dtype: torch.dtype) -> None:
    """Half-precision logits, even under autocast, give what the same numbers give in float32."""
    logits = make_logits(5, 4).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = sinkhorn(logits, temperature=torch.tensor(0.05), iterations=3)
    assert torch.equal(result, sinkhorn(logits.float(), temperature=0.05, iterations=3))


def shared_targets() -> dict[str, Any]:
    """Of one rank: Sinkhorn of its part of the rows, with and without the first division, and the center after them."""
    logits = make_logits(6, 4, spread=3.0)
    own = logits[:4] if distributed.rank() == 0 else logits[4:]
    return {
        "assigned": sinkhorn(own, temperature=0.05, iterations=3),
        "unscaled": sinkhorn(own, temperature=0.3, iterations=3, unscaled=True),
        "alone": sinkhorn(own if distributed.rank() == 0 else own[:0], temperature=0.05, iterations=3),
        "center": update_centers([torch.ones(4, dtype=torch.float64)], [lambda: [own]])[0],
    }


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Rows split unevenly over two processes get the targets, and move the center, as the whole batch does.

    A process without any row takes part and changes nothing.
    """
    first, second = run_processes(shared_targets, processes=2, folder=tmp_path)
    logits = make_logits(6, 4, spread=3.0)
    for name, temperature in (("assigned", 0.05), ("unscaled", 0.3)):
        whole = sinkhorn(logits, temperature=temperature, iterations=3)
        torch.testing.assert_close(torch.cat([first[name], second[name]]), whole)
    torch.testing.assert_close(first["alone"], sinkhorn(logits[:4], temperature=0.05, iterations=3))
    assert second["alone"].shape == (0, 4)
    center = update_centers([torch.ones(4, dtype=torch.float64)], [lambda: [logits]])[0]
    torch.testing.assert_close(first["center"], center)
    torch.testing.assert_close(second["center"], center)


@given(views=st.integers(1, 3), shape=SHAPES, seed=st.integers(0, 99))
def test_dino_loss_equals_the_naive_loop(views: int, shape: tuple[int, int], seed: int) -> None:
    """Views of the student against one teacher: the mean cross-entropy over views and samples."""
    n, k = shape
    student = make_logits(views * n, k, seed=seed).unflatten(0, (views, n))
    teacher = make_probabilities(n, k)
    total = sum(naive_cross_entropy(view[i], teacher[i], 0.1) for view in student for i in range(n))
    torch.testing.assert_close(dino_loss(student, teacher, temperature=0.1), total / (views * n))
    single = torch.stack([dino_loss(view, teacher, temperature=0.1) for view in student]).mean()
    torch.testing.assert_close(dino_loss(student, teacher, temperature=0.1), single)


def test_the_mean_of_two_teachers_stands_for_both() -> None:
    """Cross-entropy is linear in the teacher, so two teacher views cost one pass."""
    student, one, two = make_logits(4, 5), make_probabilities(4, 5, seed=1), make_probabilities(4, 5, seed=2)
    both = (dino_loss(student, one, temperature=0.1) + dino_loss(student, two, temperature=0.1)) / 2
    torch.testing.assert_close(dino_loss(student, (one + two) / 2, temperature=0.1), both)


@given(shape=SHAPES, seed=st.integers(0, 99))
def test_ibot_loss_equals_the_naive_loop(shape: tuple[int, int], seed: int) -> None:
    """Each masked patch counts with its weight, the sum is spread over all images."""
    m, k = shape
    student, teacher = make_logits(m, k, seed=seed), make_probabilities(m, k)
    weights = torch.rand(m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    total = sum(weights[i] * naive_cross_entropy(student[i], teacher[i], 0.1) for i in range(m))
    torch.testing.assert_close(ibot_loss(student, teacher, weights, temperature=0.1, images=7), total / 7)


def test_ibot_loss_without_masked_patches_is_zero() -> None:
    """A batch in which nothing is masked adds nothing, and its gradient is defined."""
    student = make_logits(0, 4).requires_grad_()
    loss = ibot_loss(student, make_probabilities(0, 4), torch.ones(0).double(), temperature=0.1, images=2)
    loss.backward()
    assert loss.item() == 0


def test_cross_entropies_have_exact_gradients() -> None:
    """Finite differences agree, and the best student is the teacher."""
    student, teacher = make_logits(3, 4).requires_grad_(), make_probabilities(3, 4)
    weights = torch.tensor([0.5, 0.2, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: dino_loss(s, teacher, temperature=0.1), student)
    assert torch.autograd.gradcheck(lambda s: ibot_loss(s, teacher, weights, temperature=0.1, images=2), student)
    same = (0.1 * teacher.log()).requires_grad_()
    dino_loss(same, teacher, temperature=0.1).backward()
    assert same.grad is not None
    assert same.grad.abs().max() < 1e-12


def test_losses_of_half_precision_are_computed_in_single() -> None:
    """bfloat16 logits lose nothing further: the loss equals that of the same numbers in float32."""
    student, teacher = make_logits(6, 8).bfloat16(), make_probabilities(6, 8).float()
    loss = dino_loss(student, teacher, temperature=0.1)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, dino_loss(student.float(), teacher, temperature=0.1))


@pytest.mark.parametrize(("prototypes", "bottleneck"), [(4096, 64), (16384, 128)])
def test_the_loss_of_a_new_normalized_head_is_its_closed_form(prototypes: int, bottleneck: int) -> None:
    """At the start the cross-entropy is ln K + 1 / (2 b τ²): the anchor that published logs show at iteration 0."""
    head = Head(prototypes=prototypes, hidden=64, bottleneck=bottleneck, layers=3)
    module = make_head(head, embed_dim=32, nesting=(), quirks=Quirks())
    module.init_weights(torch.Generator().manual_seed(0))
    tokens = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        loss = dino_loss(module(tokens)[0], torch.full((64, prototypes), 1 / prototypes), temperature=0.1)
    assert loss.item() == pytest.approx(math.log(prototypes) + 50 / bottleneck, abs=0.03)


@pytest.mark.parametrize("quirk", [False, True])
def test_the_loss_of_a_new_matryoshka_head_sums_its_levels(quirk: bool) -> None:
    """Without normalization a new head's logits are nearly zero, so each level starts at the log of its prototypes."""
    head = Head(prototypes=1024, hidden=64, bottleneck=64, layers=3)
    module = make_head(head, embed_dim=32, nesting=(4, 8, 16, 32), quirks=Quirks(head_unnormalized=quirk))
    module.init_weights(torch.Generator().manual_seed(0))
    tokens = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        loss = sum(
            dino_loss(logits, torch.full_like(logits, 1 / logits.shape[1]), temperature=0.1)
            for logits in module(tokens)
        )
    expected = sum(math.log(1024 * width // 32) + (0 if quirk else 50 / 64) for width in (4, 8, 16, 32))
    assert float(loss) == pytest.approx(expected, rel=0.03)


@given(n=st.integers(2, 8), d=st.integers(2, 5), seed=st.integers(0, 99))
def test_koleo_equals_the_naive_loop(n: int, d: int, seed: int) -> None:
    """Minus the mean log distance to the nearest neighbor at unit length."""
    features = make_logits(n, d, seed=seed)
    x = [feature / max(feature.norm(), 1e-8) for feature in features]
    total = 0.0
    for i in range(n):
        nearest = max((float(x[i] @ x[j]), j) for j in range(n) if j != i)[1]
        total -= math.log(float((x[i] - x[nearest] + 1e-8).norm()) + 1e-8)
    assert koleo_loss(features).item() == pytest.approx(total / n, rel=1e-9)


def test_koleo_has_exact_gradients() -> None:
    """Finite differences agree: the choice of the neighbor is not differentiated, the distance is, on both sides."""
    assert torch.autograd.gradcheck(koleo_loss, make_logits(4, 3).requires_grad_())


@given(n=st.integers(2, 8), scale=st.floats(0.01, 100), seed=st.integers(0, 99))
def test_koleo_ignores_lengths_and_order(n: int, scale: float, seed: int) -> None:
    """Features scaled or permuted have the same loss."""
    features = make_logits(n, 4, seed=seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(koleo_loss(scale * features[order]), koleo_loss(features))


@pytest.mark.parametrize(("images", "part"), [(4, 12), (4, 4), (6, 2), (12, 3), (12, 12)])
def test_koleo_in_groups_does_not_see_how_a_batch_is_cut(images: int, part: int) -> None:
    """Parts with whole groups and parts of a group: mean value and gradient are those of the mean over the groups."""
    batch = make_logits(12, 5).requires_grad_()
    torch.stack([koleo_loss(group) for group in batch.split(images)]).mean().backward()
    expected, batch.grad = batch.grad, None
    losses = [
        koleo_loss_in_groups(batch[first : first + part], images=images, others=batch.detach(), first=first)
        for first in range(0, 12, part)
    ]
    torch.stack(losses).mean().backward()
    torch.testing.assert_close(batch.grad, expected)
    value = torch.stack([koleo_loss(group) for group in batch.split(images)]).mean()
    torch.testing.assert_close(torch.stack(losses).mean(), value)


def test_koleo_is_finite_for_equal_features_and_infinite_in_half() -> None:
    """In float32 equal features give a large loss with a gradient; in float16, as upstream computed, infinity."""
    features = torch.ones(3, 16, requires_grad=True)
    loss = koleo_loss(features)
    loss.backward()
    assert 10 < loss.item() < 20
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert koleo_loss(features.detach(), half=True).isinf()


def test_koleo_in_half_differs_by_its_rounding() -> None:
    """On distinct features the quirk moves the loss by about float16's rounding, and the result is still float32."""
    features = make_logits(16, 8).float()
    half, single = koleo_loss(features, half=True), koleo_loss(features)
    assert half.dtype == torch.float32
    assert half.item() == float(half.half())
    assert half.item() != single.item()
    assert half.item() == pytest.approx(single.item(), abs=5e-3)


@pytest.mark.parametrize("n", [0, 1])
def test_koleo_of_less_than_two_is_zero(n: int) -> None:
    """One feature has no neighbor."""
    assert koleo_loss(torch.ones(n, 4)).item() == 0


def test_opposite_features_are_neighbors_of_each_other() -> None:
    """Two features at the largest distance, two, are each other's nearest, not their own."""
    assert koleo_loss(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item() == pytest.approx(-math.log(2))


@given(shape=SHAPES, seed=st.integers(0, 99))
def test_centering_equals_the_naive_loop(shape: tuple[int, int], seed: int) -> None:
    """Softmax of the logits less the center, sharpened; the center is a moving mean of the rows."""
    n, k = shape
    logits, center = make_logits(n, k, seed=seed), make_logits(1, k, seed=seed + 1)[0]
    targets = softmax_center(logits, center, temperature=0.07)
    for i in range(n):
        weights = torch.stack([((logits[i, j] - center[j]) / 0.07).exp() for j in range(k)])
        torch.testing.assert_close(targets[i], weights / weights.sum())
    expected = [0.9 * center[j] + 0.1 * sum(logits[i, j] for i in range(n)) / n for j in range(k)]
    torch.testing.assert_close(update_centers([center], [lambda: [logits]])[0], torch.stack(expected))
