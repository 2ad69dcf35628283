"""A trained plane takes planted positions out of tokens, and nothing else."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from franca.evaluate.position import patch_positions, position_moments, position_r2
from franca.models.rasa import remove_plane
from franca.train.planes import RasaSettings, make_view, plan_batches, train_plane

CPU = torch.device("cpu")
DIM, GRID, PX = 16, 4, 16
SETTINGS = RasaSettings(epochs=60, lr=0.05, batch=16, px=PX)
MIXING = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(0))).Q


@dataclass(frozen=True)
class Noise:
    """Pictures of noise: their content says nothing of where it lies."""

    images: int = 16

    def __len__(self) -> int:
        return self.images

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (24, 24, 3), dtype=np.uint8))


def colors(images: UInt8[Tensor, "n 16 16 3"]) -> Float[Tensor, "n 16 3"]:
    """The mean color of each patch: the planted meaning."""
    return functional.avg_pool2d(images.permute(0, 3, 1, 2) / 64, 4).flatten(2).transpose(1, 2)


def encode_planted(images: UInt8[Tensor, "n 16 16 3"]) -> Float[Tensor, "n 16 16"]:
    """Colors in three directions, row and column in two others, of a rotated space; in all of them some noise."""
    positions = 2 * patch_positions(GRID, device=images.device).expand(len(images), -1, -1) - 1
    tokens = functional.pad(torch.cat([colors(images), positions], dim=2), (0, DIM - 5))
    gray = images.float().mean(dim=3).unflatten(1, (GRID, 4)).unflatten(3, (GRID, 4)).transpose(2, 3).flatten(3)
    noise = (gray - gray.mean(dim=3, keepdim=True)).flatten(1, 2)[..., :DIM] / 400
    return (tokens + noise) @ MIXING


def view_batch(seed: int) -> UInt8[Tensor, "n 16 16 3"]:
    views = [make_view(Noise().read(i), px=PX, generator=np.random.default_rng([seed, i])) for i in range(16)]
    return torch.from_numpy(np.stack(views))


def train(*, planes: int, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    removed, weights = torch.eye(DIM, dtype=torch.float64), []
    for plane in range(planes):
        settings = RasaSettings(**{**vars(SETTINGS), "seed": seed})
        weight, _ = train_plane(
            encode_planted, Noise(), plane=plane, removed=removed, settings=settings, grid=GRID, workers=0
        )
        weights.append(weight)
        removed = remove_plane(removed, weight.double())
    return weights, removed


def test_planted_positions_are_removed_and_the_rest_stays() -> None:
    """Positions told with R² near 1 are told no more; colors are told from the tokens as before."""
    removed = train(planes=6)[1]
    fitted, held_out = (position_moments(encode_planted, [view_batch(seed)], grid=GRID) for seed in (8, 9))
    assert position_r2(fitted, held_out) > 0.9
    assert position_r2(fitted, held_out, matrix=removed) < 0.05
    tokens, truth = encode_planted(view_batch(8)).flatten(0, 1).double() @ removed, colors(view_batch(8)).flatten(0, 1)
    for color in (truth - truth.mean(dim=0)).double().T:
        centered = tokens - tokens.mean(dim=0)
        told = centered @ torch.linalg.lstsq(centered, color, driver="gelsd").solution
        assert 1 - float((told - color).square().mean() / color.square().mean()) > 0.9


def test_trained_planes_are_at_right_angles() -> None:
    """A plane lies in what the planes before it left, so that all are removed by one projection."""
    weights, removed = train(planes=3)
    for first in range(3):
        for second in range(first):
            assert float((weights[first] @ weights[second].T).abs().max()) < 1e-5
    torch.testing.assert_close(removed @ removed, removed, atol=1e-6, rtol=0)


def test_nothing_but_the_plane_is_given_gradients() -> None:
    """An encoder with parameters comes out of the training without a gradient."""
    scale = torch.nn.Parameter(torch.ones(()))
    settings = RasaSettings(epochs=1, batch=16, px=PX)
    identity = torch.eye(DIM, dtype=torch.float64)
    train_plane(
        lambda images: encode_planted(images) * scale,
        Noise(),
        plane=0,
        removed=identity,
        settings=settings,
        grid=GRID,
        workers=0,
    )
    assert scale.grad is None


def test_plane_is_a_function_of_its_seed() -> None:
    """The same seed gives the same weights to the bit, another one others."""
    first, again, other = (train(planes=1, seed=seed)[0][0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 4))
def test_epochs_are_planned_without_an_incomplete_batch(images: int, batch: int, epochs: int) -> None:
    """Every epoch sees whole batches of different images, in an order of its own."""
    planned = plan_batches(images, plane=0, settings=RasaSettings(epochs=epochs, batch=batch))
    size = min(batch, images)
    assert len(planned) == epochs * (images // size)
    for epoch in range(epochs):
        seen = [index for number, indices in planned if number == epoch for index in indices]
        assert len(seen) == len(set(seen)) == images // size * size
        assert set(seen) <= set(range(images))


def test_views_are_crops_of_the_size_asked_for() -> None:
    """Bytes of px × px, turned ones with black corners among them; the same draw gives the same view."""
    views = [make_view(Noise().read(0), px=PX, generator=np.random.default_rng(seed)) for seed in range(40)]
    assert {view.shape for view in views} == {(PX, PX, 3)}
    assert {view.dtype for view in views} == {np.dtype(np.uint8)}
    turned = [view for view in views if (view[0, 0] == 0).all() or (view[-1, 0] == 0).all()]
    assert 5 < len(turned) < 35
    assert np.array_equal(views[3], make_view(Noise().read(0), px=PX, generator=np.random.default_rng(3)))
