"""Models for `torch.hub.load("FOLDER", "franca_vitl14", source="local", weights=...)`; see `franca.hub.load`."""

import functools

from franca.hub import NAMES, load

dependencies = ["torch", "jaxtyping", "safetensors", "yaml"]

# An entry point for each name: franca_vitb14, franca_vitl14, franca_vitg14, dinov2_vits14, ..., exported
globals().update({name: functools.partial(load, name) for name in (*NAMES, "exported")})
