"""Overrides: what is written as `key=value` is what the recipe has, and whatever will not do is answered."""

import dataclasses
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_copies import ROOT, ROW, fail

from franca.config import Recipe, make_config, peak_lr
from reproduce.compose import compose
from reproduce.errors import SpecError
from reproduce.overrides import apply_overrides, parse_overrides
from reproduce.resolve import run_name
from reproduce.spec import load_spec
from reproduce.validate import load_schema

SCHEMA = load_schema(ROOT)
MAPPING = compose(ROW, root=ROOT).mapping["recipe"]
MODEL = (
    "{patch_px: 4, embed_dim: 96, depth: 4, heads: 3, ffn: swiglu, ffn_ratio: 4.0, registers: 0, "
    "layerscale: 1.0, drop_path: 0.0, interpolate_offset: 0.1}"
)
PLAIN = make_config(Recipe, MAPPING)


def test_spec_without_overrides_is_the_row() -> None:
    """The unchanged row is no variant and has the row's own seed."""
    spec = load_spec(ROW, root=ROOT)
    assert (spec.variant, spec.changes, spec.seed, spec.name) == (False, (), 0, f"{ROW}@2")
    assert peak_lr(spec.recipe) == pytest.approx(9.91e-4, rel=1e-3)
    assert str(spec.claims[0].values[0].sources[0]) == "Franca training.md@24f8c60a"


def test_override_makes_a_variant_with_its_changes() -> None:
    """An override of the recipe makes a variant that lists what changed and has another fingerprint."""
    plain, spec = load_spec(ROW, root=ROOT), load_spec(ROW, root=ROOT, overrides=["optim.base_lr=1e-3", "seed=3"])
    assert spec.variant
    assert [str(change) for change in spec.changes] == ["optim.base_lr: 0.000701 → 0.001"]
    assert (spec.seed, spec.row_seed) == (3, 0)
    assert spec.recipe.optim.base_lr == 1e-3
    assert spec.fingerprint != plain.fingerprint


def test_override_that_changes_nothing_makes_no_variant() -> None:
    """A seed, or a value that the recipe already has, leaves the row what it is."""
    plain = load_spec(ROW, root=ROOT)
    for overrides in (["seed=7"], ["optim.base_lr=7.01e-4"], ["optim.clip_norm=3"]):
        spec = load_spec(ROW, root=ROOT, overrides=overrides)
        assert not spec.variant
        assert spec.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("override", "said", "mend"),
    [
        ("optim.base_rl=1", "no key optim.base_rl", "optim.base_lr"),
        ("base_lr=1", "no key base_lr", "optim.base_lr"),
        ("recipe.optim.base_lr=1", "no key recipe.optim.base_lr", "optim.base_lr"),
        ("recpie=1", "no key recpie", "schema.json"),
        ("optim=1", "no key optim", "optim.base_lr"),
        ("optim.base_lr=fast", "'fast' is not a number", "Learning rate after warm-up"),
        ("optim.base_lr=-1", "-1 is not more than 0", "Learning rate after warm-up"),
        ("optim.base_lr=null", "None is not a number", "Learning rate after warm-up"),
        ("iterations=1e3", "1000.0 is not a whole number", "Optimizer steps"),
        ("masking.kind=blok", "'blok' is not one of", "block"),
        ("seed=-1", "-1 is less than 0", "Seed"),
        ("crops.global_px=220", "no multiple of the patch", "224"),
        ("iterations=100", "optim.warmup_iterations: 100000 iterations are more", "100 or less"),
        ("losses.centering=softmax", "no Sinkhorn-Knopp", "false"),
        ("optim.base_lr", "not key=value", "key"),
        ("=1", "", "key"),
        ("", "not key=value", "key"),
        ("a b", "not key=value", "key"),
        ("+optim.base_lr=1", "more than one change", "key"),
        ("~optim.base_lr", "more than one change", "key"),
        ("optim.base_lr=1,2", "more than one change", "key"),
        ("optim.base_lr=range(1,3)", "more than one change", "key"),
        ("frozen_teacher=franca-L-in21k", "'franca-L-in21k' is not null or a mapping", "{row: NAME, model: {"),
        ("frozen_teacher={}", "missing key frozen_teacher.row", "{row: NAME, model: {"),
        ("frozen_teacher={embed_dim: 96}", "unknown key frozen_teacher.embed_dim", "{row: NAME, model: {"),
        ("frozen_teacher={row: a, model: {depth: 1}}", "missing key frozen_teacher.model.patch_px", "patch_px:"),
        ("frozen_teacher.row=franca-L-in21k", "no key frozen_teacher.row", "set frozen_teacher as a whole"),
        ("frozen_teacher.model.depth=3", "no key frozen_teacher.model.depth", "{row: NAME, model: {"),
        ("optim.base_lr=${seed}", "is not a number", "Learning rate"),
    ],
)
def test_mistaken_override_is_answered(override: str, said: str, mend: str) -> None:
    """An override that will not do is quoted with what is wrong and what was meant."""
    error = fail(ROOT, overrides=(override,))
    assert override in error.message
    assert said in error.message
    assert mend in (error.mend or "").replace("optim.base_lr=1e-3", "key")


def test_teacher_is_given_as_a_whole() -> None:
    """A mapping, quoted texts and all, is the recipe's frozen teacher, and the run's name is one of a folder."""
    changes = (f"frozen_teacher={{row: 'franca-L-in21k', model: {MODEL}}}", "masking.sample_probability=0")
    spec = load_spec("digits", root=ROOT, overrides=changes)
    assert spec.recipe.frozen_teacher is not None
    assert (spec.recipe.frozen_teacher.row, spec.recipe.frozen_teacher.model.depth) == ("franca-L-in21k", 4)
    assert {change.key for change in spec.changes} == {"frozen_teacher", "masking.sample_probability"}
    assert re.fullmatch(r"[\w.,=-]+", run_name(spec, seed=0))


def test_start_from_another_model_is_refused() -> None:
    """Weights that cannot fit are refused before a launch; those of the same model, and of no known row, are not."""
    error = fail(ROOT, "digits", overrides=("start=franca-B-in21k",))
    assert "recipe.start: the weights of franca-B-in21k do not fit: its model.patch_px is 14, this one's 4" in str(
        error
    )
    assert "start from a row of the same model" in (error.mend or "")
    for change in ("start=digits", "start=of_another_project"):
        assert load_spec("digits", root=ROOT, overrides=[change]).recipe.start == change.removeprefix("start=")


def test_override_given_twice_is_refused() -> None:
    """Two values for one key are a mistake, not a choice."""
    assert "given twice" in fail(ROOT, overrides=("seed=1", "seed=2")).message


@given(
    base_lr=st.floats(min_value=1e-5, max_value=10, allow_nan=False),
    iterations=st.integers(min_value=100_000, max_value=10**9),
    ratio=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    kind=st.sampled_from(["block", "inverse_block", "cyclic"]),
    half=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_overrides_arrive_as_they_were_given(
    base_lr: float, iterations: int, ratio: list[float], kind: str, half: bool, seed: int
) -> None:
    """Whatever valid value is written as an override is the value in the recipe, exactly."""
    overrides = [
        f"optim.base_lr={base_lr!r}",
        f"iterations={iterations}",
        f"masking.ratio={ratio}",
        f"masking.kind={kind}",
        f"quirks.koleo_half={str(half).lower()}",
        f"seed={seed}",
    ]
    parsed = parse_overrides(overrides, schema=SCHEMA)
    assert [override.value for override in parsed] == [base_lr, iterations, ratio, kind, half, seed]
    recipe = make_config(Recipe, apply_overrides(MAPPING, parsed))
    assert (recipe.optim.base_lr, recipe.iterations, recipe.masking.ratio) == (base_lr, iterations, tuple(ratio))
    assert (recipe.masking.kind, recipe.quirks.koleo_half) == (kind, half)
    assert (
        dataclasses.replace(
            recipe, optim=PLAIN.optim, iterations=PLAIN.iterations, masking=PLAIN.masking, quirks=PLAIN.quirks
        )
        == PLAIN
    )


TYPED = st.text(alphabet=string.punctuation + "ab1e \n\0é", max_size=20)


@given(TYPED | TYPED.map("optim.base_lr={}".format) | TYPED.map("heads.nesting=[{}]".format))
def test_any_text_is_an_override_or_an_answer(text: str) -> None:
    """Whatever is typed is taken for what it says or answered with an error that quotes it; nothing else is raised."""
    said = None
    try:
        (override,) = parse_overrides([text], schema=SCHEMA)
        make_config(Recipe, apply_overrides(MAPPING, [override]))
    except SpecError as error:
        said = error
    assert said is None or (repr(text) in said.message and said.mend)
