"""Segmentation by a linear map of frozen patch features: images with masks in, the confusion of test pixels out.

The head is DINOv2's: a batch norm and a 1×1 classifier, whose scores are enlarged to pixels (paper section 7.4). Its
schedule is that of the configurations released with DINOv2 (AdamW, linear warm-up, linear decay). Images are seen as
in `franca.evaluate.segmentation`; for training, random crops of them, mirrored at random. Upstream slides a window over
larger test images: not done here.

Letters: n images, p patches of an image, d features, c classes.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from franca.data.augment import draw_box
from franca.data.pixel_labels import IGNORED, SegmentationSet
from franca.data.prefetch import prefetch
from franca.evaluate.segmentation import Geometry, count_confusion, enlarge, read_batches, square_mask
from franca.evaluate.subject import EncodePatches, square_view


@dataclass(frozen=True)
class LinearProbe:
    """The protocol: how long and how fast the head learns. `crop_scale` is a crop's share of its image's area."""

    iterations: int = 40_000
    batch: int = 16
    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup_iterations: int = 1500
    crop_scale: tuple[float, float] = (0.25, 1.0)
    seed: int = 0


class SegmentationProbe(nn.Module):
    """A batch norm over patches and a linear map to class scores. Shapes here, values in `init_weights`."""

    def __init__(self, dim: int, *, classes: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        self.classify = nn.Linear(dim, classes)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """A classifier near zero, so that no class is ahead (mmsegmentation's decode head: normal, 0.01)."""
        self.norm.reset_parameters()
        nn.init.normal_(self.classify.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.classify.bias)

    def forward(self, patches: Float[Tensor, "n p d"]) -> Float[Tensor, "n p c"]:
        """Scores of each patch's classes."""
        return self.classify(self.norm(patches.flatten(0, 1))).unflatten(0, patches.shape[:2])


def evaluate_probe(
    encode: EncodePatches,
    train: SegmentationSet,
    test: SegmentationSet,
    *,
    protocol: LinearProbe,
    geometry: Geometry,
    device: torch.device,
) -> Int[Tensor, "c c"]:
    """Train a head, then count the test images' pixels, true class by predicted class. Raises `DataError`."""
    classes = len(train.class_names)
    probe = train_probe(encode, train, protocol=protocol, geometry=geometry, device=device)
    confusion = torch.zeros(classes, classes, dtype=torch.long, device=device)
    with torch.no_grad():
        for images, masks in read_batches(test, geometry=geometry):
            scores = enlarge(probe(encode(images)), geometry=geometry)
            confusion += count_confusion(scores.argmax(dim=1), masks.to(device), classes=classes)
    return confusion


def train_probe(
    encode: EncodePatches,
    train: SegmentationSet,
    *,
    protocol: LinearProbe,
    geometry: Geometry,
    device: torch.device,
) -> SegmentationProbe:
    """A head that has learnt from crops of the train images, in evaluation mode."""
    probe, optimizer = None, None
    for iteration, (images, masks) in enumerate(read_crops(train, protocol=protocol, geometry=geometry)):
        with torch.no_grad():
            patches = encode(images)
        if probe is None or optimizer is None:
            probe = SegmentationProbe(patches.shape[2], classes=len(train.class_names)).to(device).train()
            probe.init_weights(torch.Generator(device).manual_seed(protocol.seed))
            optimizer = torch.optim.AdamW(probe.parameters(), weight_decay=protocol.weight_decay)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(iteration, protocol=protocol)
        loss = pixel_loss(enlarge(probe(patches), geometry=geometry), masks.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert probe is not None, "a probe of no iterations"
    return probe.eval()


def learning_rate(iteration: int, *, protocol: LinearProbe) -> float:
    """A linear decay to zero at the end, damped by a linear warm-up."""
    warmup = min(1.0, (iteration + 1) / max(1, protocol.warmup_iterations))
    return protocol.lr * warmup * (1 - iteration / protocol.iterations)


def pixel_loss(scores: Float[Tensor, "n c px px"], masks: UInt8[Tensor, "n px px"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the labeled pixels, zero where there is none."""
    total = functional.cross_entropy(scores, masks.long(), ignore_index=IGNORED, reduction="sum")
    return total / (masks != IGNORED).sum().clamp_min(1)


def read_crops(
    train: SegmentationSet, *, protocol: LinearProbe, geometry: Geometry
) -> Iterator[tuple[UInt8[Tensor, "n px px 3"], UInt8[Tensor, "n px px"]]]:
    """A batch of crops for each iteration; every image is drawn as often as every other, to within once."""
    generator = np.random.default_rng(protocol.seed)
    needed = protocol.iterations * protocol.batch
    epochs = [generator.permutation(len(train)) for _ in range(-(-needed // len(train)))]
    order = np.concatenate(epochs)[:needed].reshape(protocol.iterations, protocol.batch)
    batches = [(iteration, tuple(indices.tolist())) for iteration, indices in enumerate(order)]
    return iter(prefetch(functools.partial(_crop, train, protocol, geometry.px), batches, workers=geometry.workers))


def _crop(
    train: SegmentationSet, protocol: LinearProbe, px: int, batch: tuple[int, tuple[int, ...]]
) -> tuple[UInt8[Tensor, "n px px 3"], UInt8[Tensor, "n px px"]]:
    iteration, indices = batch
    images, masks = [], []
    for position, index in enumerate(indices):
        generator = np.random.default_rng([protocol.seed, iteration, position])
        image, mask = train.read(index)
        box = draw_box(image.size, scale=protocol.crop_scale, generator=generator)
        pixels = square_view(image.crop(box), px=px)
        classes = square_mask(np.asarray(Image.fromarray(mask).crop(box)), px=px)
        step = -1 if generator.random() < 0.5 else 1
        images.append(pixels[:, ::step])
        masks.append(classes[:, ::step])
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks))
