"""Pretrained backbones are had by name or path, with the methods and results that users of DINOv2's models expect."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_vit import make_images, make_vit, naive_vit
from test_weights import chunked, prefixed
from torch import Tensor

import franca
from franca.config import ConfigError
from franca.hub import EXPORTED, NAMES, RELEASED, Backbone, describe_model, load
from franca.models.weights import WeightsError

ROOT = Path(__file__).parents[1]


def make_backbone(**changes: object) -> Backbone:
    """The tests' tiny model with DINOv2's methods, in float64."""
    source = make_vit(**changes)
    backbone = Backbone(source.model, grid=3).double()
    backbone.load_state_dict(source.state_dict())
    return backbone.eval()


@pytest.mark.parametrize("registers", [0, 2])
def test_features_have_dinov2s_names_and_the_naive_models_values(registers: int) -> None:
    """Every entry of the dict is the naive model's, normalized where its name says so; masked patches too."""
    backbone = make_backbone(registers=registers)
    images = make_images((2, 12, 12))[0]
    masks = torch.rand(2, 9, generator=torch.Generator().manual_seed(2)) > 0.5
    for mask in (None, masks):
        found = backbone.forward_features(images, mask)
        expected = torch.stack(
            [naive_vit(backbone, x, None if mask is None else mask[i]) for i, x in enumerate(images)]
        )
        torch.testing.assert_close(found["x_norm_clstoken"], expected[:, 0])
        torch.testing.assert_close(found["x_norm_regtokens"], expected[:, 1 : 1 + registers])
        torch.testing.assert_close(found["x_norm_patchtokens"], expected[:, 1 + registers :])
        torch.testing.assert_close(backbone.norm(found["x_prenorm"]), expected)
        assert found["masks"] is mask
    torch.testing.assert_close(backbone(images), backbone.forward_features(images)["x_norm_clstoken"])


@pytest.mark.parametrize("registers", [0, 2])
def test_intermediate_layers_come_as_dinov2s(registers: int) -> None:
    """A number of last blocks or a choice of them, as tokens or as maps, normalized or not, with or without class."""
    backbone = make_backbone(registers=registers, depth=3)
    images = make_images((2, 8, 12))[0]
    features = backbone.intermediate_features(images, blocks=3)
    layers = backbone.get_intermediate_layers(images, n=2)
    assert all(torch.equal(layer, part.patches) for layer, part in zip(layers, features[1:], strict=True))
    chosen = backbone.get_intermediate_layers(images, n=[0, 2], return_class_token=True)
    for (patches, cls), part in zip(chosen, (features[0], features[2]), strict=True):
        assert torch.equal(patches, part.patches)
        assert torch.equal(cls, part.cls)
    (image,) = backbone.get_intermediate_layers(images, reshape=True)
    assert image.shape == (2, 12, 2, 3)
    assert torch.equal(image[:, :, 1, 2], features[2].patches[:, 5])
    (raw,) = backbone.get_intermediate_layers(images, norm=False)
    assert torch.equal(backbone.norm(raw), features[2].patches)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("dinov2_vits14", 22), ("dinov2_vitb14", 86), ("dinov2_vitl14", 304), ("dinov2_vitg14", 1136),
     ("franca_vitb14", 86), ("franca_vitl14", 304), ("franca_vitg14", 1136)],
)  # fmt: skip
def test_named_models_have_the_published_sizes(name: str, millions: int) -> None:
    """DINOv2's model card: 21, 86, 300 and 1,100 million parameters, positions of 37 x 37 patches included."""
    with torch.device("meta"):
        backbone = Backbone(describe_model(name, {}), grid=37)
    assert sum(parameter.numel() for parameter in backbone.parameters()) // 10**6 == millions


def test_every_name_has_an_entry_and_every_release_a_name() -> None:
    """Nothing is released under a model that cannot be loaded."""
    assert {model for model, _ in RELEASED} <= set(NAMES)
    assert len(NAMES) == 7


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Backbone]:
    """ViT-S/14 with random values and the 98 px positions of 7 x 7 patches, as upstream releases its weights."""
    backbone = Backbone(describe_model("dinov2_vits14", {}), grid=7)
    backbone.init_weights(torch.Generator().manual_seed(1))
    path = tmp_path_factory.mktemp("released") / "dinov2_vits14.pth"
    torch.save({"teacher": prefixed("backbone.")(chunked(backbone.state_dict()))}, path)
    return path, backbone.eval()


def test_released_weights_load_by_path(released: tuple[Path, Backbone]) -> None:
    """The model has the file's own grid, or one of the size asked for, with the features of resampled positions."""
    path, source = released
    images = torch.rand(2, 3, 70, 70, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = source(images)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        own = franca.load("dinov2_vits14", weights=path, sha256=digest.upper())
        smaller = load("dinov2_vits14", weights=str(path), size=70)
        assert not own.training
        assert (own.pos_embed.shape[1], smaller.pos_embed.shape[1]) == (50, 26)
        assert torch.equal(own(images), expected)
        torch.testing.assert_close(smaller(images), expected, rtol=1e-5, atol=1e-5)


def test_torch_hub_loads_the_folder(released: tuple[Path, Backbone]) -> None:
    """`torch.hub.load` of this folder gives the same model, and lists every name."""
    path, source = released
    model = torch.hub.load(str(ROOT), "dinov2_vits14", source="local", weights=str(path))
    images = torch.rand(1, 3, 98, 98, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model(images), source(images))
    sys.path.insert(0, str(ROOT))
    try:
        import hubconf
    finally:
        sys.path.remove(str(ROOT))
    assert all(callable(getattr(hubconf, name)) for name in (*NAMES, EXPORTED))


def test_kind_of_weights_is_read_from_their_names() -> None:
    """Feed-forward and registers are the file's; models with registers resample positions as DINOv2's do."""
    state: dict[str, Tensor] = {"blocks.0.mlp.w12.weight": torch.ones(1), "register_tokens": torch.ones(1, 4, 384)}
    model = describe_model("dinov2_vits14", state)
    assert (model.ffn, model.registers, model.interpolate_antialias, model.interpolate_offset) == (
        "swiglu", 4, True, 0.0,
    )  # fmt: skip
    plain = describe_model("dinov2_vits14", {"blocks.0.mlp.fc1.weight": torch.ones(1)})
    assert (plain.ffn, plain.registers, plain.interpolate_antialias, plain.interpolate_offset) == ("mlp", 0, False, 0.1)


def test_what_cannot_be_loaded_is_told(released: tuple[Path, Backbone], tmp_path: Path) -> None:
    """Unknown names and sizes, files of another model or digest, releases that do not exist."""
    path, _ = released
    with pytest.raises(ConfigError, match="unknown model vit; known: franca_vitb14"):
        load("vit", weights=None)
    with pytest.raises(ConfigError, match="size: 100 is not a multiple of the patch, 14 px"):
        load("dinov2_vits14", weights=path, size=100)
    with pytest.raises(WeightsError, match=r"neither a file nor the name of released weights .*known: LVD142M"):
        load("dinov2_vits14", weights="In21K")
    with pytest.raises(WeightsError, match=r"dinov2_vits14\.pth: its SHA-256 is .*, not 00ff"):
        load("dinov2_vits14", weights=path, sha256="00ff")
    torch.save({"teacher": {"cls_token": torch.ones(1, 1, 384)}}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth is not a dinov2_vits14: .* missing"):
        load("dinov2_vits14", weights=tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"no-export/config\.json: no description"):
        load(EXPORTED, weights=_folder(tmp_path / "no-export"))


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_releases_that_cannot_be_reached_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the message names the address and the mend; nothing is left behind."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"dinov2_vits14_pretrain\.pth cannot be downloaded: .*by hand"):
        load("dinov2_vits14", weights="LVD142M")
    assert not list(tmp_path.rglob("*.pth"))


def test_importing_the_package_leaves_torch_alone() -> None:
    """`import franca` is free; `franca.load` is what costs."""
    script = "import sys, franca; assert 'torch' not in sys.modules; franca.load; assert 'torch' in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        franca.nothing  # noqa: B018
