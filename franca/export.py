"""`franca export RUN_FOLDER --out FOLDER`: a run's newest teacher as a folder to share, which `franca.load` reads.

`model.safetensors` is the teacher's file, byte for byte; `config.json` describes the model; `README.md` is its card,
made of what the run folder holds: configuration, provenance, environment and evaluation. The verdict is `verdict.json`
in the run folder or, of a run below `runs/`, what `reproduce judge` wrote to `reports/` beside it.

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

# What Markdown, or HTML within it, gives a meaning: anywhere, at the end of a word, in an address, and at the beginning
SPECIAL = re.compile(r"([\\`*\[\]<>|~&$@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|^[#+=-](?!\w))")
NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")  # begins a list


def main(arguments: Sequence[str]) -> int:
    """Export the run folder named on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="franca export", description="a run's newest teacher as a folder to share")
    parser.add_argument("run_folder", type=Path, help="folder that holds the run's config.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; it must not exist")
    parser.add_argument("--verdict", type=Path, help="reports/ROW.json of the run (default: looked for)")
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
    records = {name: _read_record(folder / f"{name}.json") for name in ("provenance", "environment", "evaluation")}
    source = verdict or find_verdict(folder, config=config)
    records["verdict"] = _read_record(source)
    stranger = find_stranger(records["verdict"], folder=folder, teacher=teacher, records=records, config=config)
    if stranger and verdict:
        raise ConfigError(f"{verdict}: not the verdict on this teacher: {stranger}; `reproduce judge` writes one")
    if stranger:
        print(f"{source}: left out, not the verdict on this teacher: {stranger}", file=sys.stderr)
        records["verdict"] = {}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        draft = Path(temporary) / "export"
        draft.mkdir()
        shutil.copyfile(teacher.path, draft / WEIGHTS)
        replace_file(draft / DESCRIPTION, render_description(teacher, config=config))
        replace_file(draft / "README.md", render_card(teacher, config=config, **records))
        draft.replace(out)


def find_verdict(folder: Path, *, config: TrainConfig) -> Path:
    """Where the verdict on a run lies, or would: in its folder or, of PROJECT/runs/ROW@VERSION/RUN, in the reports."""
    run = folder.resolve()
    beside = folder / "verdict.json"
    if beside.is_file() or run.parents[1].name != "runs":
        return beside
    return run.parents[2] / "reports" / f"{config.row if run.name == 'main' else f'{config.row}.{run.name}'}.json"


def find_stranger(
    verdict: Mapping[str, Any],
    *,
    folder: Path,
    teacher: Teacher,
    records: Mapping[str, Mapping[str, Any]],
    config: TrainConfig,
) -> str:
    """What shows that a verdict is not on this teacher; empty where nothing does."""
    own = {"row": config.row, "version": config.version, "run": folder.resolve().name, "done": teacher.iterations}
    for key, value in own.items():
        if verdict.get(key, value) != value:
            return f"{key} is {verdict[key]}, here {value}"
    evaluation = records["evaluation"]
    measured = evaluation.get("knn", {}).values() if evaluation.get("checkpoint_sha256") == teacher.sha256 else ()
    for metric in verdict.get("metrics", ()):
        if metric["name"] == "knn_top1" and metric["mine"] is not None and measured and metric["mine"] not in measured:
            return f"its k-NN top-1 is {metric['mine']:.4f} %, which evaluation.json does not hold"
    return ""


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
    provenance: Mapping[str, Any],
    environment: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    verdict: Mapping[str, Any],
) -> str:
    """The text of `README.md`. Nothing that came from a file is taken for Markdown."""
    recipe, model = config.recipe, config.recipe.model
    changes = [str(change) for change in provenance.get("overrides", ()) if not str(change).startswith("seed=")]
    changed = f", changed: {', '.join(changes)}" if changes else ""
    parts = [
        f"# {escape(config.row)}, version {config.version}{escape(changed)}",
        *_render_changes(changes, recorded="overrides" in provenance, row=f"{config.row}@{config.version}"),
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
                "recipe": f"{config.row}@{config.version}{changed}",
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
    """A table of two columns, the values as code."""
    rows = [f"| {escape(str(key))} | {quote(str(value))} |" for key, value in entries.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def escape(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return NUMBERED.sub(r"\1\\\2", SPECIAL.sub(r"\\\1", " ".join(text.split())))


def quote(text: str) -> str:
    """Text as code within a table, in one line, between more backticks than it holds; with a bar, which would end its
    cell, it is no code but escaped."""
    text = " ".join(text.split())
    if "|" in text or not text:
        return escape(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def _render_changes(changes: Sequence[str], *, recorded: bool, row: str) -> list[str]:
    """How the recipe differs from the row's, if it does."""
    if changes:
        return [f"**This is not {escape(row)}:** its recipe was changed, {escape(', '.join(changes))}."]
    return [] if recorded else ["Whether the recipe is the row's was not recorded: the run has no provenance.json."]


def _render_evaluation(teacher: Teacher, evaluation: Mapping[str, Any]) -> list[str]:
    """The accuracies, where they are of this very file, each with the images and the conditions that it is of."""
    if evaluation.get("checkpoint_sha256") != teacher.sha256:
        return ["## Accuracy", "Not measured."]
    numbers = {}
    protocol = evaluation.get("protocol", {})
    for k, value in evaluation.get("knn", {}).items():
        condition = f"k = {k}, temperature {protocol['temperature']}, {_images(protocol)}"
        numbers[f"k-NN top-1 on {protocol['dataset']}, {condition}"] = f"{value:.2f} %"
    for key, label in (("linear", "linear probe"), ("logreg", "logistic regression")):
        if key in evaluation:
            found = evaluation[key]
            condition = f"trained on {found['trained_on']}, " if "trained_on" in found else ""
            condition += f"chosen by {found['chosen_by']}, {_images(found)}"
            numbers[f"{label} top-1 on {found['dataset']}, {condition}"] = f"{found['top_1']:.2f} %"
    return ["## Accuracy", "Of the frozen backbone.", render_table(numbers)]


def _images(protocol: Mapping[str, Any]) -> str:
    """How many images an accuracy is of, and of what size."""
    size = f" of {protocol['px']} px" if "px" in protocol else ""
    return f"{protocol['train_images']:,} train and {protocol['test_images']:,} test images{size}"


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
