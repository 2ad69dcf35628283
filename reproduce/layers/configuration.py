"""L0: the recipe that a run was trained with, held against the row's and against those of the reference runs.

A recipe comes from config.yaml, from the configuration that a log of ours prints, or from the one that a DINOv2 or
Franca log prints, translated key by key.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from franca.config import ConfigError, Recipe, koleo_group, make_config, recipe_fingerprint, to_mapping
from reproduce.checks import Check, Evidence, plural, the_references
from reproduce.lineage import History
from reproduce.log_head import Head, flatten
from reproduce.spec import Spec

SHOWN = 5  # differing keys in a sentence; the evidence lists them all

EMBED_DIMS = {"vit_small": 384, "vit_base": 768, "vit_large": 1024, "vit_giant2": 1536}
CENTERINGS = {"sinkhorn_knopp": "sinkhorn", "centering": "softmax"}

# dinov2 configs/ssl_default_config.yaml: its key → ours, where the value is the same.
SAME: dict[str, str] = {
    "student.patch_size": "model.patch_px",
    "student.drop_path_rate": "model.drop_path",
    "student.layerscale": "model.layerscale",
    "student.num_register_tokens": "model.registers",
    "student.interpolate_offset": "model.interpolate_offset",
    "teacher.momentum_teacher": "teacher.momentum_start",
    "teacher.final_momentum_teacher": "teacher.momentum_end",
    "teacher.warmup_teacher_temp": "teacher.temperature_start",
    "teacher.teacher_temp": "teacher.temperature_end",
    "optim.base_lr": "optim.base_lr",
    "optim.min_lr": "optim.min_lr",
    "optim.weight_decay": "optim.weight_decay_start",
    "optim.weight_decay_end": "optim.weight_decay_end",
    "optim.clip_grad": "optim.clip_norm",
    "optim.layerwise_decay": "optim.layerwise_decay",
    "optim.patch_embed_lr_mult": "optim.patch_embed_lr_multiplier",
    "crops.global_crops_size": "crops.global_px",
    "crops.global_crops_scale": "crops.global_scale",
    "crops.local_crops_number": "crops.local_number",
    "crops.local_crops_size": "crops.local_px",
    "crops.local_crops_scale": "crops.local_scale",
    "dino.loss_weight": "losses.dino_weight",
    "dino.koleo_loss_weight": "losses.koleo_weight",
    "dino.head_n_prototypes": "heads.dino.prototypes",
    "dino.head_hidden_dim": "heads.dino.hidden",
    "dino.head_bottleneck_dim": "heads.dino.bottleneck",
    "dino.head_nlayers": "heads.dino.layers",
    "ibot.loss_weight": "losses.ibot_weight",
    "ibot.mask_ratio_min_max": "masking.ratio",
    "ibot.mask_sample_probability": "masking.sample_probability",
    "ibot.head_n_prototypes": "heads.ibot.prototypes",
    "ibot.head_hidden_dim": "heads.ibot.hidden",
    "ibot.head_bottleneck_dim": "heads.ibot.bottleneck",
    "ibot.head_nlayers": "heads.ibot.layers",
    "evaluation.eval_period_iterations": "evaluation.period_iterations",
    "train.dataset_path": "data.dataset_path",
}
# The same of lengths that DINOv2 states in its epochs of OFFICIAL_EPOCH_LENGTH iterations.
EPOCHS: dict[str, str] = {
    "optim.epochs": "iterations",
    "optim.warmup_epochs": "optim.warmup_iterations",
    "optim.freeze_last_layer_epochs": "optim.freeze_last_layer_iterations",
    "teacher.warmup_teacher_temp_epochs": "teacher.temperature_warmup_iterations",
}
# And of values that are spelled in another way.
TRANSLATED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "student.arch": ("model.embed_dim", EMBED_DIMS.get),
    "student.ffn_layer": ("model.ffn", lambda name: "swiglu" if str(name).startswith("swiglu") else name),
    "train.centering": ("losses.centering", CENTERINGS.get),
    "optim.scaling_rule": ("optim.scaling", lambda rule: "sqrt_1024" if rule == "sqrt_wrt_1024" else rule),
}


def check_configuration(mine: History, *, references: Sequence[History], spec: Spec | None) -> tuple[Check, ...]:
    """The recipe against its own fingerprint, against the row's, and against those of the references."""
    checks = []
    if spec is not None:
        checks.append(_check_against_row(mine, spec))
    if references:
        checks.append(_check_against_references(mine, references))
    return tuple(checks)


def known_recipe(history: History) -> dict[str, Any]:
    """What is known of a run's recipe, as dotted keys → values; empty where nothing is."""
    if history.config is not None:
        return flatten(history.config["recipe"])
    logged = (history.head.config or {}).get("recipe")
    return flatten(logged) if isinstance(logged, Mapping) else translate_dinov2(history.head)


def load_recipe(history: History) -> Recipe | None:
    """The whole recipe, where config.yaml or the log holds it."""
    mapping = (history.config or history.head.config or {}).get("recipe")
    try:
        return make_config(Recipe, mapping) if mapping else None
    except ConfigError:
        return None


def koleo_images(history: History) -> int | None:
    """Among how many images KoLeo sought neighbors, by this trainer's recipe; None of upstream's logs."""
    recipe = load_recipe(history)
    return None if recipe is None else koleo_group(recipe)


def translate_dinov2(head: Head) -> dict[str, Any]:
    """The configuration that a DINOv2 or Franca log prints, in our dotted keys; what has no counterpart is left out.

    The global batch follows from the scaled learning rate: new = base · sqrt(batch / 1024).
    """
    logged = flatten(head.config or {})
    recipe = {ours: logged[theirs] for theirs, ours in SAME.items() if theirs in logged}
    length = logged.get("train.OFFICIAL_EPOCH_LENGTH")
    for theirs, ours in EPOCHS.items():
        if isinstance(length, int) and isinstance(logged.get(theirs), (int, float)):
            recipe[ours] = round(logged[theirs] * length)
    for theirs, (ours, translate) in TRANSLATED.items():
        if isinstance(logged.get(theirs), str):
            recipe[ours] = translate(logged[theirs])
    if logged.get("ibot.separate_head") is False:
        recipe = {key: value for key, value in recipe.items() if not key.startswith("heads.ibot.")}
    if head.scaled_lr and head.scaled_lr[0] > 0:
        recipe["global_batch"] = round(1024 * (head.scaled_lr[1] / head.scaled_lr[0]) ** 2)
    return recipe


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys that both know and that differ, with both values."""
    return {key: (one[key], other[key]) for key in one if key in other and not _equal(one[key], other[key])}


def _check_against_row(mine: History, spec: Spec) -> Check:
    recipe = load_recipe(mine)
    blank = Check(
        id="recipe-row",
        layer="L0",
        title=f"Recipe of {spec.name}",
        state="unknown",
        finding="The run's configuration is not at hand.",
        value=None,
        limit=0,
        unit="differing keys",
        iteration=None,
        evidence=(),
        says="The run was told to do what the row's spec says.",
        cannot_say="Whether the code did what it was told.",
    )
    known = known_recipe(mine)
    if not known:
        return blank
    stated = (mine.config or {}).get("fingerprint")
    if recipe is not None and stated is not None and stated != recipe_fingerprint(recipe):
        finding = (
            f"The recipe in config.yaml was edited: its fingerprint is {recipe_fingerprint(recipe)}, not {stated}."
        )
        return dataclasses.replace(blank, state="fail", finding=finding, evidence=_config_evidence(mine, "fingerprint"))
    changed = {str(change.key): (change.old, change.new) for change in spec.changes}
    found = changed | {
        key: (new, old) for key, (old, new) in differing(known, flatten(to_mapping(spec.recipe))).items()
    }
    compared = plural(len(known.keys() & flatten(to_mapping(spec.recipe)).keys()), "key")
    return _judged(blank, found, same=f"All {compared} of the recipe are the row's.", other=f"the row {spec.name}")


def _check_against_references(mine: History, references: Sequence[History]) -> Check:
    known = known_recipe(mine)
    recipes = {run.name: known_recipe(run) for run in references}
    comparable = {name: recipe.keys() & known.keys() for name, recipe in recipes.items()}
    blank = Check(
        id="recipe-references",
        layer="L0",
        title="Recipe of the reference runs",
        state="unknown",
        finding="The configuration of the run or of the reference runs is not at hand.",
        value=None,
        limit=0,
        unit="differing keys",
        iteration=None,
        evidence=(),
        says="The run and the reference runs were told to do the same.",
        cannot_say="Whether both programs do the same with it.",
    )
    if not any(comparable.values()):
        return blank
    found: dict[str, tuple[Any, Any]] = {}
    for recipe in recipes.values():
        found |= {key: (theirs, ours) for key, (ours, theirs) in differing(known, recipe).items()}
    keys = plural(max(len(shared) for shared in comparable.values()), "key")
    runs = the_references(sum(bool(shared) for shared in comparable.values()))
    return _judged(blank, found, same=f"All {keys} known of {runs} are the same.", other="the reference runs")


def _judged(blank: Check, found: Mapping[str, tuple[Any, Any]], *, same: str, other: str) -> Check:
    """The check with its state: any differing key makes the run a variant, which is a warning, not a failure."""
    if not found:
        return dataclasses.replace(blank, state="pass", finding=same, value=0.0)
    listed = [f"{key}: {theirs} → {ours}" for key, (theirs, ours) in found.items()]
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    finding = f"Differs from {other} in {'; '.join(listed[:SHOWN])}{more}."
    evidence = tuple(Evidence("recipe", None, line) for line in listed)
    return dataclasses.replace(blank, state="warn", finding=finding, value=float(len(found)), evidence=evidence)


def _config_evidence(history: History, key: str) -> tuple[Evidence, ...]:
    path = history.path / "config.yaml"
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith(f"{key}:"):
            return (Evidence(str(path), number, line),)
    return ()


def _equal(one: Any, other: Any) -> bool:
    """Equal values; floats to the twelve digits that a log prints at most, lists as tuples."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-12)
    return bool(one == other)
