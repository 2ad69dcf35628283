"""How well patch tokens tell where a patch lies: an encoder and images in, R² of a linear prediction out.

A ridge regression in closed form, fitted to some images and judged on others. All that it needs are second moments, so
that tokens are seen once, whatever is then projected out of them.

Letters: n images, p patches of an image, d embedding dimensions.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from franca.evaluate.subject import EncodePatches

RIDGE = 1e-4  # of the mean variance of a dimension: keeps dimensions without variance out


@dataclass(frozen=True)
class Moments:
    """Means and second moments, about zero, of patch tokens beside their position: d + 2 numbers, in float64."""

    mean: Float[Tensor, "z"]
    products: Float[Tensor, "z z"]


def patch_positions(grid: int, *, device: torch.device) -> Float[Tensor, "p 2"]:
    """Row and column of each patch of a square of `grid` × `grid`, in 0..1 (Franca, RASA)."""
    steps = torch.arange(grid, device=device) / max(grid - 1, 1)
    return torch.cartesian_prod(steps, steps)


def position_moments(encode: EncodePatches, batches: Iterable[UInt8[Tensor, "_ px px 3"]], *, grid: int) -> Moments:
    """Moments of all patches of some images."""
    total, products, count = torch.zeros(0), torch.zeros(0), 0
    for images in batches:
        patches = encode(images).double()
        positions = patch_positions(grid, device=patches.device).expand(len(patches), -1, -1)
        pairs = torch.cat([patches, positions], dim=2).flatten(0, 1)
        if not count:
            total, products = pairs.new_zeros(pairs.shape[1]), pairs.new_zeros(pairs.shape[1], pairs.shape[1])
        total += pairs.sum(dim=0)
        products += pairs.T @ pairs
        count += len(pairs)
    return Moments((total / count).cpu(), (products / count).cpu())


def position_r2(fitted: Moments, held_out: Moments, *, matrix: Float[Tensor, "d d"] | None = None) -> float:
    """The share of the variance of rows and columns that tokens @ `matrix` explain on held-out images.

    1 where a linear map tells the position exactly, 0 where it does no better than the mean, less where it misleads.
    """
    dim = len(fitted.mean) - 2
    matrix = torch.eye(dim, dtype=torch.float64) if matrix is None else matrix.double().cpu()
    covariance = fitted.products - torch.outer(fitted.mean, fitted.mean)
    ridge = RIDGE * covariance[:dim, :dim].diagonal().mean() * torch.eye(dim, dtype=torch.float64)
    weights = torch.linalg.solve(matrix.T @ covariance[:dim, :dim] @ matrix + ridge, matrix.T @ covariance[:dim, dim:])
    residual = torch.cat([-matrix @ weights, torch.eye(2, dtype=torch.float64)])  # of a token and its position
    offset = residual.T @ fitted.mean  # what the fitted map leaves at the mean
    left = residual.T @ held_out.products @ residual - torch.outer(residual.T @ held_out.mean, offset)
    left = left - torch.outer(offset, residual.T @ held_out.mean) + torch.outer(offset, offset)
    variance = held_out.products[dim:, dim:].diagonal() - held_out.mean[dim:].square()
    return float(1 - (left.diagonal() / variance).mean())
