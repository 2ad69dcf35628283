"""A recipe in, its contradictions out: what a schema cannot say because it takes two keys."""

from collections.abc import Iterator
from dataclasses import dataclass

from franca.config import Model, Recipe, peak_lr

SHAPE = ("patch_px", "embed_dim", "depth", "ffn")  # what another row's weights fit by


@dataclass(frozen=True)
class BrokenRule:
    """A contradiction: the dotted key to change, what is wrong, and how to mend it."""

    key: str
    message: str
    mend: str


def broken_rules(recipe: Recipe) -> Iterator[BrokenRule]:
    """Every contradiction of a recipe whose values are each valid alone."""
    yield from _sizes(recipe)
    yield from _ranges(recipe)
    yield from _schedules(recipe)
    yield from _quirks(recipe)
    yield from _distillation(recipe)


def broken_start(model: Model, *, row: str, theirs: Model) -> Iterator[BrokenRule]:
    """Every key at which a model cannot take over the weights of the row that its recipe starts from."""
    for name in SHAPE:
        own, other = getattr(model, name), getattr(theirs, name)
        if own != other:
            yield BrokenRule(
                "start",
                f"the weights of {row} do not fit: its model.{name} is {other}, this one's {own}",
                f"start from a row of the same model, or set model.{name} = {other}",
            )


def _sizes(recipe: Recipe) -> Iterator[BrokenRule]:
    patch, width, nesting = recipe.model.patch_px, recipe.model.embed_dim, recipe.heads.nesting
    for key, px in (("crops.global_px", recipe.crops.global_px), ("crops.local_px", recipe.crops.local_px)):
        if px % patch:
            yield BrokenRule(key, f"{px} px is no multiple of the patch of {patch} px", f"{key} = {_near(px, patch)}")
    if width % recipe.model.heads:
        yield BrokenRule(
            "model.heads", f"{recipe.model.heads} heads do not divide a width of {width}", "choose a divisor"
        )
    group = recipe.losses.koleo_images
    if group and recipe.global_batch % group:
        yield BrokenRule(
            "losses.koleo_images",
            f"a batch of {recipe.global_batch} has no whole groups of {group} images",
            "choose a divisor",
        )
    if nesting and (list(nesting) != sorted(set(nesting)) or nesting[-1] != width):
        yield BrokenRule(
            "heads.nesting", f"{list(nesting)} must ascend to the width of {width}", f"end the list with {width}"
        )
    for key, head in (("heads.dino", recipe.heads.dino), ("heads.ibot", recipe.heads.ibot)):
        if any(head.prototypes * level % width for level in nesting):
            yield BrokenRule(
                f"{key}.prototypes",
                f"{head.prototypes} prototypes do not divide among the widths {list(nesting)} in proportion",
                f"choose a multiple of {width // nesting[0]}",
            )


def _distillation(recipe: Recipe) -> Iterator[BrokenRule]:
    frozen = recipe.frozen_teacher
    if frozen is None:
        return
    for key, value in (
        ("masking.sample_probability", recipe.masking.sample_probability),
        ("model.drop_path", recipe.model.drop_path),
    ):
        if value:
            yield BrokenRule(key, f"{value}, but distillation masks no patches and drops no paths", f"{key} = 0")
    if frozen.model.patch_px != recipe.model.patch_px:
        yield BrokenRule(
            "model.patch_px",
            f"patches of {recipe.model.patch_px} px are not the teacher's, of {frozen.model.patch_px} px",
            f"model.patch_px = {frozen.model.patch_px}",
        )
    if any(width * frozen.model.embed_dim % recipe.model.embed_dim for width in recipe.heads.nesting):
        yield BrokenRule(
            "heads.nesting",
            f"these shares of {recipe.model.embed_dim} are no whole widths of the teacher's {frozen.model.embed_dim}",
            "choose widths that are",
        )


def _ranges(recipe: Recipe) -> Iterator[BrokenRule]:
    pairs = {
        "crops.global_scale": recipe.crops.global_scale,
        "crops.local_scale": recipe.crops.local_scale,
        "augment.blur_sigma": recipe.augment.blur_sigma,
        "masking.ratio": recipe.masking.ratio,
    }
    for key, (low, high) in pairs.items():
        if low > high:
            yield BrokenRule(key, f"{low} comes before the smaller {high}", f"{key} = [{high}, {low}]")


def _schedules(recipe: Recipe) -> Iterator[BrokenRule]:
    total = recipe.iterations
    lengths = {
        "optim.warmup_iterations": recipe.optim.warmup_iterations,
        "teacher.temperature_warmup_iterations": recipe.teacher.temperature_warmup_iterations,
        "optim.freeze_last_layer_iterations": recipe.optim.freeze_last_layer_iterations,
    }
    for key, length in lengths.items():
        if length > total:
            yield BrokenRule(key, f"{length} iterations are more than the run's {total}", f"{key} = {total} or less")
    if recipe.optim.min_lr > peak_lr(recipe):
        yield BrokenRule(
            "optim.min_lr",
            f"{recipe.optim.min_lr} is more than the peak of {peak_lr(recipe):.4g}",
            "choose a smaller one",
        )


def _quirks(recipe: Recipe) -> Iterator[BrokenRule]:
    quirks = recipe.quirks
    if quirks.matryoshka_full_input and not recipe.heads.nesting:
        yield BrokenRule(
            "quirks.matryoshka_full_input",
            "there are no nested heads to apply it to",
            "set it to false, or nest the heads",
        )
    for key, on in (
        ("quirks.sinkhorn_padding_rows", quirks.sinkhorn_padding_rows),
        ("quirks.sinkhorn_unscaled", quirks.sinkhorn_unscaled),
    ):
        if on and recipe.losses.centering != "sinkhorn":
            yield BrokenRule(key, "there is no Sinkhorn-Knopp to apply it to", f"{key} = false, or centering: sinkhorn")


def _near(px: int, patch: int) -> int:
    return max(1, round(px / patch)) * patch
