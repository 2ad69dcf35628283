"""Every measurement that was asked for of one teacher: a teacher and its configuration in, `evaluation.json` out.

The file names the checkpoint with its hash, the images and the protocol of each number. What an earlier call measured
of the same checkpoint stays in it.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from franca.config import ConfigError, TrainConfig
from franca.distributed import rank
from franca.evaluate.knn import replace_file, write_knn_results
from franca.evaluate.linear import LinearEvaluation, Probe, evaluate_linear
from franca.evaluate.logreg import ITERATIONS, LogisticEvaluation, evaluate_logistic
from franca.evaluate.protocol import FewShot, KnnEvaluation, encode_pixels, evaluate_knn, make_encoder
from franca.evaluate.teacher import Teacher, grid_px

PROTOCOLS = ("knn", "linear", "logreg")
SMALL = 20_000  # train images up to which raw pixels are worth a comparison and cost nothing


@dataclass(frozen=True)
class Wanted:
    """Which protocols to run, and how."""

    protocols: tuple[str, ...] = ("knn",)
    few_shot: FewShot = field(default_factory=FewShot)
    probe: Probe = field(default_factory=Probe)


def measure(
    teacher: Teacher, *, config: TrainConfig, wanted: Wanted, device: torch.device, folder: Path, pixels: bool
) -> dict[str, Any]:
    """Run the protocols; returns the content of `evaluation.json`. DINOv2's own result files are written to `folder`.

    `pixels`: compare with raw pixels where the train set is small.
    """
    content: dict[str, Any] = {
        "iteration": teacher.iterations,
        "checkpoint": str(Path(*teacher.path.parts[-3:]) if teacher.iterations is not None else teacher.path.name),
        "checkpoint_sha256": teacher.sha256,
    }
    if teacher.iterations is None:
        content["grid_px"] = grid_px(teacher.model)  # a released file may be of another size than it is listed for
    encode = make_encoder(teacher.model, config=config, device=device)
    unreadable: tuple[str, ...] = ()
    if "knn" in wanted.protocols:
        model = evaluate_knn(encode, config=config, device=device, few_shot=wanted.few_shot)
        baseline = None
        if pixels and model.train_images <= SMALL:
            baseline = evaluate_knn(encode_pixels, config=config, device=device)
        content |= render_knn(model, baseline, config=config)
        unreadable += model.unreadable
    if "linear" in wanted.protocols:
        options = {"config": config, "device": device, "folder": folder}
        linear = evaluate_linear(teacher.model, **options, probe=wanted.probe, sha256=teacher.sha256)
        content |= {"linear": render_linear(linear, probe=wanted.probe, config=config)}
        unreadable += linear.unreadable
    if "logreg" in wanted.protocols:
        logistic = evaluate_logistic(encode, config=config, device=device, folder=folder)
        content |= {"logreg": render_logistic(logistic, config=config)}
        unreadable += logistic.unreadable
    return {**content, "unreadable": list(dict.fromkeys(unreadable))}


def render_knn(model: KnnEvaluation, pixels: KnnEvaluation | None, *, config: TrainConfig) -> dict[str, Any]:
    """What `evaluation.json` says of k-NN."""
    evaluation = config.recipe.evaluation
    found: dict[str, Any] = {
        "knn": model.accuracies,
        "pixels_knn": pixels and pixels.accuracies,
        "protocol": {
            "k": evaluation.knn_k,
            "temperature": evaluation.knn_temperature,
            "train_images": model.train_images,
            "test_images": model.test_images,
            "dataset": config.recipe.data.evaluation_dataset,
            "px": config.recipe.crops.global_px,
        },
    }
    if model.few_shot:
        found["knn_per_class"] = {f"{count} per class, k = {k}": value for (count, k), value in model.few_shot.items()}
    return found


def render_linear(linear: LinearEvaluation, *, probe: Probe, config: TrainConfig) -> dict[str, Any]:
    """What `evaluation.json` says of the linear probe."""
    return {
        "top_1": linear.accuracy,
        "classifier": linear.classifier,
        "trained_on": linear.features,
        "iterations": probe.iterations,
        "batch": probe.batch,
        "learning_rates": [rate * linear.learning_rate_scale for rate in probe.learning_rates],
        "chosen_by": "accuracy on the test split, as published",
        "train_images": linear.train_images,
        "test_images": linear.test_images,
        "dataset": config.recipe.data.evaluation_dataset,
        "px": config.recipe.crops.global_px,
    }


def render_logistic(logistic: LogisticEvaluation, *, config: TrainConfig) -> dict[str, Any]:
    """What `evaluation.json` says of logistic regression."""
    return {
        "top_1": logistic.accuracy,
        "top_5": logistic.top_5,
        "C": logistic.strength,
        "chosen_by": "accuracy on a tenth of the train images",
        "unfinished_fits": logistic.unfinished,
        "iterations": ITERATIONS,
        "train_images": logistic.train_images,
        "test_images": logistic.test_images,
        "dataset": config.recipe.data.evaluation_dataset,
        "px": config.recipe.crops.global_px,
    }


def write_evaluation(path: Path, content: dict[str, Any]) -> None:
    """Replace `evaluation.json`; what the file says of the same checkpoint by other protocols stays."""
    if rank():
        return
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    same = {key: earlier.get(key) for key in ("checkpoint_sha256", "iteration")} == {
        key: content[key] for key in ("checkpoint_sha256", "iteration")
    }
    replace_file(path, json.dumps({**(earlier if same else {}), **content}, indent=2) + "\n")


def write_knn(path: Path, content: dict[str, Any]) -> None:
    """Write k-NN in DINOv2's form, from the content of `evaluation.json`."""
    few = {}
    for name, value in content.get("knn_per_class", {}).items():
        count, k = name.split(" per class, k = ")
        few[int(count), int(k)] = value
    write_knn_results(path, content["knn"], few_shot=few)


def with_image_size(config: TrainConfig, px: int | None) -> TrainConfig:
    """The configuration with images of another size to evaluate on; the same without one. Raises `ConfigError`."""
    recipe, patch_px = config.recipe, config.recipe.model.patch_px
    if px is None:
        return config
    if px < patch_px or px % patch_px:
        raise ConfigError(f"--size: {px} is not a multiple of recipe.model.patch_px, {patch_px}")
    crops = dataclasses.replace(recipe.crops, global_px=px)
    return dataclasses.replace(config, recipe=dataclasses.replace(recipe, crops=crops))


def render_table(content: dict[str, Any], *, name: str) -> str:
    """The numbers as a table to read."""
    after = f"teacher of {name} after {content['iteration']:,} iterations" if content["iteration"] is not None else name
    lines = [after]
    if "knn" in content:
        protocol, pixels = content["protocol"], content["pixels_knn"]
        lines[0] += (
            f", {protocol['train_images']:,} train and {protocol['test_images']:,} test images of {protocol['dataset']}"
        )
        lines.append("k-NN top-1   teacher" + ("   pixels" if pixels else ""))
        for k, accuracy in content["knn"].items():
            lines.append(f"k = {k:<6} {accuracy:8.2f} %" + (f" {pixels[k]:6.2f} %" if pixels else ""))
    for label, accuracy in content.get("knn_per_class", {}).items():
        lines.append(f"{label}: {accuracy:.2f} %")
    if "linear" in content:
        linear = content["linear"]
        lines.append(f"linear probe top-1: {linear['top_1']:.2f} % ({linear['classifier']}; {linear['trained_on']})")
    if "logreg" in content:
        logistic = content["logreg"]
        lines.append(f"logistic regression top-1: {logistic['top_1']:.2f} % (C = {logistic['C']:.3g})")
    if content["unreadable"]:
        count, first = len(content["unreadable"]), content["unreadable"][0]
        lines.append(f"{count} images could not be read and were left out, the first: {first}")
    return "\n".join(lines)
