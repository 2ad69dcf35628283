"""The rows themselves: complete, consistent, cited, and as the sources have them."""

import dataclasses
import json
import typing
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

import pytest
import yaml

from franca.config import LATER, Recipe, peak_lr, prototypes_per_level, recipe_fingerprint
from reproduce.audit import audit, cross_checks
from reproduce.compose import row_paths
from reproduce.spec import Spec, list_rows, load_spec
from reproduce.versions import load_lock

ROOT = Path(__file__).parents[1]
ROWS = tuple(row_paths(ROOT))
PUBLISHED = tuple(row for row in ROWS if row != "digits")
SCHEMA = json.loads((ROOT / "experiments" / "schema.json").read_text())

# What the document that defines the rows says of each: GPUs, global batch, learning rate as printed; then the widths of
# the Matryoshka levels that Franca's code has.
DOCUMENTED = {
    "dinov2-B-in21k": (32, 2048, "1e-03", ()),
    "dinov2-L-in21k": (64, 3072, "3.5e-04", ()),
    "franca-B-in21k": (32, 2048, "1e-03", (48, 96, 192, 384, 768)),
    "franca-L-in21k": (64, 3072, "3.5e-04", (64, 128, 256, 512, 1024)),
    "franca-G-in21k": (128, 3072, "3.5e-04", (96, 192, 384, 768, 1536)),
    "franca-L-laion600m": (64, 3072, "3.5e-04", (64, 128, 256, 512, 1024)),
    "franca-G-laion600m": (128, 3072, "3.5e-04", (96, 192, 384, 768, 1536)),
}


@pytest.fixture(scope="module")
def specs() -> dict[str, Spec]:
    return {row: load_spec(row, root=ROOT) for row in ROWS}


def test_rows_are_the_published_table_and_ours() -> None:
    """There is a row for each line of the published table, and one of our own."""
    assert set(PUBLISHED) == set(DOCUMENTED)
    assert {summary.row for summary in list_rows(root=ROOT)} == set(ROWS)


@pytest.mark.parametrize("row", PUBLISHED)
def test_row_runs_what_its_document_says(row: str, specs: dict[str, Spec]) -> None:
    """Iterations, warm-up, batch, GPUs, stochastic depth and learning rate are the document's, as it prints them."""
    recipe, resources = specs[row].recipe, specs[row].resources
    gpus, batch, peak, nesting = DOCUMENTED[row]
    assert (recipe.iterations, recipe.optim.warmup_iterations) == (625_000, 100_000)
    assert (recipe.global_batch, resources.gpus, resources.gpus * resources.batch_per_gpu) == (batch, gpus, batch)
    assert format(peak_lr(recipe), ".1e" if "." in peak else ".0e") == peak
    assert recipe.model.drop_path == (0.1 if "-B-" in row else 0.4)
    assert (recipe.precision.backbone, recipe.precision.heads) == ("fp16", "fp32")
    assert recipe.heads.nesting == nesting
    assert (recipe.model.patch_px, recipe.model.ffn) == (14, "swiglu")


@pytest.mark.parametrize("row", PUBLISHED)
def test_quirks_are_those_of_the_code_that_made_the_row(row: str, specs: dict[str, Spec]) -> None:
    """Franca's rows have every quirk of its first release, the baselines the two of DINOv2."""
    quirks = dataclasses.asdict(specs[row].recipe.quirks)
    on = {name for name, value in quirks.items() if value}
    assert on == (set(quirks) if row.startswith("franca") else {"blur_inverted", "koleo_half"})


@pytest.mark.parametrize("row", [row for row in PUBLISHED if row.startswith("franca")])
def test_prototypes_fall_with_the_width(row: str, specs: dict[str, Spec]) -> None:
    """The five Matryoshka levels have 8,192 to 131,072 prototypes at every size of the model."""
    heads = specs[row].recipe.heads
    assert prototypes_per_level(heads.dino, heads.nesting) == (8192, 16384, 32768, 65536, 131072)


@pytest.mark.parametrize("row", ROWS)
def test_recipe_holds_what_the_claims_say_is_run(row: str, specs: dict[str, Spec]) -> None:
    """Every claim with a key in recipe or resources states the value that is there."""
    assert not [finding for finding in audit(specs[row]) if finding.holds is False]
    assert not [check for check in cross_checks(specs[row]) if check.agrees is False]


@pytest.mark.parametrize("row", ROWS)
def test_every_choice_is_explained(row: str, specs: dict[str, Spec]) -> None:
    """Where sources disagree, or none speaks of the row, the row says why it runs what it runs."""
    unexplained = [f.field for f in audit(specs[row]) if f.state in ("conflict", "open") and not f.why]
    assert not unexplained


@pytest.mark.parametrize("row", PUBLISHED)
def test_every_setting_of_a_published_row_has_a_claim(row: str, specs: dict[str, Spec]) -> None:
    """No value of the recipe stands without a source, but for quirks of a head that the row does not have."""
    claimed = {claim.recipe_key for claim in specs[row].claims}
    unclaimed = set(_leaves(Recipe)) - claimed
    ours = {"data.evaluation_dataset", "start", "frozen_teacher"}  # the rows begin at random and learn from no other
    assert {key for key in unclaimed if not key.startswith("quirks.")} == ours | (
        {"data.classes"} if "laion" in row else set()
    )
    assert (specs[row].recipe.start, specs[row].recipe.frozen_teacher) == ("", None)
    assert {key for key in unclaimed if getattr(specs[row].recipe.quirks, key.removeprefix("quirks."), False)} == set()


@pytest.mark.parametrize("row", ROWS)
def test_metrics_without_trust_have_no_target(row: str, specs: dict[str, Spec]) -> None:
    """A target is one of the published values and says why; withdrawn rows have none and say why not."""
    metrics = {metric.name: metric for metric in specs[row].metrics}
    knn = metrics["knn_top1"]
    assert knn.target_why
    withdrawn = row in ("franca-L-in21k", "franca-G-in21k", "franca-G-laion600m", "digits")
    assert (knn.target is None) == withdrawn
    for metric in metrics.values():
        assert metric.target is None or metric.target in [value.value for value in metric.values]


@pytest.mark.parametrize("row", ROWS)
def test_log_is_pinned_or_said_to_be_missing(row: str, specs: dict[str, Spec]) -> None:
    """A published log has a commit, a blob and a place; one that was never published has none of them."""
    log = specs[row].published_log
    pinned = (log.commit is not None, log.blob_sha1 is not None, bool(log.local))
    expected = {"published": (True, True, True), "never published": (False, False, False), "ours": (False, False, True)}
    assert pinned == expected[log.state]
    assert (log.state == "published") == (row in ("dinov2-B-in21k", "dinov2-L-in21k", "franca-B-in21k"))


def test_every_source_is_cited(specs: dict[str, Spec]) -> None:
    """The list of sources holds nothing that no row cites."""
    cited = {
        source.id
        for spec in specs.values()
        for values in (
            *(claim.values for claim in spec.claims),
            *(metric.values for metric in spec.metrics),
            spec.weights,
        )
        for value in values
        for source in value.sources
    }
    assert cited == set(specs["digits"].sources)


def test_versions_are_locked(specs: dict[str, Spec]) -> None:
    """versions.lock holds the fingerprint of every row as it is."""
    lock = load_lock(ROOT)
    assert {spec.name: recipe_fingerprint(spec.recipe) for spec in specs.values()}.items() <= lock.items()


def test_schema_and_configuration_have_the_same_keys() -> None:
    """The schema's recipe has exactly the fields of `franca.config.Recipe`, at every depth, with the same choices."""
    _compare(Recipe, SCHEMA["$defs"]["recipe"], "recipe")


def test_schema_closes_and_describes_every_object() -> None:
    """Every object of the schema refuses unknown keys, and every key says what it is."""
    for where, schema in _objects(SCHEMA, "schema"):
        assert schema.get("additionalProperties") is not None, where
        for name, child in schema.get("properties", {}).items():
            child = _resolve(child)
            assert child.get("description"), f"{where}.{name}"


def test_yaml_is_read_alike_by_every_reader() -> None:
    """PyYAML and OmegaConf read the same numbers: none is written so that one of them takes it for text."""
    from omegaconf import OmegaConf

    for path in sorted((ROOT / "experiments").rglob("*.yaml")):
        plain = yaml.safe_load(path.read_text())
        assert plain == OmegaConf.to_container(OmegaConf.load(path)), path


def _leaves(kind: Any, key: str = "") -> list[str]:
    found = []
    for name, hint in typing.get_type_hints(kind).items():
        dotted = f"{key}.{name}" if key else name
        found += _leaves(hint, dotted) if dataclasses.is_dataclass(hint) else [dotted]
    return found


def _resolve(schema: dict[str, Any]) -> dict[str, Any]:
    return SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _objects(schema: Any, where: str) -> list[tuple[str, dict[str, Any]]]:
    """Every object schema that lists properties, with the place where it stands."""
    if isinstance(schema, list):
        return [item for index, child in enumerate(schema) for item in _objects(child, f"{where}[{index}]")]
    if not isinstance(schema, dict):
        return []
    own = [(where, schema)] if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" else []
    return own + [item for name, child in schema.items() for item in _objects(child, f"{where}.{name}")]


def _compare(kind: Any, schema: dict[str, Any], where: str) -> None:
    schema = _resolve(schema)
    hints = typing.get_type_hints(kind)
    later = {field.name for field in dataclasses.fields(kind) if field.metadata == LATER}
    assert set(schema["properties"]) == set(hints), where
    assert set(hints) - later <= set(schema["required"]), where
    for name, hint in hints.items():
        child = _resolve(schema["properties"][name])
        if isinstance(hint, UnionType):  # X | None
            hint = next(part for part in typing.get_args(hint) if part is not NoneType)
            assert {"type": "null"} in child["anyOf"], f"{where}.{name}"
            child = _resolve(next(option for option in child["anyOf"] if option != {"type": "null"}))
        if dataclasses.is_dataclass(hint):
            _compare(hint, child, f"{where}.{name}")
        elif typing.get_origin(hint) is typing.Literal:
            assert set(child["enum"]) == set(typing.get_args(hint)), f"{where}.{name}"
        elif typing.get_origin(hint) is tuple:
            args = typing.get_args(hint)
            assert child["type"] == "array"
            fixed = None if args[-1] is Ellipsis else len(args)
            assert fixed is None or (child["minItems"], child["maxItems"]) == (fixed, fixed), f"{where}.{name}"
        else:
            names = {int: "integer", float: "number", bool: "boolean", str: "string"}
            assert child["type"] == names[hint], f"{where}.{name}"
