"""`franca pca RUN_OR_WEIGHTS IMAGES... --out FOLDER`: what patch tokens see, as colors beside the image.

Of each image a PNG of three panels: the image; the first three principal components of all patches of all images; those
of the foreground alone, before the dimmed image. Foreground is where the first component of an image's own patches
passes Otsu's threshold, on the side that its border has less of (DINOv2 section 7.5 thresholds by eye). Signs are
fixed, so that the same weights give the same colors. Exit codes: 0 written; 2 a weights file or folder that will not
do, or images none of which can be read; one that cannot is left out and named.

Letters: m patches of an image or of all, d embedding dimensions, k components.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from franca.config import ConfigError
from franca.data.datasets import DataError, UnreadableImageError, read_image
from franca.evaluate.subject import (
    EncodePatches,
    Subject,
    add_subject_arguments,
    choose_px,
    load_subject,
    make_device,
    make_patch_encoder,
)
from franca.models.weights import WeightsError

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "nearest": Image.Resampling.NEAREST}
TAILS = (1, 99)  # percentiles of a component that become the ends of a color's range
DIMMED = 0.22  # of the image's brightness, where it is no foreground
PANEL_PX, GAP_PX = 448, 12  # height of a panel, and the white between two
BINS = 256  # of the histogram that Otsu's threshold is sought in

Grid = tuple[int, int]


@dataclass(frozen=True)
class Components:
    """Principal components of tokens: their mean and `axes`, the strongest first."""

    mean: Float[np.ndarray, "d"]
    axes: Float[np.ndarray, "k d"]

    def project(self, tokens: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m k"]:
        """Coordinates of tokens along each axis."""
        return (tokens - self.mean) @ self.axes.T


@dataclass(frozen=True)
class Coloring:
    """Colors in 0..1 of an image's patches, by the components of all and by those of foregrounds; foreground scores.

    A patch is foreground where its score is positive.
    """

    all_patches: Float[np.ndarray, "m 3"]
    foreground: Float[np.ndarray, "m 3"]
    score: Float[np.ndarray, "m"]


def main(arguments: Sequence[str]) -> int:
    """Draw the pictures that the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="franca pca", description="patch tokens as colors")
    add_subject_arguments(parser)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--rasa", type=Path, help="a RASA head, applied to the patch tokens first")
    parser.add_argument("--upsample", choices=tuple(RESAMPLING), default="bicubic", help="from patches to pixels")
    parser.add_argument("--apart", action="store_true", help="components of each image alone, not of all together")
    options = parser.parse_args(arguments)
    try:
        for path in draw_pictures(options):
            print(path)
    except (ConfigError, DataError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def draw_pictures(options: argparse.Namespace) -> list[Path]:
    """Write a picture of each image and return their paths; an image that cannot be read is left out, and named.

    Raises `DataError` where none can be read.
    """
    subject = load_subject(options.subject, config=options.config, model=options.model)
    encode = make_patch_encoder(subject, device=make_device(options.device), rasa=options.rasa)
    px = choose_px(subject, options.size)
    patch_px = subject.model.model.patch_px
    readable = read_images(options.images)
    images = list(readable.values())
    fitted = [fit_image(image, px=px, patch_px=patch_px) for image in images]
    grids = [(image.height // patch_px, image.width // patch_px) for image in fitted]
    tokens = [encode_image(encode, image) for image in fitted]
    if options.apart:
        colorings = [color_patches([own], grids=[grid])[0] for own, grid in zip(tokens, grids, strict=True)]
    else:
        colorings = color_patches(tokens, grids=grids)
    written = []
    for (number, image), coloring, grid in zip(readable.items(), colorings, grids, strict=True):
        picture = render_panels(image, coloring, grid=grid, resampling=RESAMPLING[options.upsample])
        written.append(options.out / f"{number + 1:02d}_{options.images[number].stem}.png")
        save_picture(picture, written[-1], subject=subject)
    return written


def read_images(paths: Sequence[Path]) -> dict[int, Image.Image]:
    """The images that can be read, by their number; the others are named on stderr. Raises `DataError` without any."""
    found, unreadable = {}, []
    for number, path in enumerate(paths):
        try:
            found[number] = read_image(str(path))
        except UnreadableImageError as error:
            unreadable.append(str(error))
    if not found:
        raise DataError(f"none of the {len(paths)} images can be read, the last: {unreadable[-1]}")
    for line in unreadable:
        print(f"left out: {line}", file=sys.stderr)
    return found


def fit_image(image: Image.Image, *, px: int, patch_px: int) -> Image.Image:
    """An image whose shorter side is `px` and whose longer one is cut to whole patches, its aspect nearly kept."""
    scale = px / min(image.size)
    width, height = (max(patch_px, round(side * scale / patch_px) * patch_px) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def encode_image(encode: EncodePatches, image: Image.Image) -> Float[np.ndarray, "m d"]:
    """The patch tokens of one image, in float64. Raises `WeightsError` where they are not finite."""
    tokens = encode(torch.from_numpy(np.array(image)).unsqueeze(0))[0].double().cpu().numpy()
    if not np.isfinite(tokens).all():
        raise WeightsError("patch tokens that are not finite: the model has diverged")
    return tokens


def color_patches(tokens: Sequence[Float[np.ndarray, "_ d"]], *, grids: Sequence[Grid]) -> list[Coloring]:
    """Colors of the patches of some images, by components that they share, and each image's own foreground."""
    scores = [score_foreground(own, grid=grid) for own, grid in zip(tokens, grids, strict=True)]
    joined, chosen = np.concatenate(tokens), np.concatenate(scores) > 0
    by_all = fit_components(joined, count=3).project(joined)
    of_foreground = joined[chosen] if chosen.sum() > 3 else joined
    components = fit_components(of_foreground, count=3)
    by_foreground = stretch(components.project(joined), components.project(of_foreground))
    ends = np.cumsum([len(own) for own in tokens])[:-1]
    parts = zip(np.split(stretch(by_all, by_all), ends), np.split(by_foreground, ends), scores, strict=True)
    return [Coloring(*part) for part in parts]


def score_foreground(tokens: Float[np.ndarray, "m d"], *, grid: Grid) -> Float[np.ndarray, "m"]:
    """How far the first component of an image's patches lies beyond the threshold, positive in the foreground."""
    first = fit_components(tokens, count=1).project(tokens)[:, 0]
    edge = np.ones(grid, bool)
    edge[1:-1, 1:-1] = False
    if not edge.all() and first[edge.ravel()].mean() > first[~edge.ravel()].mean():
        first = -first
    return first - otsu_threshold(first)


def fit_components(tokens: Float[np.ndarray, "m d"], *, count: int) -> Components:
    """The `count` strongest principal components; the largest loading of each is positive, the first of equal ones."""
    mean = tokens.mean(axis=0)
    centered = tokens - mean
    _, vectors = np.linalg.eigh(centered.T @ centered)
    axes = vectors[:, ::-1][:, :count].T
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    return Components(mean, axes * signs[:, None])


def otsu_threshold(values: Float[np.ndarray, "m"]) -> float:
    """The value that parts a histogram into two groups of least variance within (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=BINS)
    centers = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), len(values) - np.cumsum(counts)
    sums = np.cumsum(counts * centers)
    split = (below > 0) & (above > 0)
    if not split.any():
        return float(values.max())
    difference = sums[split] / below[split] - (sums[-1] - sums[split]) / above[split]
    between = below[split] * above[split] * difference**2
    return float(edges[1:][split][between.argmax()])


def stretch(scores: Float[np.ndarray, "m k"], reference: Float[np.ndarray, "_ k"]) -> Float[np.ndarray, "m k"]:
    """Scores in 0..1, the ends of the range at the 1st and 99th percentile of the reference."""
    low, high = np.percentile(reference, TAILS, axis=0)
    return ((scores - low) / np.maximum(high - low, 1e-12)).clip(0, 1)


def render_panels(image: Image.Image, colors: Coloring, *, grid: Grid, resampling: Image.Resampling) -> Image.Image:
    """The image, its patches' colors, and the foreground's before the dimmed image, side by side on white."""
    width, height = round(image.width * PANEL_PX / image.height), PANEL_PX
    shown = image.resize((width, height), Image.Resampling.BICUBIC)

    def enlarge(values: NDArray[np.float64]) -> NDArray[np.float32]:
        channels = values.reshape(*grid, -1).transpose(2, 0, 1).astype(np.float32)
        return np.stack([np.asarray(Image.fromarray(c).resize((width, height), resampling)) for c in channels], axis=2)

    foreground = enlarge(colors.score[:, None]) > 0
    gray = np.asarray(shown.convert("L"), np.float64)[..., None] / 255 * DIMMED
    panels = (
        np.asarray(shown, np.float64) / 255,
        enlarge(colors.all_patches),
        np.where(foreground, enlarge(colors.foreground), gray),
    )
    picture = Image.new("RGB", (3 * width + 2 * GAP_PX, height), "white")
    for number, panel in enumerate(panels):
        pixels = Image.fromarray(np.rint(panel.clip(0, 1) * 255).astype(np.uint8))
        picture.paste(pixels, (number * (width + GAP_PX), 0))
    return picture


def save_picture(picture: Image.Image, path: Path, *, subject: Subject) -> None:
    """Write a PNG, whole or not at all, that names the weights it shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    about = PngImagePlugin.PngInfo()
    about.add_text("checkpoint_sha256", subject.sha256)
    picture.save(temporary, format="PNG", pnginfo=about)
    temporary.replace(path)
