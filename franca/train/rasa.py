"""`franca rasa RUN_OR_WEIGHTS --data FOLDER --out FOLDER`: train a RASA head on a frozen backbone, and measure it.

After each plane the head so far is written to `rasa_head.safetensors`; a run that was killed goes on there.
`results_rasa.json` says how well tokens tell their position before and after each plane and, where the images have
masks, how well they segment before and after; and which images could not be read and were left out.
Exit codes: 0 written; 2 a folder, configuration, dataset or weights file that will not do.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from franca.config import ConfigError
from franca.data.datasets import DataError, Dataset, UnreadableImageError, load_dataset, read_image
from franca.data.images import SUFFIXES
from franca.data.pixel_labels import LAYOUTS, SegmentationSet, load_segmentation
from franca.evaluate.knn import replace_file
from franca.evaluate.position import position_moments, position_r2
from franca.evaluate.segmentation import Geometry, InContext, evaluate_in_context, mean_iou
from franca.evaluate.subject import (
    EncodePatches,
    Subject,
    add_subject_arguments,
    choose_px,
    load_subject,
    make_device,
    make_patch_encoder,
    square_view,
)
from franca.evaluate.teacher import file_sha256
from franca.models.rasa import RasaHead, load_rasa_head, remove_plane
from franca.models.weights import WeightsError
from franca.train.planes import Images, RasaSettings, train_plane

HEAD, RESULTS = "rasa_head.safetensors", "results_rasa.json"
PLANES = 8  # Franca, appendix B; the released configuration makes 9, released heads have 8 or 9 pre_pos_layers
HELD_OUT = 10  # of a folder, every tenth image is kept from training
MEASURED = 1000  # images of each kind that positions are fitted to and judged on
BATCH = 16  # images at a time where they are only measured


@dataclass(frozen=True)
class ImageFiles:
    """Image files in the order of their names."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image.Image:
        """The RGB image at `index`. Raises `DataError`."""
        return read_image(str(self.paths[index]))


@dataclass(frozen=True)
class Unlabeled:
    """The images of a dataset, their labels left aside."""

    dataset: Dataset | SegmentationSet

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> Image.Image:
        """The RGB image at `index`. Raises `DataError`."""
        return self.dataset.read(index)[0]


@dataclass(frozen=True)
class Split:
    """Images to learn from and images to judge by, with their masks where there are any."""

    train: Images
    held_out: Images
    identity: str
    labeled: tuple[SegmentationSet, SegmentationSet] | None = None


def main(arguments: Sequence[str]) -> int:
    """Train the head that the command line asks for; returns the exit code."""
    options = _make_parser().parse_args(arguments)
    try:
        results = train_rasa(options)
    except (ConfigError, DataError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    r2 = results["position_r2"]
    print(f"position told by patch tokens (R²): {r2[0]:.3f} before, {r2[-1]:.3f} after {len(r2) - 1} planes")
    if results["unreadable"]:
        count, first = len(results["unreadable"]), results["unreadable"][0]
        print(f"{count} images could not be read and were left out, the first: {first}", file=sys.stderr)
    if results["in_context"]:
        scores = results["in_context"]
        print(f"{scores['dataset']} in-context mIoU: {scores['before']:.2f} % before, {scores['after']:.2f} % after")
    return 0


def train_rasa(options: argparse.Namespace) -> dict[str, Any]:
    """Train what is missing of a head, measure it, and write both; returns the results."""
    device = make_device(options.device)
    subject = load_subject(options.subject, config=options.config, model=options.model)
    settings = RasaSettings(options.epochs, options.lr, options.batch, choose_px(subject, options.size), options.seed)
    split = open_images(options.data, layout=options.layout)
    encode = make_patch_encoder(subject, device=device)
    grid, path = settings.px // subject.model.model.patch_px, options.out / HEAD
    own = dataclasses.asdict(settings)
    origin = {"checkpoint_sha256": subject.sha256, "data": split.identity, "settings": own}
    planes, losses, unreadable = load_progress(
        path, origin=origin, planes=options.iterations, dim=subject.model.model.embed_dim
    )
    for plane in range(len(planes), options.iterations):
        weight, loss = train_plane(
            encode,
            split.train,
            plane=plane,
            removed=fold_planes(planes, dim=subject.model.model.embed_dim).to(device),
            settings=settings,
            grid=grid,
            workers=options.workers,
            unreadable=unreadable,
        )
        if not math.isfinite(loss):
            raise WeightsError(f"{subject.path}: patch tokens that are not finite: the model has diverged")
        planes, losses = [*planes, weight.cpu()], [*losses, loss]
        save_progress(path, planes, losses=losses, unreadable=unreadable, origin=origin)
        print(f"plane {plane + 1} of {options.iterations}: loss {loss:.5f}", flush=True)
    results = origin | {
        "head": HEAD,
        "head_sha256": file_sha256(path),
        "losses": losses,
        **measure(encode, planes, split=split, settings=settings, grid=grid, unreadable=unreadable),
        "in_context": measure_in_context(subject, path, split=split, options=options, px=settings.px),
        "unreadable": sorted(unreadable),
    }
    replace_file(options.out / RESULTS, json.dumps(results, indent=2) + "\n")
    return results


def measure(
    encode: EncodePatches,
    planes: Sequence[Tensor],
    *,
    split: Split,
    settings: RasaSettings,
    grid: int,
    unreadable: set[str],
) -> dict[str, Any]:
    """R² of positions told by held-out patch tokens: with no plane removed, with one, and so on.

    Lines on images that cannot be read go to `unreadable`. Raises `DataError` where none of either kind can be.
    """
    parts, left_out = (split.train, split.held_out), (set[str](), set[str]())
    images = [read_squares(part, px=settings.px, unreadable=out) for part, out in zip(parts, left_out, strict=True)]
    fitted, held_out = (position_moments(encode, batches, grid=grid) for batches in images)
    unreadable.update(*left_out)
    counts = [min(len(part), MEASURED) - len(out) for part, out in zip(parts, left_out, strict=True)]
    dim = len(fitted.mean) - 2
    matrices = [fold_planes(planes[:count], dim=dim) for count in range(len(planes) + 1)]
    return {
        "position_r2": [position_r2(fitted, held_out, matrix=matrix) for matrix in matrices],
        "images_fitted": counts[0],
        "images_held_out": counts[1],
    }


def measure_in_context(
    subject: Subject, head: Path, *, split: Split, options: argparse.Namespace, px: int
) -> dict[str, Any] | None:
    """In-context mIoU in percent with the tokens as they are and with the head; None of images without masks."""
    if split.labeled is None:
        return None
    device = make_device(options.device)
    protocol = InContext(memory=options.memory, seed=options.seed)
    geometry = Geometry(px, subject.model.model.patch_px, batch=BATCH, workers=options.workers)
    scores: dict[str, Any] = {"dataset": options.layout, "protocol": dataclasses.asdict(protocol)}
    for name, rasa in (("before", None), ("after", head)):
        encode = make_patch_encoder(subject, device=device, rasa=rasa)
        confusion = evaluate_in_context(encode, *split.labeled, protocol=protocol, geometry=geometry, device=device)
        scores[name] = mean_iou(confusion)
    return scores


def fold_planes(planes: Sequence[Tensor], *, dim: int) -> Tensor:
    """The matrix [dim, dim], in float64, that takes planes out of tokens."""
    matrix = torch.eye(dim, dtype=torch.float64)
    for weight in planes:
        matrix = remove_plane(matrix, weight.double())
    return matrix


def open_images(data: str, *, layout: str | None) -> Split:
    """The digits, a folder of images of any depth, or a segmentation dataset's folder in its layout.

    Raises `DataError` on a folder that is missing or holds too few images.
    """
    if layout:
        train, held_out = (load_segmentation(layout, root=data, split=split) for split in ("train", "val"))
        identity = f"{layout}: {len(train)} and {len(held_out)} images"
        return Split(Unlabeled(train), Unlabeled(held_out), identity, (train, held_out))
    if data == "digits":
        digits = [load_dataset("digits", root="", split=split) for split in ("train", "test")]
        return Split(Unlabeled(digits[0]), Unlabeled(digits[1]), f"digits: {digits[0].fingerprint}")
    if not Path(data).is_dir():
        raise DataError(f"{data}: this folder of images does not exist")
    paths = sorted(path for path in Path(data).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if len(paths) < 2:
        raise DataError(f"{data}: {len(paths)} images; one is needed to learn from and another to judge by")
    text = "".join(f"{path.relative_to(data)} {path.stat().st_size}\n" for path in paths)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    kept = set(paths[HELD_OUT - 1 :: HELD_OUT]) or {paths[-1]}
    train_paths = tuple(path for path in paths if path not in kept)
    return Split(ImageFiles(train_paths), ImageFiles(tuple(sorted(kept))), f"folder: {digest}")


def read_squares(images: Images, *, px: int, unreadable: set[str]) -> Iterator[UInt8[Tensor, "n px px 3"]]:
    """The first images of a set, whole, as squares; lines on those that cannot be read go to `unreadable`.

    Raises `DataError` where none can be read.
    """
    count = min(len(images), MEASURED)
    for first in range(0, count, BATCH):
        squares = []
        for index in range(first, min(first + BATCH, count)):
            try:
                squares.append(square_view(images.read(index), px=px))
            except UnreadableImageError as error:
                unreadable.add(str(error))
        if squares:
            yield torch.from_numpy(np.stack(squares))
    if len(unreadable) == count:
        raise DataError(f"none of {count} images to measure positions on can be read, one of them: {min(unreadable)}")


def save_progress(
    path: Path, planes: Sequence[Tensor], *, losses: Sequence[float], unreadable: set[str], origin: dict[str, Any]
) -> None:
    """Write a head of the planes so far, whole or not at all, with what it was trained by."""
    head = RasaHead(planes[0].shape[1], planes=len(planes))
    with torch.no_grad():
        for own, weight in zip(head.planes, planes, strict=True):
            own.copy_(weight)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    # One entry: safetensors orders several at random, and equal heads shall make equal files.
    text = json.dumps(origin | {"losses": list(losses), "unreadable": sorted(unreadable)}, sort_keys=True)
    save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, temporary, {"rasa": text})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def load_progress(
    path: Path, *, origin: dict[str, Any], planes: int, dim: int
) -> tuple[list[Tensor], list[float], set[str]]:
    """The planes that are trained already, their losses and the images left out; none where there is no file.

    Raises `ConfigError` where the file is another head's: of other weights, images or settings, or with more planes.
    """
    if not path.exists():
        return [], [], set()
    head = load_rasa_head(path, dim=dim)
    with safe_open(path, framework="pt") as file:
        written = json.loads((file.metadata() or {}).get("rasa", "{}"))
    for key, value in origin.items():
        if written.get(key) != value:
            raise ConfigError(
                f"{path}: a head of another run ({key}: {written.get(key)}, here {value}); use another --out"
            )
    if len(head.planes) > planes:
        raise ConfigError(f"{path}: has {len(head.planes)} planes and --iterations are {planes}; use another --out")
    return [weight.detach() for weight in head.planes], written["losses"], set(written.get("unreadable", ()))


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="franca rasa", description="take out of patch tokens what tells their position"
    )
    add_subject_arguments(parser)
    parser.add_argument("--data", required=True, help="digits, or a folder of images of any depth")
    parser.add_argument(
        "--layout", choices=tuple(LAYOUTS), help="the folder is this dataset's: segmentation is measured"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the head and its results")
    parser.add_argument("--iterations", type=int, default=PLANES, help=f"planes to remove (default: {PLANES})")
    parser.add_argument("--epochs", type=int, default=RasaSettings.epochs, help="for each plane")
    parser.add_argument("--lr", type=float, default=RasaSettings.lr)
    parser.add_argument("--batch", type=int, default=RasaSettings.batch, help="images of a step")
    parser.add_argument("--memory", type=int, default=InContext.memory, help="patches remembered where masks are given")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--seed", type=int, default=0)
    return parser
