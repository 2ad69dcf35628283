"""How well tokens tell positions is what a naive ridge regression says, whatever is projected out of them."""

import numpy as np
import pytest
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from franca.evaluate.position import RIDGE, patch_positions, position_moments, position_r2

GRID, DIM = 4, 6


def make_tokens(*, images: int, seed: int, mixed: float = 1.0) -> Float[Tensor, "n 16 6"]:
    """Noise, with rows and columns mixed into two of its dimensions."""
    tokens = torch.randn(images, GRID**2, DIM, generator=torch.Generator().manual_seed(seed))
    tokens[..., 1] += mixed * 3 * patch_positions(GRID, device=tokens.device)[:, 0]
    tokens[..., 4] -= mixed * 5 * patch_positions(GRID, device=tokens.device)[:, 1] - 2
    return tokens


def moments_of(tokens: Float[Tensor, "n 16 6"], *, batch: int = 3):
    """Moments by an encoder that gives out tokens in the place of the images of their numbers."""

    def encode(images: UInt8[Tensor, "n 1 1 3"]) -> Float[Tensor, "n 16 6"]:
        return tokens[images[:, 0, 0, 0].long()]

    numbers = torch.arange(len(tokens), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 1, 3)
    return position_moments(encode, numbers.split(batch), grid=GRID)


def naive_r2(fitted: Tensor, held_out: Tensor, matrix: np.ndarray) -> float:
    """Ridge regression with an intercept on centered tokens, and its share of the held-out variance explained."""
    positions = np.array([[row / (GRID - 1), column / (GRID - 1)] for row in range(GRID) for column in range(GRID)])
    x, y = fitted.reshape(-1, DIM).double().numpy(), np.tile(positions, (len(fitted), 1))
    test_x, test_y = held_out.reshape(-1, DIM).double().numpy(), np.tile(positions, (len(held_out), 1))
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    ridge = RIDGE * x.var(axis=0).mean() * len(x)
    centered = (x - mean_x) @ matrix
    weights = np.linalg.solve(centered.T @ centered + ridge * np.eye(DIM), centered.T @ (y - mean_y))
    error = ((test_x - mean_x) @ matrix @ weights + mean_y - test_y) ** 2
    return float(1 - (error.mean(axis=0) / test_y.var(axis=0)).mean())


@pytest.mark.parametrize("mixed", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("removed", [(), (1,), (1, 4), (0, 2)])
def test_r2_equals_the_naive_one(mixed: float, removed: tuple[int, ...]) -> None:
    """Of any tokens, whole or with some directions projected out of them."""
    fitted, held_out = make_tokens(images=20, seed=0, mixed=mixed), make_tokens(images=7, seed=1, mixed=mixed)
    matrix = np.eye(DIM)
    matrix[removed, removed] = 0
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))[0]
    for projection in (matrix, rotation @ matrix @ rotation.T):
        found = position_r2(moments_of(fitted), moments_of(held_out), matrix=torch.from_numpy(projection))
        assert found == pytest.approx(naive_r2(fitted, held_out, projection), abs=1e-6)


def test_r2_falls_to_nothing_without_the_planted_directions() -> None:
    """Tokens with planted positions tell them well; without these two directions they tell nothing."""
    fitted, held_out = (moments_of(make_tokens(images=60, seed=seed)) for seed in (0, 1))
    blind = torch.eye(DIM)
    blind[1, 1] = blind[4, 4] = 0
    assert position_r2(fitted, held_out) > 0.4
    assert abs(position_r2(fitted, held_out, matrix=blind)) < 0.02


def test_moments_do_not_depend_on_batches() -> None:
    """Tokens in other batches have the same moments."""
    tokens = make_tokens(images=10, seed=0)
    for batch in (1, 10):
        torch.testing.assert_close(moments_of(tokens, batch=batch).products, moments_of(tokens).products)


def test_positions_run_from_corner_to_corner() -> None:
    """Row first, from 0 at the top left to 1 at the bottom right, patch after patch as the encoder orders them."""
    positions = patch_positions(3, device=torch.device("cpu"))
    expected = [[row / 2, column / 2] for row in range(3) for column in range(3)]
    torch.testing.assert_close(positions, torch.tensor(expected))
    assert patch_positions(1, device=torch.device("cpu")).tolist() == [[0, 0]]
