"""Projection heads equal naive ones in float64, with upstream's names, parameter counts and quirks."""

import dataclasses
import math

import pytest
import torch
from recipes import make_recipe
from test_vit import published
from torch import Tensor

from franca.config import ConfigError, Head, Quirks
from franca.models.heads import ProjectionHead, make_head
from franca.models.vit import VisionTransformer

HEAD = Head(prototypes=16, hidden=12, bottleneck=6, layers=3)
NESTING = (2, 4, 8)
QUIRKS = make_recipe().quirks


def make_tiny_head(*, nesting: tuple[int, ...] = (), seed: int = 0, **quirks: bool) -> ProjectionHead:
    """A head on 8 dimensions in float64 whose every parameter is random."""
    head = make_head(HEAD, embed_dim=8, nesting=nesting, quirks=dataclasses.replace(QUIRKS, **quirks)).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return head


def make_tokens(n: int = 5) -> Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def naive_logits(x: Tensor, layers: dict[str, Tensor], *, unnormalized: bool) -> Tensor:
    """One level's logits of one token: three linear layers, and the cosine with each prototype times its length."""
    for index in (0, 2, 4):
        x = layers[f"mlp.{index}.weight"] @ x + layers[f"mlp.{index}.bias"]
        if index < 4 or unnormalized:
            x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    if not unnormalized:
        x = x / x.square().sum().sqrt()
    v, g = layers["last.weight_v"], layers["last.weight_g"]
    return torch.stack([g[j, 0] * (v[j] @ x) / v[j].square().sum().sqrt() for j in range(len(v))])


def level_parameters(head: ProjectionHead, level: int) -> dict[str, Tensor]:
    """The parameters of one level of a Matryoshka head under the names of a plain one."""
    return {
        name.replace(f"mlps.{level}.", "mlp.").replace(f"last_layers.{level}.", "last."): value
        for name, value in head.named_parameters()
        if f".{level}." in name
    }


@pytest.mark.parametrize("unnormalized", [False, True])
def test_a_plain_head_equals_the_naive_one(unnormalized: bool) -> None:
    """DINO's head is one level: MLP, unit length (or, as the quirk has it, a GELU), prototypes."""
    head = make_tiny_head(head_unnormalized=unnormalized)
    layers = {name.replace("last_layer.", "last."): value for name, value in head.named_parameters()}
    tokens = make_tokens()
    (logits,) = head(tokens)
    for row, token in zip(logits, tokens, strict=True):
        torch.testing.assert_close(row, naive_logits(token, layers, unnormalized=unnormalized))


@pytest.mark.parametrize("unnormalized", [False, True])
@pytest.mark.parametrize("full_input", [False, True])
def test_a_matryoshka_head_equals_the_naive_one(unnormalized: bool, full_input: bool) -> None:
    """Each level projects its first dimensions (or, as the quirk has it, all) and has its share of the prototypes."""
    head = make_tiny_head(nesting=NESTING, head_unnormalized=unnormalized, matryoshka_full_input=full_input)
    tokens = make_tokens()
    levels = head(tokens)
    assert [logits.shape[1] for logits in levels] == [4, 8, 16]
    for level, (logits, width) in enumerate(zip(levels, NESTING, strict=True)):
        projection = head.matryoshka_projections[level]
        for row, token in zip(logits, tokens, strict=True):
            projected = projection.weight @ token[: 8 if full_input else width] + projection.bias
            parameters = level_parameters(head, level)
            torch.testing.assert_close(row, naive_logits(projected, parameters, unnormalized=unnormalized))


@pytest.mark.parametrize(("full_input", "seen"), [(False, NESTING), (True, (8, 8, 8))])
def test_a_level_sees_its_first_dimensions_alone(full_input: bool, seen: tuple[int, ...]) -> None:
    """No gradient of a level reaches the dimensions beyond its width; under the quirk it reaches all."""
    head = make_tiny_head(nesting=NESTING, matryoshka_full_input=full_input)
    for level, width in enumerate(seen):
        tokens = make_tokens().requires_grad_()
        head(tokens)[level].square().sum().backward()
        assert tokens.grad is not None
        assert tokens.grad[:, :width].all()
        assert not tokens.grad[:, width:].any()


def test_logits_of_a_normalized_head_are_cosines() -> None:
    """With prototypes of length one, logits lie within -1 and 1, and equal the cosine of bottleneck and prototype."""
    head = make_tiny_head()
    torch.nn.init.ones_(head.last_layer.weight_g)
    tokens = make_tokens()
    cosine = torch.nn.functional.cosine_similarity(head.mlp(tokens)[:, None], head.last_layer.weight_v[None], dim=-1)
    torch.testing.assert_close(head(tokens)[0], cosine)


def test_gradients_of_a_head_are_exact() -> None:
    """Finite differences agree for every parameter of the prototypes and the input."""
    head = make_tiny_head(nesting=NESTING)
    layer = head.last_layers[0]
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()

    def logits(x: Tensor, g: Tensor, v: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight_g": g, "weight_v": v}, (x,))

    assert torch.autograd.gradcheck(logits, (x, layer.weight_g, layer.weight_v))


@pytest.mark.parametrize(
    ("dim", "depth", "heads", "nested", "parameters"),
    [
        (768, 12, 12, False, 182_740_096),
        (1024, 24, 16, False, 401_705_856),
        (768, 12, 12, True, 305_699_360),
        (1024, 24, 16, True, 527_426_816),
        (1536, 40, 24, True, 1_367_687_104),
    ],
)
def test_published_trainable_parameters_are_met(
    dim: int, depth: int, heads: int, nested: bool, parameters: int
) -> None:
    """Backbone and both heads have exactly the trainable parameters of DINOv2-B, L and Franca-B, L, G as coded."""
    nesting = tuple(dim // share for share in (16, 8, 4, 2, 1)) if nested else ()
    quirks = Quirks(matryoshka_full_input=nested, head_unnormalized=nested)
    with torch.device("meta"):
        modules = [VisionTransformer(published(dim, depth, heads), grid=16)]
        for bottleneck in (384, 256):
            head = Head(prototypes=131_072, hidden=2048, bottleneck=bottleneck, layers=3)
            modules.append(make_head(head, embed_dim=dim, nesting=nesting, quirks=quirks))
    assert sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad) == parameters


def test_names_are_upstreams() -> None:
    """Parameters have the names that dinov2's and Franca's heads give them."""
    linear = ("weight", "bias")
    plain = {f"mlp.{i}.{kind}" for i in (0, 2, 4) for kind in linear}
    assert set(make_tiny_head().state_dict()) == plain | {"last_layer.weight_g", "last_layer.weight_v"}
    nested = {f"mlps.{level}.{i}.{kind}" for level in range(3) for i in (0, 2, 4) for kind in linear}
    nested |= {f"matryoshka_projections.{level}.{kind}" for level in range(3) for kind in linear}
    nested |= {f"last_layers.{level}.weight_{part}" for level in range(3) for part in "gv"}
    assert set(make_tiny_head(nesting=NESTING).state_dict()) == nested


@pytest.mark.parametrize("nesting", [(), NESTING])
def test_last_layers_are_the_prototypes_of_every_level(nesting: tuple[int, ...]) -> None:
    """What a trainer freezes at first is one layer a level, and holds all prototypes."""
    layers = make_tiny_head(nesting=nesting).last_layers
    assert [layer.weight_v.shape[0] for layer in layers] == ([4, 8, 16] if nesting else [16])


@pytest.mark.parametrize("nesting", [(), NESTING])
def test_init_weights_gives_every_value_and_repeats(nesting: tuple[int, ...]) -> None:
    """Made on the meta device and filled with NaN, no parameter is forgotten; prototypes have length one."""
    with torch.device("meta"):
        head = make_head(HEAD, embed_dim=8, nesting=nesting, quirks=QUIRKS)
    head.to_empty(device="cpu")
    states = []
    for seed in (0, 0, 1):
        for parameter in head.parameters():
            parameter.data.fill_(torch.nan)
        head.init_weights(torch.Generator().manual_seed(seed))
        states.append([parameter.clone() for parameter in head.parameters()])
    assert all(value.isfinite().all() for value in states[0])
    assert all(map(torch.equal, states[0], states[1]))
    assert not all(map(torch.equal, states[0], states[2]))
    assert all((layer.weight_g == 1).all() for layer in head.last_layers)
    assert all(layer.weight_v.abs().max() <= 6**-0.5 for layer in head.last_layers)


def test_a_nesting_wider_than_the_backbone_is_refused() -> None:
    """A level cannot take more dimensions than there are."""
    with pytest.raises(ConfigError, match=r"heads\.nesting: 16 is more than model\.embed_dim, 8"):
        make_head(HEAD, embed_dim=8, nesting=(8, 16), quirks=QUIRKS)
