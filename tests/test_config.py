"""The configuration that trainer and harness share: strict in, equal out."""

import copy
import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from recipes import RECIPE, make_recipe, make_train_config

from franca.config import (
    ConfigError,
    Head,
    Recipe,
    TrainConfig,
    dump_config,
    load_config,
    make_config,
    peak_lr,
    prototypes_per_level,
    recipe_fingerprint,
    to_mapping,
)


def changed(key: str, value: Any) -> dict[str, Any]:
    """The small recipe's mapping with one dotted key set."""
    mapping = copy.deepcopy(RECIPE)
    *parents, name = key.split(".")
    target = mapping
    for parent in parents:
        target = target[parent]
    target[name] = value
    return mapping


@given(
    base_lr=st.floats(1e-12, 1e12),
    warmup=st.integers(0, 10**12),
    nesting=st.lists(st.integers(1, 2**40)),
    half=st.booleans(),
    seed=st.integers(0, 2**63),
)
def test_configuration_is_read_back_as_it_was_written(
    base_lr: float, warmup: int, nesting: list[int], half: bool, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any configuration survives config.yaml exactly, to the last bit of its floats."""
    recipe = make_recipe(
        optim={"base_lr": base_lr, "warmup_iterations": warmup},
        heads={"nesting": nesting},
        quirks={"koleo_half": half},
    )
    config = make_train_config(recipe, seed=seed)
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_file_is_plain_yaml_in_the_order_of_the_fields() -> None:
    """config.yaml is written to be read: plain YAML, with the fields where the dataclasses have them."""
    config = make_train_config(make_recipe())
    content = yaml.safe_load(dump_config(config))
    assert list(content) == [field.name for field in dataclasses.fields(TrainConfig)]
    assert content["recipe"]["crops"]["global_scale"] == [0.4, 1.0]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optim.base_rl", 1.0, r"unknown key optim\.base_rl \(did you mean optim\.base_lr\?\)"),
        ("zzz", 1, r"^unknown key zzz$"),
        ("optim.base_lr", "fast", r"optim\.base_lr: 'fast' is not of type float"),
        ("optim.base_lr", math.nan, r"optim\.base_lr: nan is not finite"),
        ("optim.base_lr", math.inf, r"optim\.base_lr: inf is not finite"),
        ("optim.base_lr", True, r"optim\.base_lr: True is not of type float"),
        ("iterations", 1.5, r"iterations: 1\.5 is not of type int"),
        ("iterations", True, r"iterations: True is not of type int"),
        ("masking.kind", "blok", r"masking\.kind: 'blok' is not one of 'block', 'inverse_block', 'cyclic'"),
        ("optim.betas", [0.9], r"optim\.betas: 1 values where 2 belong"),
        ("optim.betas", 0.9, r"optim\.betas: 0\.9 is not a list"),
        ("optim.betas", [0.9, "x"], r"optim\.betas\[1\]: 'x' is not of type float"),
        ("optim", 3, r"optim: a mapping belongs here, not int"),
        ("optim", None, r"optim: a mapping belongs here, not NoneType"),
        ("quirks.koleo_half", 1, r"quirks\.koleo_half: 1 is not of type bool"),
    ],
)
def test_mistake_is_named_with_its_key(key: str, value: Any, message: str) -> None:
    """Anything that is no recipe is refused with the dotted key, and the nearest one where it is misspelt."""
    with pytest.raises(ConfigError, match=message):
        make_config(Recipe, changed(key, value))


def test_missing_key_is_named() -> None:
    """Only quirks have defaults; every other key must be there."""
    mapping = copy.deepcopy(RECIPE)
    del mapping["optim"]["clip_norm"]
    with pytest.raises(ConfigError, match=r"missing key optim\.clip_norm"):
        make_config(Recipe, mapping)


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [\n", "row: digits\n", "\x00"])
def test_file_that_is_no_configuration_is_named(text: str, tmp_path: Path) -> None:
    """A torn or foreign config.yaml is an error that names the file."""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_config(path)


def test_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are an error that names the file."""
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_config(path)


def test_fingerprint_is_of_the_values() -> None:
    """Key order and the writing of a number do not count; every value does."""
    plain = recipe_fingerprint(make_recipe())
    reordered = make_config(Recipe, dict(reversed(RECIPE.items())))
    assert (
        recipe_fingerprint(reordered) == recipe_fingerprint(make_config(Recipe, changed("optim.clip_norm", 3))) == plain
    )
    others = [
        recipe_fingerprint(make_config(Recipe, changed(key, value)))
        for key, value in (
            ("optim.clip_norm", 3.0000000001),
            ("iterations", 101),
            ("heads.nesting", [48]),
            ("quirks.koleo_half", True),
            ("masking.kind", "cyclic"),
        )
    ]
    assert len({plain, *others}) == 6
    assert len(plain) == 16


@pytest.mark.parametrize(
    ("global_batch", "scaling", "peak"), [(1024, "sqrt_1024", 4e-3), (4096, "sqrt_1024", 8e-3), (64, "none", 4e-3)]
)
def test_peak_lr_follows_the_batch(global_batch: int, scaling: str, peak: float) -> None:
    """Under the square-root rule, four times the batch has twice the learning rate; without it, the same."""
    recipe = make_recipe(global_batch=global_batch, optim={"base_lr": 4e-3, "scaling": scaling})
    assert peak_lr(recipe) == pytest.approx(peak, rel=1e-15)


def test_prototypes_are_in_proportion_to_the_width() -> None:
    """Each Matryoshka level has prototypes in proportion to its width; without nesting there is one level of all."""
    head = Head(prototypes=131072, hidden=2048, bottleneck=256, layers=3)
    assert prototypes_per_level(head, ()) == (131072,)
    assert prototypes_per_level(head, (48, 96, 192, 384, 768)) == (8192, 16384, 32768, 65536, 131072)


def test_mapping_is_plain_data() -> None:
    """A configuration becomes dicts and lists alone, and the same configuration again."""
    recipe = make_recipe()
    mapping = to_mapping(recipe)
    assert make_config(Recipe, mapping) == recipe
    assert type(mapping) is dict
    assert type(mapping["optim"]["betas"]) is list


def test_configuration_is_read_without_torch() -> None:
    """The module that both sides share pulls in neither torch nor numpy."""
    script = "import sys, franca.config; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
