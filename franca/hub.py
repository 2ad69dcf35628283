"""Pretrained backbones for use outside of training: a name and weights in, a model with DINOv2's methods out.

    model = franca.load("franca_vitl14", weights="franca_vitl14_Laion600M_224.pth")
    model(images)                                # normalized class tokens [n, d]
    model.forward_features(images)               # a dict: x_norm_clstoken, x_norm_patchtokens, ...
    model.get_intermediate_layers(images, n=4, reshape=True)

`hubconf.py` gives the same to `torch.hub.load`.
"""

import json
import math
import urllib.error
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from franca.config import ConfigError, Model, make_config
from franca.evaluate.teacher import file_sha256
from franca.models.vit import VisionTransformer
from franca.models.weights import WeightsError, load_backbone, load_weights, rename_upstream

FRANCA = "https://github.com/valeoai/Franca/releases/download"
DINOV2 = "https://dl.fbaipublicfiles.com/dinov2"
EXPORTED = "exported"  # a model that describes itself: a folder of these two files, written by `franca export`
WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"

SHAPES = {"vits14": (384, 12, 6), "vitb14": (768, 12, 12), "vitl14": (1024, 24, 16), "vitg14": (1536, 40, 24)}
# Franca's models all have SwiGLU, also its DINOv2 baselines; facebookresearch/dinov2's own but for ViT-g have MLPs.
FFNS = {"franca": "swiglu", "dinov2": "mlp", "dinov2_vitg14": "swiglu"}
NAMES = ("franca_vitb14", "franca_vitl14", "franca_vitg14", *(f"dinov2_{shape}" for shape in SHAPES))
RELEASED = {  # model, name of its weights: valeoai/Franca hub/backbones.py@1518b05, dinov2 hub/backbones.py@b8931f7
    ("franca_vitb14", "In21K"): f"{FRANCA}/v1.0.0/franca_vitb14_In21K.pth",
    ("franca_vitb14", "In21K_224"): f"{FRANCA}/v1.1.0/franca_vitb14_In21K_224.pth",
    ("franca_vitl14", "Laion600M"): f"{FRANCA}/v1.0.0/franca_vitl14_Laion600M.pth",
    ("franca_vitl14", "Laion600M_224"): f"{FRANCA}/v1.1.0/franca_vitl14_Laion600M_224.pth",
    ("franca_vitl14", "Laion_518"): f"{FRANCA}/v1.1.0/franca_vitl14_Laion_518.pth",
    ("dinov2_vitb14", "Dinov2_In21K"): f"{FRANCA}/v1.1.0/franca_vitb14_Dinov2_In21K.pth",
    ("dinov2_vitb14", "Dinov2_In21K_518"): f"{FRANCA}/v1.1.0/franca_vitb14_Dinov2_In21K_518.pth",
    ("dinov2_vitl14", "Dinov2_In21K"): f"{FRANCA}/v1.1.0/franca_vitl14_Dinov2_In21K.pth",
    ("dinov2_vitl14", "Dinov2_In21K_518"): f"{FRANCA}/v1.1.0/franca_vitl14_Dinov2_In21K_518.pth",
    **{(f"dinov2_{shape}", "LVD142M"): f"{DINOV2}/dinov2_{shape}/dinov2_{shape}_pretrain.pth" for shape in SHAPES},
    **{(f"dinov2_{shape}", "LVD142M_reg4"): f"{DINOV2}/dinov2_{shape}/dinov2_{shape}_reg4_pretrain.pth"
       for shape in SHAPES},
}  # fmt: skip


class Backbone(VisionTransformer):
    """A vision transformer with the methods that users of DINOv2's models call."""

    def forward(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n d"]:
        """Class tokens after the final norm."""
        return self.forward_features(images)["x_norm_clstoken"]

    def forward_features(
        self, images: Float[Tensor, "n 3 height width"], masks: Bool[Tensor, "n p"] | None = None
    ) -> dict[str, Tensor | None]:
        """All tokens of n images of one size, under DINOv2's names.

        x_norm_clstoken [n, d], x_norm_regtokens [n, r, d] and x_norm_patchtokens [n, p, d] are normalized, x_prenorm
        [n, 1 + r + p, d] is not. `masks` hides patches behind the mask token.
        """
        (tokens,) = self.intermediate_tokens(images, blocks=(self.model.depth - 1,), masks=masks)
        features = self._features(self.norm(tokens))
        return {
            "x_norm_clstoken": features.cls,
            "x_norm_regtokens": features.registers,
            "x_norm_patchtokens": features.patches,
            "x_prenorm": tokens,
            "masks": masks,
        }

    def get_intermediate_layers(
        self,
        images: Float[Tensor, "n 3 height width"],
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor | tuple[Tensor, Tensor], ...]:
        """Patch tokens [n, p, d] of the last `n` blocks, or of the blocks of these numbers, from the first to the last.

        `reshape` makes maps [n, d, rows, columns] of them; `return_class_token` gives pairs of patches and class
        tokens [n, d]; `norm` applies the final norm.
        """
        blocks = range(self.model.depth - n, self.model.depth) if isinstance(n, int) else tuple(n)
        layers = []
        for tokens in self.intermediate_tokens(images, blocks=blocks):
            features = self._features(self.norm(tokens) if norm else tokens)
            patches = features.patches
            if reshape:
                rows = images.shape[2] // self.model.patch_px
                patches = patches.unflatten(1, (rows, -1)).permute(0, 3, 1, 2).contiguous()
            layers.append((patches, features.cls) if return_class_token else patches)
        return tuple(layers)


def load(name: str, *, weights: str | Path | None, size: int | None = None, sha256: str | None = None) -> Backbone:
    """A backbone in evaluation mode, on the CPU.

    `name` is one of `NAMES`, or `exported` for a folder of `franca export`. `weights` is a file or folder, the name of
    released weights (see `RELEASED`), which are downloaded once, or None for random values. Positions made for another
    image are resampled to `size` pixels; without it they stay as they are, or are those of 224. `sha256`
    is the file's, in hex, where you know it: no publisher states one. Raises `ConfigError` on an unknown name or size,
    `WeightsError` on weights that cannot be had, have another SHA-256 or are not that model's.
    """
    if name not in (*NAMES, EXPORTED):
        raise ConfigError(f"unknown model {name}; known: {', '.join((*NAMES, EXPORTED))}")
    if weights is None:
        backbone = _make_backbone(describe_model(name, {}), grid=None, size=size)
        backbone.init_weights(torch.Generator().manual_seed(0))
        return backbone.eval()
    path = find_weights(name, weights)
    if sha256 and path.is_file() and sha256.lower() != (found := file_sha256(path)):
        raise WeightsError(
            f"{path}: its SHA-256 is {found}, not {sha256}; if it was downloaded, delete it and try again"
        )
    if name == EXPORTED:
        model = load_description(path.parent / DESCRIPTION)
        state = rename_upstream(load_weights(path))
    else:
        state = rename_upstream(load_weights(path))
        model = describe_model(name, state)
    positions = state.get("pos_embed", torch.empty(0))
    backbone = _make_backbone(
        model, grid=math.isqrt(positions.shape[-2] - 1) if positions.ndim == 3 else None, size=size
    )
    try:
        load_backbone(backbone, state, interpolate=size is not None)
    except WeightsError as error:
        raise WeightsError(f"{path} is not a {name}: {error}") from error
    return backbone.eval()


def describe_model(name: str, state: Mapping[str, Tensor]) -> Model:
    """The model of that name; of its weights are read the kind of feed-forward and the number of registers.

    DINOv2's models with registers resample positions otherwise: antialiased, without offset.
    """
    dim, depth, heads = SHAPES[name.partition("_")[2]]
    ffn = FFNS.get(name) or FFNS[name.partition("_")[0]]
    if state:
        ffn = "swiglu" if "blocks.0.mlp.w12.weight" in state else "mlp"
    registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    return Model(
        patch_px=14,
        embed_dim=dim,
        depth=depth,
        heads=heads,
        ffn=ffn,
        ffn_ratio=4.0,
        registers=registers,
        layerscale=1e-5,
        drop_path=0.0,
        interpolate_offset=0.0 if registers else 0.1,
        interpolate_antialias=bool(registers),
    )


def load_description(path: Path) -> Model:
    """The model of an exported folder. Raises `WeightsError` where its description is absent or damaged."""
    try:
        return make_config(Model, json.loads(path.read_text())["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: no description of an exported model: {error!r}") from error


def find_weights(name: str, weights: str | Path) -> Path:
    """The file of weights that are named by their path or their release; the latter is downloaded once.

    Raises `WeightsError` where it is neither, or cannot be downloaded.
    """
    path = Path(weights)
    if path.is_dir():
        return path / WEIGHTS
    if path.is_file():
        return path
    url = RELEASED.get((name, str(weights)))
    if url is None:
        known = ", ".join(label for model, label in RELEASED if model == name) or "none"
        raise WeightsError(f"{weights}: neither a file nor the name of released weights of {name} (known: {known})")
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(target), progress=True)
        except (OSError, urllib.error.URLError) as error:
            raise WeightsError(f"{url} cannot be downloaded: {error}; download it by hand and give its path") from error
    return target


def _make_backbone(model: Model, *, grid: int | None, size: int | None) -> Backbone:
    """A model without values, for images of `size` pixels, or with the grid of its weights, or for 224."""
    if size is not None and (size < model.patch_px or size % model.patch_px):
        raise ConfigError(f"size: {size} is not a multiple of the patch, {model.patch_px} px")
    return Backbone(model, grid=size // model.patch_px if size else grid or 224 // model.patch_px)
