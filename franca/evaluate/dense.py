"""`franca evaluate-dense RUN_OR_WEIGHTS --dataset voc --root FOLDER`: mean IoU of a backbone's patch features.

Writes `results_eval_segmentation.json` beside the checkpoint, or into `--out`: one JSON object a line, one line for
each dataset and method. Exit codes: 0 written; 2 a folder, configuration, dataset or weights file that will not do.
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from franca.config import ConfigError
from franca.data.datasets import DataError
from franca.data.pixel_labels import LAYOUTS, SegmentationSet, load_segmentation
from franca.evaluate.knn import replace_file
from franca.evaluate.segmentation import Geometry, InContext, class_iou, evaluate_in_context, mean_iou
from franca.evaluate.segmentation_probe import LinearProbe, evaluate_probe
from franca.evaluate.subject import (
    add_subject_arguments,
    choose_px,
    load_subject,
    make_device,
    make_patch_encoder,
)
from franca.evaluate.teacher import file_sha256
from franca.models.weights import WeightsError

FILE = "results_eval_segmentation.json"
SAME = ("dataset", "method", "train_list", "px", "rasa_sha256", "checkpoint_sha256")  # a line replaces one of the same


def main(arguments: Sequence[str]) -> int:
    """Evaluate what the command line names; returns the exit code."""
    options = _make_parser().parse_args(arguments)
    try:
        for path, line in evaluate_dense(options):
            write_result(path, line)
            print(
                f"{line['dataset']} {line['method']:10} mIoU {line['mIoU']:6.2f} %, {line['classes']} classes: {path}"
            )
    except (ConfigError, DataError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def evaluate_dense(options: argparse.Namespace) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The file of results and a line for it, for each method asked for, as soon as it is known."""
    device = make_device(options.device)
    train = load_segmentation(options.dataset, root=str(options.root), split=options.train_list)
    test = load_segmentation(options.dataset, root=str(options.root), split="val")
    subject = load_subject(options.subject, config=options.config, model=options.model)
    encode = make_patch_encoder(subject, device=device, rasa=options.rasa)
    patch_px = subject.model.model.patch_px
    geometry = Geometry(choose_px(subject, options.size), patch_px, batch=options.batch, workers=options.workers)
    identity = {
        "checkpoint": subject.path.name,
        "checkpoint_sha256": subject.sha256,
        "rasa_sha256": file_sha256(options.rasa) if options.rasa else None,
        "train_list": options.train_list,
        "px": geometry.px,
    }
    for method in options.methods:
        protocol, evaluate = _choose(method, options)
        confusion = evaluate(encode, train, test, protocol=protocol, geometry=geometry, device=device)
        line = render_result(confusion, test, method=method) | identity | {"protocol": dataclasses.asdict(protocol)}
        yield (options.out or subject.path.parent) / FILE, line


def render_result(confusion: Tensor, test: SegmentationSet, *, method: str) -> dict[str, Any]:
    """Scores in percent: the mean IoU, that of each class which occurs, and the share of pixels that are right.

    Raises `DataError` where no pixel has a class.
    """
    iou = dict(zip(test.class_names, (100 * class_iou(confusion)).tolist(), strict=True))
    present = {name: value for name, value in iou.items() if not math.isnan(value)}
    right, labeled = int(confusion.diagonal().sum()), int(confusion.sum())
    if not labeled:
        raise DataError(f"{test.pairs[0][1].parent}: no pixel of the {len(test)} masks has a class")
    return {
        "dataset": test.name,
        "method": method,
        "mIoU": mean_iou(confusion),
        "aAcc": 100 * right / labeled,
        "classes": len(present),
        "images": len(test),
        "class_iou": present,
    }


def write_result(path: Path, line: dict[str, Any]) -> None:
    """Add a line to a file of results, in the place of one of the same dataset, method and checkpoint.

    Raises `ConfigError` where the file is not one of results.
    """
    try:
        before = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
        kept = [other for other in before if any(other[key] != line[key] for key in SAME)]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a file of segmentation results; move it, or name another --out") from error
    replace_file(path, "".join(json.dumps(each) + "\n" for each in (*kept, line)))


def _choose(method: str, options: argparse.Namespace) -> tuple[InContext | LinearProbe, Callable[..., Tensor]]:
    if method == "in-context":
        protocol = InContext(options.memory, options.k, options.temperature, options.seed)
        return protocol, evaluate_in_context
    warmup = max(1, options.iterations * LinearProbe.warmup_iterations // LinearProbe.iterations)  # the same share
    probe = LinearProbe(iterations=options.iterations, lr=options.lr, warmup_iterations=warmup, seed=options.seed)
    return probe, evaluate_probe


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="franca evaluate-dense", description="segmentation by frozen patch features")
    add_subject_arguments(parser)
    parser.add_argument("--dataset", choices=tuple(LAYOUTS), required=True)
    parser.add_argument("--root", type=Path, required=True, help="folder of the dataset, in its published layout")
    parser.add_argument("--methods", nargs="+", choices=("in-context", "linear"), default=["in-context"])
    parser.add_argument("--train-list", default="train", help="list of the train images; of VOC also trainaug")
    parser.add_argument("--rasa", type=Path, help="a RASA head, applied to the patch tokens first")
    parser.add_argument("--out", type=Path, help="folder for the results (default: that of the checkpoint)")
    parser.add_argument("--batch", type=_count, default=16, help="images at a time")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--memory", type=_count, default=InContext.memory, help="patches that are remembered")
    parser.add_argument("--k", type=_count, default=InContext.k, help="neighbors that are asked")
    parser.add_argument("--temperature", type=_positive, default=InContext.temperature)
    parser.add_argument(
        "--iterations", type=_count, default=LinearProbe.iterations, help="of the linear head's training"
    )
    parser.add_argument("--lr", type=_positive, default=LinearProbe.lr, help="of the linear head")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value}: at least 1")
    return value


def _positive(text: str) -> float:
    if not 0 < (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: not a positive number")
    return value
