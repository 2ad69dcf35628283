"""`franca export RUN_FOLDER --out FOLDER`: a run's newest teacher as a folder to share, which `franca.load` reads.

`model.safetensors` is the teacher's file, byte for byte; `config.json` describes the model; `README.md` is its card,
made of what the run folder holds: configuration, environment, evaluation and, where there is one, the verdict.

Exit codes: 0 written; 2 a run without a teacher or a folder that will not do, said in one line.
"""

import argparse
import dataclasses
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from franca.config import ConfigError, TrainConfig, load_config, peak_lr
from franca.evaluate.knn import replace_file
from franca.evaluate.teacher import Teacher, load_newest_teacher
from franca.hub import DESCRIPTION, EXPORTED, WEIGHTS
from franca.models.weights import WeightsError

# What Markdown, or HTML within it, gives a meaning
SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!|~<>&$@:])")


def main(arguments: Sequence[str]) -> int:
    """Export the run folder named on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="franca export", description="a run's newest teacher as a folder to share")
    parser.add_argument("run_folder", type=Path, help="folder that holds the run's config.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; it must not exist")
    parser.add_argument("--verdict", type=Path, help="reports/ROW.json of the run (default: its verdict.json)")
    options = parser.parse_args(arguments)
    try:
        export_run(options.run_folder, out=options.out, verdict=options.verdict)
    except (ConfigError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(options.out)
    return 0


def export_run(folder: Path, *, out: Path, verdict: Path | None = None) -> None:
    """Write the newest teacher of a run to the new folder `out`, whole or not at all.

    Raises `WeightsError` on a run without a teacher, `ConfigError` on a folder that exists or a file that is damaged.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; a run folder holds one")
    if out.exists():
        raise ConfigError(f"{out}: exists already; name a folder that does not")
    config = load_config(path)
    teacher = load_newest_teacher(folder, config=config)
    if verdict is not None and not verdict.is_file():
        raise ConfigError(f"{verdict}: no such file; `reproduce judge` writes one")
    records = {
        "environment": _read_record(folder / "environment.json"),
        "evaluation": _read_record(folder / "evaluation.json"),
        "verdict": _read_record(verdict or folder / "verdict.json"),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        draft = Path(temporary) / "export"
        draft.mkdir()
        shutil.copyfile(teacher.path, draft / WEIGHTS)
        replace_file(draft / DESCRIPTION, render_description(teacher, config=config))
        replace_file(draft / "README.md", render_card(teacher, config=config, **records))
        draft.replace(out)


def render_description(teacher: Teacher, *, config: TrainConfig) -> str:
    """The text of `config.json`."""
    recipe = config.recipe
    content = {
        "model": dataclasses.asdict(recipe.model),
        "px": recipe.crops.global_px,
        "mean": recipe.data.mean,
        "std": recipe.data.std,
        "row": config.row,
        "version": config.version,
        "fingerprint": config.fingerprint,
        "seed": config.seed,
        "iterations": teacher.iterations,
        "sha256": teacher.sha256,
    }
    return json.dumps(content, indent=1) + "\n"


def render_card(
    teacher: Teacher,
    *,
    config: TrainConfig,
    environment: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    verdict: Mapping[str, Any],
) -> str:
    """The text of `README.md`. Nothing that came from a file is taken for Markdown."""
    recipe, model = config.recipe, config.recipe.model
    parts = [
        f"# {escape(config.row)}, version {config.version}",
        f"A vision transformer (patches of {model.patch_px} px, {model.embed_dim} dimensions, {model.depth} blocks, "
        f"{model.heads} heads, {escape(model.ffn)}, {model.registers} registers), pretrained by self-distillation on "
        f"{escape(recipe.data.dataset)}. This is the teacher's backbone after {teacher.iterations:,} of "
        f"{recipe.iterations:,} iterations at a global batch of {recipe.global_batch:,}.",
        "## Use",
        f'```python\nimport franca\n\nmodel = franca.load({EXPORTED!r}, weights="FOLDER")\n'
        "features = model.forward_features(images)\n```",
        f"Images are {recipe.crops.global_px} px wide and high, in 0..1 less {_numbers(recipe.data.mean)} over "
        f"{_numbers(recipe.data.std)} for each channel.",
        "## Where it comes from",
        render_table(
            {
                "recipe": f"{config.row}@{config.version}",
                "fingerprint of the recipe": config.fingerprint,
                "seed": config.seed,
                "peak learning rate": f"{peak_lr(recipe):.4g}",
                "SHA-256 of the weights": teacher.sha256,
                **{key: environment[key] for key in ("device", "processes", "torch", "python") if key in environment},
            }
        ),
        *_render_evaluation(teacher, evaluation),
        *_render_verdict(verdict),
    ]
    return "\n\n".join(parts) + "\n"


def render_table(entries: Mapping[str, object]) -> str:
    """A table of two columns."""
    rows = [f"| {escape(str(key))} | {escape(str(value))} |" for key, value in entries.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def escape(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _render_evaluation(teacher: Teacher, evaluation: Mapping[str, Any]) -> list[str]:
    """The accuracies, where they are of this very file."""
    if evaluation.get("checkpoint_sha256") != teacher.sha256:
        return ["## Accuracy", "Not measured."]
    numbers = {f"k-NN top-1, k = {k}": f"{value:.2f} %" for k, value in evaluation.get("knn", {}).items()}
    for key, label in (("linear", "linear probe"), ("logreg", "logistic regression")):
        if key in evaluation:
            numbers[f"{label} top-1"] = f"{evaluation[key]['top_1']:.2f} %"
    return ["## Accuracy", render_table(numbers)]


def _render_verdict(verdict: Mapping[str, Any]) -> list[str]:
    """Whether the published result was reproduced, and what could not be concluded."""
    if not verdict:
        return ["## Verdict", "The run was not judged."]
    doubts = [f"- {escape(str(doubt))}" for doubt in verdict.get("cannot_conclude", ())]
    outcome = f"**{escape(str(verdict.get('outcome')))}** {escape(str(verdict.get('sentence', '')))}"
    return ["## Verdict", outcome, *(["What could not be concluded:", "\n".join(doubts)] if doubts else [])]


def _read_record(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds no JSON object")
    return content


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
