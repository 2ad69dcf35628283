"""Multi-crop augmentation beside torchvision's, in one process and in turn: images in, times and their ratios out.

    python benchmarks/augment.py [--images 40] [--rounds 7]

Both decode the same JPEG of 500 x 375 pixels and make 2 crops of 224 and 8 of 98 pixels with DINOv2's augmentation, on
one thread. Ours ends in bytes, as it travels to the device; theirs in normalized floats, as DINOv2 has it, and once
more in bytes. Torchvision is no dependency of this project: `pip install --no-deps torchvision`, of the release that
fits torch. Beside a CPU-only torch its wheel does not import; the lines that mend it are here.
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

sys.path.insert(0, str(Path(__file__).parents[1]))

from franca.config import Augment, Crops, Quirks
from franca.data.augment import multi_crop

CROPS = Crops(global_px=224, global_scale=(0.32, 1.0), local_number=8, local_px=98, local_scale=(0.05, 0.32))
AUGMENT = Augment(
    flip_probability=0.5,
    jitter=(0.4, 0.4, 0.2, 0.1),
    jitter_probability=0.8,
    gray_probability=0.2,
    blur_probability_global_1=1.0,
    blur_probability_global_2=0.1,
    blur_probability_local=0.5,
    blur_sigma=(0.1, 2.0),
    solarize_probability_global_2=0.2,
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Make = Callable[[bytes, int], object]


def main() -> None:
    """Print a table of milliseconds per image and the ratios to ours."""
    parser = argparse.ArgumentParser(description="multi-crop augmentation beside torchvision's")
    parser.add_argument("--images", type=int, default=40, help="images in each round")
    parser.add_argument("--rounds", type=int, default=7, help="rounds; the median and the least are shown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    jpeg = encode_photo()
    ways: dict[str, Make] = {"decoding alone": lambda content, seed: decode(content), "ours": augment_ours}
    transforms = import_transforms()
    if transforms is None:
        print("torchvision is not installed: ours alone", file=sys.stderr)
    else:
        ways["torchvision, bytes"] = make_theirs(transforms, floats=False)
        ways["torchvision, floats"] = make_theirs(transforms, floats=True)
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(options.rounds + 1):
        for name, make in ways.items():
            began = time.process_time()
            for seed in range(options.images):
                make(jpeg, seed)
            if round_number:  # the first one fills caches
                spent[name].append((time.process_time() - began) / options.images * 1e3)
    ours = statistics.median(spent["ours"])
    for name, times in spent.items():
        median = statistics.median(times)
        print(
            f"{name:20} {median:7.2f} ms, least {min(times):6.2f} ms, {1e3 / median:5.0f} images/s, "
            f"{median / ours:4.2f} x ours"
        )


def encode_photo() -> bytes:
    """A photograph of ImageNet's usual size as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(load_sample_image("china.jpg")).resize((500, 375)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def decode(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def augment_ours(content: bytes, seed: int) -> object:
    generator = np.random.default_rng(seed)
    return multi_crop(decode(content), crops=CROPS, augment=AUGMENT, quirks=Quirks(), generator=generator)


def make_theirs(transforms: ModuleType, *, floats: bool) -> Make:
    """The same augmentation of torchvision's classes on PIL images, as DINOv2 composes it."""
    jitter = [
        transforms.RandomApply([transforms.ColorJitter(*AUGMENT.jitter)], p=AUGMENT.jitter_probability),
        transforms.RandomGrayscale(p=AUGMENT.gray_probability),
    ]
    blur = transforms.GaussianBlur(9, AUGMENT.blur_sigma)
    end = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)] if floats else [transforms.PILToTensor()]

    def geometric(px: int, scale: tuple[float, float]) -> list:
        bicubic = transforms.InterpolationMode.BICUBIC
        return [
            transforms.RandomResizedCrop(px, scale=scale, interpolation=bicubic),
            transforms.RandomHorizontalFlip(AUGMENT.flip_probability),
        ]

    def compose(px: int, scale: tuple[float, float], blur_probability: float, last: list) -> Callable:
        blurred = transforms.RandomApply([blur], p=blur_probability)
        return transforms.Compose([*geometric(px, scale), *jitter, blurred, *last, *end])

    solarize = [transforms.RandomSolarize(threshold=128, p=AUGMENT.solarize_probability_global_2)]
    kinds = [
        compose(CROPS.global_px, CROPS.global_scale, AUGMENT.blur_probability_global_1, []),
        compose(CROPS.global_px, CROPS.global_scale, AUGMENT.blur_probability_global_2, solarize),
        *[compose(CROPS.local_px, CROPS.local_scale, AUGMENT.blur_probability_local, [])] * CROPS.local_number,
    ]

    def make(content: bytes, seed: int) -> object:
        torch.manual_seed(seed)
        image = decode(content)
        return [transform(image) for transform in kinds]

    return make


def import_transforms() -> ModuleType | None:
    """Torchvision's transforms; None where it is not installed."""
    try:
        from torchvision import transforms
    except ModuleNotFoundError:
        return None
    except RuntimeError:  # its operators are built for CUDA; declare the two that its import looks for
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        DECLARED.append(library)
        from torchvision import transforms
    return transforms


DECLARED: list[torch.library.Library] = []  # operators vanish with the object that declared them

if __name__ == "__main__":
    main()
