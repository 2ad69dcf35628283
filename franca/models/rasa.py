"""RASA, removal of absolute spatial attributes: patch tokens in, the same tokens without what tells their position out.

A head is a sequence of planes. Each is spanned by the two weight vectors of a linear map that was trained to tell a
patch's row and column from what the planes before it left (Franca, section 3.3 and appendix B). Parameters have
upstream's names (valeoai/Franca rasa/src/rasa_head.py@24f8c60), so that released heads load as they are; all but the
last plane are `pre_pos_layers`, the last is `pos_pred`.

Letters: t planes, d embedding dimensions, p patches of an image.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from franca.models.weights import WeightsError, load_weights

PARALLEL = 1e-6  # sine of the angle under which two weight vectors span a line, not a plane


class RasaHead(nn.Module):
    """`planes` planes of a space of `dim` dimensions. `__init__` makes shapes, `init_weights` makes values."""

    def __init__(self, dim: int, *, planes: int):
        super().__init__()
        if planes < 1:
            raise ValueError(f"a RASA head of {planes} planes: it needs one at least")
        self.pre_pos_layers = nn.ModuleList([nn.Linear(dim, 2, bias=False) for _ in range(planes - 1)])
        self.pos_pred = nn.Linear(dim, 2, bias=False)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Give every weight its first value, uniform within ±1/√d (torch's own for a linear layer, as upstream's)."""
        for layer in (*self.pre_pos_layers, self.pos_pred):
            bound = layer.weight.shape[1] ** -0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)

    @property
    def planes(self) -> list[Float[Tensor, "2 d"]]:
        """The weights that span each plane, in the order of their removal."""
        return [layer.weight for layer in (*self.pre_pos_layers, self.pos_pred)]

    def forward(self, patches: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Patch tokens less their projections onto each plane, one plane after the other."""
        for weight in self.planes:
            patches = remove_plane(patches, weight)
        return patches

    def predict_positions(self, patches: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 2"]:
        """Row and column, in 0..1, told by the last plane from what the planes before it leave."""
        for weight in self.planes[:-1]:
            patches = remove_plane(patches, weight)
        return self.pos_pred(patches).sigmoid()

    @torch.no_grad()
    def fold(self) -> Float[Tensor, "d d"]:
        """The whole head as one matrix in float64, to be multiplied from the right: `patches @ head.fold()`."""
        matrix = torch.eye(self.pos_pred.weight.shape[1], dtype=torch.float64, device=self.pos_pred.weight.device)
        for weight in self.planes:
            matrix = remove_plane(matrix, weight.double())
        return matrix


def remove_plane(patches: Float[Tensor, "*batch d"], weight: Float[Tensor, "2 d"]) -> Float[Tensor, "*batch d"]:
    """Vectors less their projection onto the plane of two weight vectors: z - <z, u>u - <z, v>v."""
    basis = orthonormal_plane(weight)
    return patches - (patches @ basis.T) @ basis


def orthonormal_plane(weight: Float[Tensor, "2 d"]) -> Float[Tensor, "2 d"]:
    """Orthonormal vectors u, v of the plane that two vectors span, by Gram-Schmidt; v is zero where they are parallel.

    The second step is taken twice: once leaves of a sharp angle what rounding leaves of it.
    """
    first, second = nn.functional.normalize(weight, dim=1)
    rest = second - (second @ first) * first
    rest = rest - (rest @ first) * first
    length = rest.norm()
    scale = torch.where(length > PARALLEL, 1 / length.clamp_min(PARALLEL), torch.zeros_like(length))
    return torch.stack([first, rest * scale])


def load_rasa_head(path: Path, *, dim: int) -> RasaHead:
    """A trained or released head, on the CPU, in evaluation mode. The number of planes is the file's.

    Names may have upstream's prefixes. In a file that holds a backbone as well, the tensors named `rasa_head.` are
    taken; those of a checkpoint from pretraining were never trained. Raises `WeightsError` on a file that is not a
    head, not whole, or of another width than `dim`.
    """
    tensors = _rename_head(load_weights(path))
    layers = [name for name in tensors if name.startswith("pre_pos_layers.")]
    expected = {*(f"pre_pos_layers.{i}.weight" for i in range(len(layers))), "pos_pred.weight"}
    if set(tensors) != expected:
        wrong = ", ".join(sorted(set(tensors) ^ expected)[:8])
        raise WeightsError(f"{path}: not a RASA head, which has pre_pos_layers.0… and pos_pred; it differs in {wrong}")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.shape != (2, dim)}
    if shapes:
        name, shape = min(shapes.items())
        raise WeightsError(f"{path}: {name} is {shape} for (2, {dim}); the head is another backbone's")
    head = RasaHead(dim, planes=len(layers) + 1)
    head.load_state_dict(tensors)
    return head.eval()


def _rename_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head's tensors without the prefixes under which upstream saved them, the others only if none has any."""
    names = {name: name.removeprefix("module.").removeprefix("backbone.") for name in tensors}
    prefixed = {name: bare for name, bare in names.items() if bare.startswith("rasa_head.")}
    return {bare.removeprefix("rasa_head."): tensors[name].float() for name, bare in (prefixed or names).items()}
