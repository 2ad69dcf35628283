"""Attention over packed sequences equals attention over each sequence alone, by every backend."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from franca.config import ConfigError
from franca.models.attention import (
    BACKENDS,
    Attention,
    Groups,
    block_diagonal_mask,
    choose_backend,
    sdpa,
    sequence_bounds,
)

GROUPS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=3).map(tuple)


def make_qkv(groups: Groups, *, seed: int = 0, heads: int = 2, dim: int = 4) -> torch.Tensor:
    tokens = sum(sequences * length for sequences, length in groups)
    return torch.randn(tokens, 3, heads, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_attention(qkv: torch.Tensor, groups: Groups) -> torch.Tensor:
    """Every query against every key of its own sequence, one number at a time."""
    output = torch.zeros_like(qkv[:, 0])
    start = 0
    for length in [length for sequences, length in groups for _ in range(sequences)]:
        for head in range(qkv.shape[2]):
            q, k, v = qkv[start : start + length, :, head].unbind(1)
            for i in range(length):
                weights = torch.stack([(q[i] @ k[j] / q.shape[1] ** 0.5).exp() for j in range(length)])
                output[start + i, head] = sum(w * v[j] for j, w in enumerate(weights / weights.sum()))
        start += length
    return output


@given(groups=GROUPS, seed=st.integers(0, 99))
def test_packed_attention_equals_the_naive_loop(groups: Groups, seed: int) -> None:
    """Each token attends to its own sequence and to nothing else."""
    qkv = make_qkv(groups, seed=seed)
    torch.testing.assert_close(sdpa(qkv, groups=groups), naive_attention(qkv, groups))


@given(groups=GROUPS)
def test_gradients_stay_within_a_sequence(groups: Groups) -> None:
    """The last sequence's output moves with its own tokens only."""
    qkv = make_qkv(groups).requires_grad_()
    last = groups[-1][1]
    sdpa(qkv, groups=groups)[-last:].square().sum().backward()
    assert qkv.grad is not None
    assert not qkv.grad[:-last].any()
    assert qkv.grad[-last:, 2].any()


def test_attention_ignores_the_order_of_tokens() -> None:
    """Tokens of a sequence permuted give the outputs permuted: attention itself knows no positions."""
    torch.manual_seed(0)
    module = Attention(8, heads=2, backend="sdpa").double()
    x = torch.randn(5, 8, dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(module(x[order], groups=((1, 5),)), module(x, groups=((1, 5),))[order])


@given(groups=GROUPS)
def test_bounds_of_sequences_are_where_they_start(groups: Groups) -> None:
    """What torch's kernel is told: the tokens before each sequence, and the number of all."""
    lengths = [length for sequences, length in groups for _ in range(sequences)]
    bounds = sequence_bounds(groups, torch.device("cpu"))
    assert bounds.dtype == torch.int32
    assert bounds.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]


def test_the_backend_is_one_that_works_here() -> None:
    """On a CPU that is grouped SDPA; a backend that is asked for by name and does not work is refused."""
    cpu = torch.device("cpu")
    assert choose_backend("auto", device=cpu, dtype=torch.float32) == "sdpa"
    assert choose_backend("sdpa", device=cpu, dtype=torch.bfloat16) == "sdpa"
    for name in ("xformers", "varlen"):
        with pytest.raises(ConfigError, match=rf"execution\.attention: {name} does not compute torch\.float32 on cpu"):
            choose_backend(name, device=cpu, dtype=torch.float32)


@pytest.mark.slow
def test_the_block_diagonal_mask_is_that_of_the_sequences() -> None:
    """What xFormers' kernel is told: dense SDPA under its mask equals grouped SDPA."""
    pytest.importorskip("xformers.ops", reason="xFormers is not installed")
    groups = ((2, 5), (3, 2))
    qkv = make_qkv(groups)
    mask = block_diagonal_mask(groups, torch.device("cpu")).materialize((16, 16), dtype=qkv.dtype)
    q, k, v = qkv.transpose(0, 2).unbind(1)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(dense.transpose(0, 1), sdpa(qkv, groups=groups))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_backends_agree_on_cuda(name: str) -> None:
    """On the GPU every backend gives grouped SDPA's numbers and gradients, to the rounding of bfloat16."""
    if name == "xformers":
        pytest.importorskip("xformers.ops")
    groups = ((3, 257), (5, 50))
    results = []
    for backend in ("sdpa", name):
        qkv = make_qkv(groups, heads=4, dim=64).to("cuda", torch.bfloat16).requires_grad_()
        output = BACKENDS[backend](qkv, groups=groups)
        output.float().square().sum().backward()
        results.append((output, qkv.grad))
    torch.testing.assert_close(results[0], results[1], rtol=2e-2, atol=2e-2)
