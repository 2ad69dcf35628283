"""Projection heads: from a backbone's tokens to logits over prototypes. Parameters have upstream's names.

Letters: n tokens, d embedding dimensions, b bottleneck dimensions, k prototypes.
"""

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from franca.config import ConfigError, Head, Quirks, prototypes_per_level
from franca.distributed import fill


class Prototypes(nn.Module):
    """Logits against k prototypes: a linear layer, without bias, whose rows have learned lengths `weight_g`.

    The lengths start at one and train like any other weight, as upstream's do.
    """

    def __init__(self, bottleneck: int, *, prototypes: int):
        super().__init__()
        self.weight_g = nn.Parameter(torch.empty(prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(prototypes, bottleneck))

    def forward(self, x: Float[Tensor, "n b"]) -> Float[Tensor, "n k"]:
        # The kernel beneath torch's own weight norm: it takes the rows' norms in float32, whatever the weights' dtype
        return F.linear(x, torch._weight_norm(self.weight_v, self.weight_g, 0))


class ProjectionHead(nn.Module):
    """What both heads share: their first values, and the step from the bottlenecks to the prototypes.

    A head is called whole, or in two steps: its bottlenecks are small enough to keep where its logits are not.
    """

    last_layers: nn.ModuleList | tuple[Prototypes, ...]

    def __init__(self, *, normalize: bool):
        super().__init__()
        self.normalize = normalize

    def forward(self, x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n _"], ...]:
        """The logits of each level, narrowest first."""
        # The class's own: what spreads a head over processes wraps both steps, and would gather the head for each
        own = type(self)
        return own.classify(self, own.bottlenecks(self, x))

    def bottlenecks(self, x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n b"], ...]:
        """The first step, of unit length unless the head is of the quirk `head_unnormalized`."""
        raise NotImplementedError

    def classify(self, bottlenecks: tuple[Float[Tensor, "n b"], ...]) -> tuple[Float[Tensor, "n _"], ...]:
        """The second step."""
        return tuple(last(level) for last, level in zip(self.last_layers, bottlenecks, strict=True))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Give every parameter its first value: dinov2 dino_head.py; for prototypes, that of torch's linear layer."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                fill(module.weight, nn.init.trunc_normal_, std=0.02, generator=generator)
                fill(module.bias, nn.init.zeros_)
            elif isinstance(module, Prototypes):
                bound = module.weight_v.shape[1] ** -0.5
                fill(module.weight_v, nn.init.uniform_, a=-bound, b=bound, generator=generator)
                fill(module.weight_g, nn.init.ones_)

    def _normalized(self, bottleneck: Float[Tensor, "n b"]) -> Float[Tensor, "n b"]:
        if not self.normalize:
            return bottleneck
        # dinov2 dino_head.py: float16 cannot hold torch's default, 1e-12
        return F.normalize(bottleneck, dim=-1, eps=1e-6 if bottleneck.dtype == torch.float16 else 1e-12)


class DinoHead(ProjectionHead):
    """One MLP and one set of prototypes."""

    def __init__(self, head: Head, *, embed_dim: int, quirks: Quirks):
        super().__init__(normalize=not quirks.head_unnormalized)
        self.mlp = make_mlp(head, input_dim=embed_dim, quirks=quirks)
        self.last_layer = Prototypes(head.bottleneck, prototypes=head.prototypes)

    @property
    def last_layers(self) -> tuple[Prototypes, ...]:
        return (self.last_layer,)

    def bottlenecks(self, x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n b"], ...]:
        return (self._normalized(self.mlp(x)),)


class MatryoshkaHead(ProjectionHead):
    """One projection, MLP and set of prototypes for each nesting width m, which sees the first m dimensions alone.

    A level has its share m / widest of the prototypes.
    """

    def __init__(self, head: Head, *, embed_dim: int, nesting: tuple[int, ...], quirks: Quirks):
        super().__init__(normalize=not quirks.head_unnormalized)
        if max(nesting) > embed_dim:
            raise ConfigError(f"heads.nesting: {max(nesting)} is more than model.embed_dim, {embed_dim}")
        # QUIRK matryoshka_full_input: every level sees all d dimensions, valeoai/Franca mrl_dino_head.py@24f8c60
        self.inputs = (embed_dim,) * len(nesting) if quirks.matryoshka_full_input else nesting
        self.matryoshka_projections = nn.ModuleList(
            [nn.Linear(seen, width) for seen, width in zip(self.inputs, nesting, strict=True)]
        )
        self.mlps = nn.ModuleList([make_mlp(head, input_dim=width, quirks=quirks) for width in nesting])
        self.last_layers = nn.ModuleList(
            [Prototypes(head.bottleneck, prototypes=count) for count in prototypes_per_level(head, nesting)]
        )

    def bottlenecks(self, x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n b"], ...]:
        levels = zip(self.inputs, self.matryoshka_projections, self.mlps, strict=True)
        return tuple(self._normalized(mlp(project(x[:, :seen]))) for seen, project, mlp in levels)


def make_head(head: Head, *, embed_dim: int, nesting: tuple[int, ...], quirks: Quirks) -> ProjectionHead:
    """The head that a recipe asks for: Matryoshka where it nests. It returns the logits of each level, narrowest first.

    Raises `ConfigError` on a nesting wider than the backbone.
    """
    if nesting:
        return MatryoshkaHead(head, embed_dim=embed_dim, nesting=nesting, quirks=quirks)
    return DinoHead(head, embed_dim=embed_dim, quirks=quirks)


def make_mlp(head: Head, *, input_dim: int, quirks: Quirks) -> nn.Sequential:
    """`head.layers` linear layers down to the bottleneck, GELU between them."""
    widths = [input_dim] + [head.hidden] * (head.layers - 1) + [head.bottleneck]
    modules: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        modules += [nn.Linear(before, after), nn.GELU()]
    # QUIRK head_unnormalized: the GELU after the bottleneck stays, valeoai/Franca mrl_dino_head.py@24f8c60
    return nn.Sequential(*(modules if quirks.head_unnormalized else modules[:-1]))
