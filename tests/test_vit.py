"""The vision transformer equals a naive one in float64, packed or not, and has upstream's names, counts and values."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recipes import make_recipe
from torch import Tensor

from franca.config import ConfigError, Model
from franca.models.layers import SwiGLU, add_on_subsets, draw_subsets, interpolate_positions
from franca.models.vit import Features, VisionTransformer

MODEL = dataclasses.replace(make_recipe().model, embed_dim=12, heads=2, layerscale=0.7)


def make_vit(*, grid: int = 3, seed: int = 0, **changes: object) -> VisionTransformer:
    """A tiny model in float64 whose every parameter is random, so that no term hides behind a zero."""
    vit = VisionTransformer(dataclasses.replace(MODEL, **changes), grid=grid).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return vit


def make_images(*sizes: tuple[int, int, int], seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, height, width, generator=generator, dtype=torch.float64) for n, height, width in sizes]


def naive_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.stack([(t - t.mean()) / (t.var(correction=0) + 1e-6).sqrt() * weight + bias for t in x])


def naive_vit(vit: VisionTransformer, image: Tensor, mask: Tensor | None) -> Tensor:
    """Normalized tokens of one image, straight from the formulas and the parameters' names."""
    p = dict(vit.named_parameters())
    px, heads = vit.model.patch_px, vit.model.heads
    rows, columns = image.shape[1] // px, image.shape[2] // px
    kernel, bias = p["patch_embed.proj.weight"].flatten(1), p["patch_embed.proj.bias"]
    squares = [image[:, r * px : (r + 1) * px, c * px : (c + 1) * px] for r in range(rows) for c in range(columns)]
    patches = [kernel @ square.flatten() + bias for square in squares]
    if mask is not None:
        patches = [p["mask_token"][0] if hidden else patch for patch, hidden in zip(patches, mask, strict=True)]
    positions = naive_positions(p["pos_embed"], rows, columns, vit.model.interpolate_offset)
    tokens = [p["cls_token"][0, 0] + positions[0]]
    if "register_tokens" in p:
        tokens += list(p["register_tokens"][0])
    x = torch.stack(tokens + [patch + position for patch, position in zip(patches, positions[1:], strict=True)])
    for i in range(vit.model.depth):
        b = {name.removeprefix(f"blocks.{i}."): value for name, value in p.items() if name.startswith(f"blocks.{i}.")}
        y = naive_norm(x, b["norm1.weight"], b["norm1.bias"]) @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]
        attended = []
        for q, k, v in zip(*(part.chunk(heads, dim=1) for part in y.chunk(3, dim=1)), strict=True):
            attended.append((q @ k.T / math.sqrt(q.shape[1])).softmax(1) @ v)
        y = torch.cat(attended, dim=1) @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        x = x + y * b["ls1.gamma"]
        y = naive_norm(x, b["norm2.weight"], b["norm2.bias"])
        if vit.model.ffn == "mlp":
            y = y @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]
            y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
            y = y @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
        else:
            gate, value = (y @ b["mlp.w12.weight"].T + b["mlp.w12.bias"]).chunk(2, dim=1)
            y = (gate * gate.sigmoid() * value) @ b["mlp.w3.weight"].T + b["mlp.w3.bias"]
        x = x + y * b["ls2.gamma"]
    return naive_norm(x, p["norm.weight"], p["norm.bias"])


def naive_positions(positions: Tensor, rows: int, columns: int, offset: float) -> Tensor:
    """Bicubic resampling (a = -0.75, border repeated) with a scale of (size + offset) / grid."""
    grid = math.isqrt(positions.shape[1] - 1)
    if rows == columns == grid:
        return positions[0]
    image = positions[0, 1:].unflatten(0, (grid, grid))

    def taps(i: int, size: int) -> list[tuple[int, float]]:
        source = (i + 0.5) * grid / (size + offset) - 0.5
        first = math.floor(source)
        result = []
        for tap in range(first - 1, first + 3):
            x = abs(source - tap)
            near = (1.25 * x - 2.25) * x * x + 1
            far = ((-0.75 * x + 3.75) * x - 6.0) * x + 3.0
            result.append((min(max(tap, 0), grid - 1), near if x <= 1 else far))
        return result

    resampled = [
        sum(wr * wc * image[r, c] for r, wr in taps(row, rows) for c, wc in taps(column, columns))
        for row in range(rows)
        for column in range(columns)
    ]
    return torch.stack([positions[0, 0], *resampled])


def tokens_of(features: Features) -> Tensor:
    return torch.cat([features.cls.unsqueeze(1), features.registers, features.patches], dim=1)


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_packed_forward_equals_the_naive_model(ffn: str, registers: int, offset: float) -> None:
    """Masked global crops and local crops of other shapes in one forward equal each image computed alone.

    So do the gradients of a random combination of all features, in every parameter.
    """
    vit = make_vit(ffn=ffn, registers=registers, interpolate_offset=offset)
    crops = make_images((3, 12, 12), (2, 8, 8), (2, 4, 16))
    masks = torch.rand(3, 9, generator=torch.Generator().manual_seed(2)) > 0.5
    packed = [tokens for features in vit.forward_packed(crops, masks) for tokens in tokens_of(features)]
    every_mask = [*masks, *[None] * 4]
    images = [image for part in crops for image in part]
    naive = [naive_vit(vit, image, mask) for image, mask in zip(images, every_mask, strict=True)]
    torch.testing.assert_close(packed, naive)
    weights = [torch.randn(tokens.shape, generator=torch.Generator().manual_seed(3)) for tokens in naive]
    gradients = [
        torch.autograd.grad(sum((w * t).sum() for w, t in zip(weights, tokens, strict=True)), list(vit.parameters()))
        for tokens in (packed, naive)
    ]
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("training", [False, True])
def test_autocast_loses_no_more_than_its_rounding(training: bool) -> None:
    """Under bfloat16 the stream stays in float32, dropped paths or not, and features are near those of float32."""
    vit = make_vit(drop_path=0.5, registers=1).float().train(training)
    vit.init_weights(torch.Generator().manual_seed(0))
    crops = [images.float() for images in make_images((4, 12, 12), (6, 8, 8))]
    masks = torch.rand(4, 9, generator=torch.Generator().manual_seed(2)) > 0.5
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            features = vit.forward_packed(crops, masks, generator=torch.Generator().manual_seed(0))
        results.append([tokens_of(part) for part in features])
    assert all(tokens.dtype == torch.float32 for tokens in results[1])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0.05)


@given(
    globals_=st.integers(1, 3), locals_=st.integers(1, 4), local=st.sampled_from([4, 8, 16]), seed=st.integers(0, 99)
)
def test_packed_equals_unpacked(globals_: int, locals_: int, local: int, seed: int) -> None:
    """Packing changes nothing: each array of crops gives what it gives alone."""
    vit = make_vit(seed=seed)
    crops = make_images((globals_, 12, 12), (locals_, local, local), seed=seed)
    for images, packed in zip(crops, vit.forward_packed(crops, None), strict=True):
        torch.testing.assert_close(tokens_of(packed), tokens_of(vit(images)))


def test_images_permuted_give_features_permuted() -> None:
    """No image of a batch sees another."""
    vit = make_vit()
    (images,) = make_images((4, 12, 12))
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(tokens_of(vit(images[order])), tokens_of(vit(images))[order])


def test_pixels_under_the_mask_are_not_seen() -> None:
    """Whatever lies under masked patches, the features are the same; one unmasked pixel changes them."""
    vit = make_vit()
    (images,) = make_images((1, 12, 12))
    masks = torch.tensor([[True] * 4 + [False] * 5])
    changed = images.clone()
    changed[:, :, :4] = 9.0  # the first row of patches: the first three
    (before,), (after,) = vit.forward_packed([images], masks), vit.forward_packed([changed], masks)
    torch.testing.assert_close(tokens_of(after), tokens_of(before))
    changed[:, :, 11, 11] += 1
    assert not torch.allclose(vit.forward_packed([changed], masks)[0].cls, before.cls)


@given(grid=st.integers(1, 6), rows=st.integers(1, 9), columns=st.integers(1, 9), offset=st.sampled_from([0.0, 0.1]))
def test_positions_equal_the_naive_resampling(grid: int, rows: int, columns: int, offset: float) -> None:
    """Positions of any grid become those of any crop, by the scale that dinov2's offset makes."""
    positions = torch.randn(1, 1 + grid * grid, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    resampled = interpolate_positions(positions, rows=rows, columns=columns, offset=offset)
    torch.testing.assert_close(resampled[0], naive_positions(positions, rows, columns, offset))


def test_positions_of_half_precision_are_resampled_in_single() -> None:
    """bfloat16 positions lose only the rounding of the result."""
    positions = torch.randn(1, 10, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    resampled = interpolate_positions(positions, rows=2, columns=5, offset=0.1)
    assert resampled.dtype == torch.bfloat16
    wide = interpolate_positions(positions.float(), rows=2, columns=5, offset=0.1)
    assert torch.equal(resampled, wide.bfloat16())


def antialiased(size: int, grid: int) -> Tensor:
    """Weights [size, grid] of a bicubic kernel (a = -0.5) that is widened where the grid shrinks, as Pillow's is."""
    scale = grid / size
    width = max(scale, 1.0)
    rows = []
    for i in range(size):
        distances = [abs((source + 0.5 - (i + 0.5) * scale) / width) for source in range(grid)]
        taps = [
            (1.5 * x - 2.5) * x * x + 1 if x < 1 else ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0
            for x in distances
        ]
        rows.append(torch.tensor(taps, dtype=torch.float64) / sum(taps))
    return torch.stack(rows)


@given(grid=st.integers(1, 7), rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_positions_of_models_with_registers_are_resampled_antialiased(grid: int, rows: int, columns: int) -> None:
    """`interpolate_antialias` resamples as an image is resized, each axis by weights that sum to one."""
    if rows == columns == grid:
        return
    model = make_vit(grid=grid, interpolate_offset=0.0, interpolate_antialias=True)
    image = model.pos_embed[0, 1:].unflatten(0, (grid, grid))
    expected = torch.einsum("ri,cj,ijd->rcd", antialiased(rows, grid), antialiased(columns, grid), image)
    crop = torch.zeros(1, 3, rows * 4, columns * 4, dtype=torch.float64)
    embedded = model._embed(crop, None)[0, 1:] - model.patch_embed.proj.bias
    torch.testing.assert_close(embedded, expected.flatten(0, 1))


@pytest.mark.parametrize("registers", [0, 2])
def test_intermediate_features_are_those_of_a_shorter_model(registers: int) -> None:
    """The features of an inner block are what the model gives when all later blocks are taken away."""
    vit = make_vit(depth=3, registers=registers, drop_path=0.5).train()
    images = make_images((2, 8, 12))[0]
    features = vit.intermediate_features(images, blocks=3)
    for depth, found in enumerate(features, start=1):
        shorter = make_vit(depth=depth, registers=registers)
        weights = {name: value for name, value in vit.state_dict().items() if name in shorter.state_dict()}
        shorter.load_state_dict(weights)
        torch.testing.assert_close(tokens_of(found), tokens_of(shorter(images)))
    assert torch.equal(tokens_of(vit.intermediate_features(images, blocks=1)[0]), tokens_of(features[2]))


def published(dim: int, depth: int, heads: int) -> Model:
    return Model(
        patch_px=14,
        embed_dim=dim,
        depth=depth,
        heads=heads,
        ffn="swiglu",
        ffn_ratio=4.0,
        registers=0,
        layerscale=1e-5,
        drop_path=0.4,
        interpolate_offset=0.1,
    )


@pytest.mark.parametrize(
    ("dim", "depth", "heads", "hidden", "parameters"),
    [
        (768, 12, 12, 2048, 85_737_984),
        (1024, 24, 16, 2736, 303_655_168),
        (1536, 40, 24, 4096, 1_134_771_200),
    ],
)
def test_published_sizes_are_met(dim: int, depth: int, heads: int, hidden: int, parameters: int) -> None:
    """ViT-B, L and g at 224 px have exactly upstream's parameters and SwiGLU widths, counted on the meta device."""
    with torch.device("meta"):
        vit = VisionTransformer(published(dim, depth, heads), grid=16)
    assert sum(parameter.numel() for parameter in vit.parameters()) == parameters
    assert vit.blocks[0].mlp.w3.in_features == hidden


def test_swiglu_rounds_its_width_up_to_eight() -> None:
    """Two thirds of the hidden width, rounded up: 48 dimensions at ratio 4 have 128, 50 have 136."""
    assert SwiGLU(48, hidden=192).w3.in_features == 128
    assert SwiGLU(50, hidden=200).w3.in_features == 136


def test_names_are_upstreams() -> None:
    """Parameters have the names that dinov2 and Franca give them; there is no buffer beside them."""
    block = {f"{name}.{kind}" for name in ("norm1", "attn.qkv", "attn.proj", "norm2") for kind in ("weight", "bias")}
    block |= {"ls1.gamma", "ls2.gamma"}
    other = {"cls_token", "pos_embed", "mask_token", "register_tokens", "norm.weight", "norm.bias"}
    other |= {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    for ffn, layers in (("mlp", ("fc1", "fc2")), ("swiglu", ("w12", "w3"))):
        ffns = {f"mlp.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
        vit = VisionTransformer(dataclasses.replace(MODEL, ffn=ffn, registers=1, depth=1), grid=2)
        assert set(vit.state_dict()) == other | {f"blocks.0.{name}" for name in block | ffns}


def test_init_weights_gives_every_value_and_repeats() -> None:
    """Made on the meta device and filled with NaN, no parameter is forgotten; one seed makes one model."""
    with torch.device("meta"):
        vit = VisionTransformer(dataclasses.replace(MODEL, registers=2), grid=3)
    vit.to_empty(device="cpu")
    states = []
    for seed in (0, 0, 1):
        for parameter in vit.parameters():
            parameter.data.fill_(torch.nan)
        vit.init_weights(torch.Generator().manual_seed(seed))
        states.append({name: value.clone() for name, value in vit.state_dict().items()})
    assert all(value.isfinite().all() for value in states[0].values())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["pos_embed"], states[2]["pos_embed"])


def test_first_values_are_dinov2s() -> None:
    """Weights have a deviation of 0.02, biases and the mask token are zero, LayerScale starts at its setting."""
    vit = VisionTransformer(dataclasses.replace(MODEL, embed_dim=96, layerscale=1e-5), grid=16)
    vit.init_weights(torch.Generator().manual_seed(0))
    state = vit.state_dict()
    for name in ("pos_embed", "blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.weight"):
        assert state[name].std().item() == pytest.approx(0.02, rel=0.02)
    kernel = state["patch_embed.proj.weight"]
    assert kernel.abs().max() <= 48**-0.5
    assert kernel.std().item() == pytest.approx((3 * 48) ** -0.5, rel=0.05)
    assert state["cls_token"].abs().max() < 1e-5
    assert not state["mask_token"].any()
    assert not state["blocks.0.attn.qkv.bias"].any()
    assert torch.equal(state["blocks.0.ls1.gamma"], torch.full((96,), 1e-5))


@given(sequences=st.integers(1, 12), rate=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_a_subset_has_the_share_that_is_kept(sequences: int, rate: float, seed: int) -> None:
    """Of n sequences int(n (1 - rate)) are kept, at least one, none twice; one seed draws one subset."""
    draws = [
        draw_subsets(
            ((sequences, 5), (3, 2)),
            rate=rate,
            generator=torch.Generator().manual_seed(seed),
            device=torch.device("cpu"),
        )
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))
    chosen = draws[0][0].tolist()
    assert len(set(chosen)) == len(chosen) == max(int(sequences * (1 - rate)), 1)
    assert all(0 <= index < sequences for index in chosen)


def test_a_residual_on_subsets_equals_the_naive_loop() -> None:
    """A kept sequence gets its residual times n / kept, the others stay as they are; gradients flow through both."""
    groups, subsets = ((3, 2), (4, 1)), (torch.tensor([2, 0]), torch.tensor([1]))
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    branches = []

    def branch(part: Tensor, kept: tuple[tuple[int, int], ...]) -> Tensor:
        branches.append(kept)
        return part.square()

    scale = torch.zeros(10, 1, dtype=torch.float64)
    scale[0:2] = scale[4:6] = 3 / 2
    scale[7] = 4 / 1
    result = add_on_subsets(x, branch, groups=groups, subsets=subsets)
    torch.testing.assert_close(result, x + scale * x.square())
    assert branches == [((2, 2), (1, 1))]
    assert torch.autograd.gradcheck(lambda t: add_on_subsets(t, branch, groups=groups, subsets=subsets), x)


def test_stochastic_depth_keeps_the_mean_and_is_off_in_evaluation() -> None:
    """In evaluation nothing is dropped; in training the draw decides, and its mean over draws is what evaluation gives.

    With one block whose feed-forward is silent the stream is linear in the residual, so the means must agree.
    """
    vit = make_vit(depth=1, drop_path=0.5, layerscale=0.1)
    vit.norm = torch.nn.Identity()
    torch.nn.init.zeros_(vit.blocks[0].ls2.gamma)
    crops = make_images((4, 12, 12), (6, 8, 8))
    vit.eval()
    expected = [tokens_of(features) for features in vit.forward_packed(crops, None)]
    vit.train()
    generator = torch.Generator().manual_seed(0)
    draws = [[tokens_of(f) for f in vit.forward_packed(crops, None, generator=generator)] for _ in range(400)]
    for i, evaluated in enumerate(expected):
        drawn = torch.stack([draw[i] for draw in draws])
        error = drawn.std(0) / 20  # the mean of 400 draws
        assert ((drawn.mean(0) - evaluated).abs() <= 5 * error + 1e-12).all()
        assert drawn.std(0).max() > 0
    again = vit.forward_packed(crops, None, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tokens_of(again[0]), draws[0][0])


def test_a_model_that_cannot_be_built_is_refused() -> None:
    """Heads that do not divide the dimensions and unknown attention are named by their keys."""
    with pytest.raises(ConfigError, match=r"model\.heads: 5 does not divide model\.embed_dim, 12"):
        VisionTransformer(dataclasses.replace(MODEL, heads=5), grid=3)
    with pytest.raises(ConfigError, match="attention: 'flash' is not one of sdpa, xformers, varlen"):
        VisionTransformer(MODEL, grid=3, attention="flash")


def test_a_crop_that_is_no_multiple_of_the_patch_is_refused() -> None:
    """Pixels at the border are not dropped in silence."""
    with pytest.raises(ValueError, match="14 × 12 px cannot be cut into patches of 4 px"):
        make_vit()(make_images((1, 14, 12))[0])
