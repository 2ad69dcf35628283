"""`python -m franca.evaluate RUN_FOLDER`: the k-NN accuracy of a run's newest teacher, into its `evaluation.json`.

Exit codes: 0 written; 2 a folder, configuration, dataset or weights file that will not do, said in one line.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from franca.config import ConfigError, TrainConfig, load_config
from franca.data.datasets import DataError
from franca.evaluate.knn import replace_file
from franca.evaluate.protocol import KnnEvaluation, encode_pixels, evaluate_knn, make_encoder
from franca.evaluate.teacher import Teacher, load_newest_teacher
from franca.models.weights import WeightsError

SMALL = 20_000  # train images up to which raw pixels are worth a comparison and cost nothing


def main(arguments: Sequence[str]) -> int:
    """Evaluate the run folder named on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m franca.evaluate", description="k-NN accuracy of a run's teacher")
    parser.add_argument("run_folder", type=Path, help="folder that holds the run's config.yaml")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to compute (default: where the run trained)")
    options = parser.parse_args(arguments)
    try:
        evaluate_run(options.run_folder, device=options.device)
    except (ConfigError, DataError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def evaluate_run(folder: Path, *, device: str | None = None) -> None:
    """Evaluate a run's newest teacher, print the accuracies and write `evaluation.json`."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; a run folder holds one")
    config = load_config(path)
    place = _make_device(device or config.execution.device)
    if config.execution.threads:
        torch.set_num_threads(config.execution.threads)
    teacher = load_newest_teacher(folder, config=config)
    model = evaluate_knn(make_encoder(teacher.model, config=config, device=place), config=config, device=place)
    pixels = None
    if model.train_images <= SMALL:
        pixels = evaluate_knn(encode_pixels, config=config, device=place)
    replace_file(folder / "evaluation.json", render_evaluation(teacher, model, pixels, config=config))
    print(render_table(teacher, model, pixels, config=config))


def render_evaluation(
    teacher: Teacher, model: KnnEvaluation, pixels: KnnEvaluation | None, *, config: TrainConfig
) -> str:
    """The text of `evaluation.json`."""
    recipe = config.recipe
    content = {
        "iteration": teacher.iterations,
        "checkpoint": str(Path(*teacher.path.parts[-3:])),
        "checkpoint_sha256": teacher.sha256,
        "knn": model.accuracies,
        "pixels_knn": pixels and pixels.accuracies,
        "protocol": {
            "k": recipe.evaluation.knn_k,
            "temperature": recipe.evaluation.knn_temperature,
            "train_images": model.train_images,
            "test_images": model.test_images,
            "dataset": recipe.data.evaluation_dataset,
        },
        "unreadable": model.unreadable,
    }
    return json.dumps(content, indent=2) + "\n"


def render_table(teacher: Teacher, model: KnnEvaluation, pixels: KnnEvaluation | None, *, config: TrainConfig) -> str:
    """The accuracies as a table to read."""
    images = (
        f"{model.train_images:,} train and {model.test_images:,} test images of {config.recipe.data.evaluation_dataset}"
    )
    lines = [
        f"teacher of {config.row}@{config.version} after {teacher.iterations:,} iterations, {images}",
        "k-NN top-1   teacher" + ("   pixels" if pixels else ""),
    ]
    for k, accuracy in model.accuracies.items():
        lines.append(f"k = {k:<6} {accuracy:8.2f} %" + (f" {pixels.accuracies[k]:6.2f} %" if pixels else ""))
    if model.unreadable:
        lines.append(
            f"{len(model.unreadable)} images could not be read and were left out, the first: {model.unreadable[0]}"
        )
    return "\n".join(lines)


def _make_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "the run trained on CUDA, and torch finds no CUDA device here; --device cpu computes on the CPU"
        )
    return torch.device(name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
