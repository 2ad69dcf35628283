"""A project whose row `digits` has released weights in upstream's layout, for the tests of `reproduce weights`."""

import dataclasses
import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from row_copies import copy_rows
from small_runs import LOCAL
from test_weights import chunked, prefixed

from franca.models.vit import VisionTransformer
from reproduce.sites import Site
from reproduce.spec import Spec, load_spec

ROW = "digits"


def make_project(folder: Path, *, weights: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]) -> Path:
    """A copy of the rows in which `digits` has these weights and published results."""
    project = copy_rows(folder)
    path = project / "experiments" / "digits.yaml"
    content = yaml.safe_load(path.read_text())
    content["weights"] = [{"status": "published", "sources": ["ours"], **file} for file in weights]
    content["metrics"] = {name: {"label": name, "unit": "%", **metric} for name, metric in metrics.items()}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return project


def digits(project: Path) -> Spec:
    return load_spec(ROW, root=project)


def make_site(project: Path) -> Site:
    return dataclasses.replace(LOCAL, device="auto", gpus_per_node=None, paths=(project / "site.yaml",))


def save_released(path: Path, spec: Spec, *, px: int, seed: int = 0) -> Path:
    """Random weights of the row's model for images of `px` pixels: a teacher's backbone, its blocks in chunks."""
    model = VisionTransformer(spec.recipe.model, grid=px // spec.recipe.model.patch_px)
    model.init_weights(torch.Generator().manual_seed(seed))
    state = prefixed("module.backbone.")(chunked(dict(model.state_dict())))
    torch.save({"teacher": state | {"module.dino_head.mlp.0.weight": torch.ones(2)}}, path)
    return path


def pack(members: Mapping[str, bytes], *, parts: int, folder: Path, name: str = "model.tar.gz") -> list[Path]:
    """An archive of these members, cut into parts as `split` names them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return cut(buffer.getvalue(), parts=parts, folder=folder, name=name)


def cut(data: bytes, *, parts: int, folder: Path, name: str) -> list[Path]:
    size = -(-len(data) // parts)
    paths = []
    for index in range(parts):
        path = folder / f"{name}.part_a{'abcdefg'[index]}"
        path.write_bytes(data[index * size : (index + 1) * size])
        paths.append(path)
    return paths
