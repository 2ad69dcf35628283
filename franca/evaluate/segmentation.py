"""Segmentation by frozen patch features, in context (Hummingbird): images with masks in, mean IoU out.

A memory keeps patches of the train images, each with the share of every class among its pixels. A patch of a test
image attends to its k nearest in the memory; what they hold becomes its own, is enlarged to pixels and judged
(Balažević et al. 2023; the constants are those of vpariza/open-hummingbird-eval@0fd976f, by authors of Franca).

What is not published and is assumed here: images and masks are seen as whole squares, and train images once, where that
code crops and jitters those of VOC's `trainaug`; pixels without a class belong to no share, where that code takes VOC's
for background; a class that occurs neither in masks nor in predictions has no IoU, where that code counts 0.

Letters: n images, p patches of an image, m patches in memory, d features, c classes, q patches that ask, k neighbors.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from franca.config import ConfigError
from franca.data.pixel_labels import IGNORED, SegmentationSet
from franca.data.prefetch import prefetch
from franca.evaluate.knn import nearest_neighbors
from franca.evaluate.subject import EncodePatches, square_view
from franca.models.weights import WeightsError

QUERY_CHUNK = 512  # test patches at a time: with the memory's chunks, 128 MB of similarities


@dataclass(frozen=True)
class InContext:
    """The protocol: how many patches are remembered, how many of them are asked, and how sharply."""

    memory: int = 1024 * 10**4
    k: int = 30
    temperature: float = 0.02
    seed: int = 0


@dataclass(frozen=True)
class Geometry:
    """How images are seen: `px` pixels to a side, patches of `patch_px`, `batch` at a time, read by `workers`."""

    px: int
    patch_px: int
    batch: int = 16
    workers: int = 0

    @property
    def grid(self) -> int:
        """Patches to a side."""
        return self.px // self.patch_px


@dataclass(frozen=True)
class Memory:
    """Remembered patches: normalized features, and the share of each class among a patch's pixels."""

    features: Float[Tensor, "m d"]
    shares: Float[Tensor, "m c"]


def evaluate_in_context(
    encode: EncodePatches,
    train: SegmentationSet,
    test: SegmentationSet,
    *,
    protocol: InContext,
    geometry: Geometry,
    device: torch.device,
) -> Int[Tensor, "c c"]:
    """The confusion of the test images' pixels, true class by predicted class, at `px` pixels to a side.

    Raises `DataError` on images or masks that do not fit, `ConfigError` on fewer remembered patches than k,
    `WeightsError` on features that are not finite.
    """
    classes = len(train.class_names)
    memory = make_memory(encode, train, protocol=protocol, geometry=geometry, device=device)
    if len(memory.features) < protocol.k:
        raise ConfigError(f"k: {protocol.k} neighbors of {len(memory.features)} remembered patches")
    confusion = torch.zeros(classes, classes, dtype=torch.long, device=device)
    for images, masks in read_batches(test, geometry=geometry):
        patches = encode(images)
        shares = recall(patches.flatten(0, 1), memory, k=protocol.k, temperature=protocol.temperature)
        scores = enlarge(shares.unflatten(0, patches.shape[:2]), geometry=geometry)
        confusion += count_confusion(scores.argmax(dim=1), masks.to(device), classes=classes)
    return confusion


def make_memory(
    encode: EncodePatches, train: SegmentationSet, *, protocol: InContext, geometry: Geometry, device: torch.device
) -> Memory:
    """Patches of every train image, as many of each as the memory has room for."""
    generator = torch.Generator().manual_seed(protocol.seed)
    quota = min(max(1, protocol.memory // len(train)), geometry.grid**2)
    classes = len(train.class_names)
    features, shares, filled = torch.empty(0), torch.empty(len(train) * quota, classes, device=device), 0
    for images, masks in read_batches(train, geometry=geometry):
        patches = encode(images)
        if not filled:  # one allocation: a list of pieces would need twice the room when it is joined
            features = torch.empty(len(shares), patches.shape[2], device=device)
        of_patches = patch_shares(masks.to(device), patch_px=geometry.patch_px, classes=classes)
        for of_image, share in zip(patches, of_patches, strict=True):
            kept = choose_patches(share, quota=quota, generator=generator)
            features[filled : filled + len(kept)] = functional.normalize(of_image[kept], dim=1)
            shares[filled : filled + len(kept)] = share[kept]
            filled += len(kept)
    if not features[:filled].isfinite().all():
        raise WeightsError("patch tokens that are not finite: the model has diverged")
    return Memory(features[:filled], shares[:filled])


def choose_patches(shares: Float[Tensor, "p c"], *, quota: int, generator: torch.Generator) -> Int[Tensor, "_"]:
    """The patches of an image to remember, at most `quota`, none without a class, those of rare classes first.

    A patch's score is a random share of the patches that hold its classes, summed over these classes; the least
    scores are kept (open-hummingbird-eval `sample_features`).
    """
    present = (shares > 0).float()
    scores = (present @ present.sum(dim=0)).cpu()
    scores = torch.where(scores > 0, scores * torch.rand(len(scores), generator=generator), torch.inf)
    kept = scores.argsort(stable=True)[: min(quota, int(scores.isfinite().sum()))]
    return kept.sort().values.to(shares.device)


def patch_shares(masks: UInt8[Tensor, "n height width"], *, patch_px: int, classes: int) -> Float[Tensor, "n p c"]:
    """The share of each class among the labeled pixels of each patch, zeros where a patch has none."""
    n, height, width = masks.shape
    patches = masks.view(n, height // patch_px, patch_px, width // patch_px, patch_px).transpose(2, 3)
    numbers = patches.reshape(n, -1, patch_px * patch_px).long()
    labeled = numbers != IGNORED
    counts = torch.zeros(*numbers.shape[:2], classes, device=masks.device)
    counts.scatter_add_(2, numbers.where(labeled, 0), labeled.float())
    return counts / counts.sum(dim=2, keepdim=True).clamp_min(1)


def recall(queries: Float[Tensor, "q d"], memory: Memory, *, k: int, temperature: float) -> Float[Tensor, "q c"]:
    """What each patch's k nearest remembered patches hold, weighted by softmax(cosine similarity / temperature)."""
    recalled = []
    for chunk in functional.normalize(queries, dim=1).split(QUERY_CHUNK):
        similarities, neighbors = nearest_neighbors(chunk, memory.features, k=k)
        weights = (similarities / temperature).softmax(dim=1)
        recalled.append(torch.einsum("qk,qkc->qc", weights, memory.shares[neighbors]))
    return torch.cat(recalled)


def enlarge(scores: Float[Tensor, "n p c"], *, geometry: Geometry) -> Float[Tensor, "n c px px"]:
    """Scores of patches as scores of pixels (bilinear)."""
    grid = scores.transpose(1, 2).unflatten(2, (geometry.grid, geometry.grid))
    return functional.interpolate(grid, size=(geometry.px, geometry.px), mode="bilinear")


def count_confusion(
    predicted: Int[Tensor, "*pixels"], truth: UInt8[Tensor, "*pixels"], *, classes: int
) -> Int[Tensor, "c c"]:
    """How many labeled pixels of each true class (row) were given each class (column)."""
    labeled = truth != IGNORED
    pairs = truth[labeled].long() * classes + predicted[labeled]
    return pairs.bincount(minlength=classes**2).view(classes, classes)


def class_iou(confusion: Int[Tensor, "c c"]) -> Float[Tensor, "c"]:
    """Intersection over union of each class, NaN where it is neither true nor predicted anywhere."""
    right = confusion.diagonal().double()
    return right / (confusion.sum(dim=0) + confusion.sum(dim=1) - right)


def mean_iou(confusion: Int[Tensor, "c c"]) -> float:
    """The mean over classes that are true or predicted somewhere, in percent."""
    return 100 * float(class_iou(confusion).nanmean())


def read_batches(
    dataset: SegmentationSet, *, geometry: Geometry, order: Sequence[int] | None = None
) -> Iterator[tuple[UInt8[Tensor, "n px px 3"], UInt8[Tensor, "n px px"]]]:
    """Every image and mask, or those in `order`, as whole squares, `batch` at a time."""
    indices = list(range(len(dataset)) if order is None else order)
    batches = [indices[first : first + geometry.batch] for first in range(0, len(indices), geometry.batch)]
    return iter(prefetch(functools.partial(_read, dataset, geometry.px), batches, workers=geometry.workers))


def square_mask(mask: NDArray[np.uint8], *, px: int) -> NDArray[np.uint8]:
    """A whole mask [px, px]: each pixel takes the nearest one's class."""
    return np.asarray(Image.fromarray(mask).resize((px, px), Image.Resampling.NEAREST))


def _read(
    dataset: SegmentationSet, px: int, indices: Sequence[int]
) -> tuple[UInt8[Tensor, "n px px 3"], UInt8[Tensor, "n px px"]]:
    pairs = [dataset.read(index) for index in indices]
    images = np.stack([square_view(image, px=px) for image, _ in pairs])
    return torch.from_numpy(images), torch.from_numpy(np.stack([square_mask(mask, px=px) for _, mask in pairs]))
