"""The audit: what sources say of a fact, whether they agree, and whether the recipe has what is said to be run."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_copies import copy_rows

from reproduce.audit import (
    audit,
    claim_state,
    cross_checks,
    equal,
    render_audit,
    render_value,
)
from reproduce.spec import Claim, ClaimedValue, Spec, list_rows, load_spec

ROOT = Path(__file__).parents[1]
FRANCA_B = load_spec("franca-B-in21k", root=ROOT)
SOURCES = FRANCA_B.sources


def make_claim(*values: tuple[object, str], tolerance: float = 0.0, assumed: bool = False) -> Claim:
    """A claim of (value, source ids) pairs."""
    claimed = tuple(
        ClaimedValue(value, tuple(SOURCES[id_] for id_ in ids.split()), assumed=assumed) for value, ids in values
    )
    return Claim("field", "Label", None, claimed, None, None, "", tolerance)


@pytest.mark.parametrize(
    ("claim", "state"),
    [
        (make_claim(), "open"),
        (make_claim((1, "fr.aug"), assumed=True), "open"),
        (make_claim((1, "fr.aug")), "single"),
        (make_claim((1, "computed fr.aug")), "single"),
        (make_claim((1, "fr.aug"), (1, "fr.aug")), "single"),
        (make_claim((1, "fr.aug fr.koleo")), "agree"),
        (make_claim((1, "fr.aug"), (1.0, "fr.koleo")), "agree"),
        (make_claim((1, "fr.aug"), (2, "fr.aug")), "conflict"),
        (make_claim((86_000_000, "fr.aug"), (85_737_984, "fr.koleo")), "conflict"),
        (make_claim((86_000_000, "fr.aug"), (85_737_984, "fr.koleo"), tolerance=0.01), "agree"),
        (make_claim(([0.1, 0.5], "fr.aug"), ([0.1, 0.65], "fr.koleo")), "conflict"),
        (make_claim((True, "fr.aug"), (1, "fr.koleo")), "conflict"),
    ],
)
def test_state_of_a_fact_follows_from_its_values(claim: Claim, state: str) -> None:
    """Values that differ are a conflict, equal ones of two sources agree; assumed ones are not counted."""
    assert claim_state(claim) == state


def test_a_conflict_among_claims_is_not_hidden_by_an_assumption() -> None:
    """A fallback from another row neither makes nor hides a conflict."""
    values = (*make_claim((1, "fr.aug")).values, *make_claim((2, "fr.koleo"), assumed=True).values)
    assert claim_state(dataclasses.replace(make_claim(), values=values)) == "single"


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)), st.floats(0, 0.5))
def test_values_equal_themselves(values: list[float], tolerance: float) -> None:
    """Every list of numbers equals itself and no longer one."""
    assert equal(values, tuple(values), tolerance=tolerance)
    assert not equal(values, [*values, 0.0], tolerance=tolerance)


def find(spec: Spec, field: str) -> tuple[str, dict[str, object]]:
    """(state, values by the title of each source) of one finding."""
    finding = next(finding for finding in audit(spec) if finding.field == field)
    return finding.state, {str(source): value.value for value in finding.values for source in value.sources}


def test_audit_shows_documents_against_configuration() -> None:
    """Franca-B: the document says 625,000 iterations on 32 GPUs, the configuration 1,000,000, the script 64 GPUs."""
    state, said = find(FRANCA_B, "iterations")
    assert state == "conflict"
    assert said["Franca training.md@24f8c60a"] == 625_000
    assert said["Franca franca/configs/train/IN21K/vitb14.yaml@24f8c60a"] == 1_000_000
    state, said = find(FRANCA_B, "gpus")
    assert state == "conflict"
    assert said["Franca training.md@24f8c60a"] == said["Franca paper, Table 8"] == 32
    assert said["Franca scripts/In-21K/franca-B.sh@24f8c60a"] == 64


def test_audit_begins_with_the_conflicts() -> None:
    """Conflicts come first, the row's own before those that all rows share."""
    states = [finding.state for finding in audit(FRANCA_B)]
    assert states == sorted(states, key=["conflict", "open", "agree", "single"].index)
    assert audit(FRANCA_B)[0].field == "iterations"


def test_changed_recipe_no_longer_holds_its_claims() -> None:
    """A variant is caught where it leaves what the claims say is run, derived facts included."""
    spec = load_spec("franca-B-in21k", root=ROOT, overrides=["optim.base_lr=1e-3", "model.ffn_ratio=3.0"])
    broken = {finding.field for finding in audit(spec) if finding.holds is False}
    assert broken == {"base_lr", "peak_lr", "ffn_ratio", "ffn_hidden"} | {"backbone_parameters", "trainable_parameters"}
    failing = {check.title for check in cross_checks(spec) if check.agrees is False}
    assert failing == {"Learning rate after warm-up"}
    assert "BUT the recipe has 0.001" in render_audit(spec)


def test_batch_that_the_machine_cannot_hold_is_found() -> None:
    """GPUs times images per GPU must be the global batch."""
    spec = load_spec("franca-B-in21k", root=ROOT, overrides=["global_batch=1024"])
    checks = {check.title: check for check in cross_checks(spec)}
    assert checks["Global batch"].agrees is False
    assert checks["Global batch"].computed == "32 GPUs × 64 images = 2,048"


def test_passes_over_the_data_are_computed() -> None:
    """625,000 iterations of 2,048 images are 97.3 passes over 13.15 million."""
    checks = {check.title: check for check in cross_checks(FRANCA_B)}
    assert checks["Passes over the data"].computed == "1,280,000,000 images of 13,153,500 = 97.3"
    assert checks["Seconds per iteration"].computed.endswith("= 0.271 s")


def test_log_that_is_not_where_the_row_says_is_found(tmp_path: Path) -> None:
    """A log of this project that no file is at is a mistake; one that was published may not be fetched yet."""
    project = copy_rows(tmp_path)
    found = {row: cross_checks(load_spec(row, root=project)) for row in ("digits", "franca-B-in21k")}
    checks = {row: next(check for check in found[row] if check.title.startswith("Log that")) for row in found}
    assert checks["digits"].agrees is False
    assert checks["digits"].computed == "nothing is at logfiles/digits/seed-*"
    assert checks["franca-B-in21k"].agrees is None
    assert "reproduce fetch franca-B-in21k" in checks["franca-B-in21k"].expected
    (project / "logfiles/digits/seed-1").mkdir(parents=True)
    assert not [check for check in cross_checks(load_spec("digits", root=project)) if check.agrees is False]
    assert {row.row: row.log_here for row in list_rows(root=project)} == {
        row.row: row.log != "published" for row in list_rows(root=project)
    }


def test_text_holds_values_sources_and_choice() -> None:
    """The audit as text says who claims what, what is run and why, and what the row is judged by."""
    text = render_audit(FRANCA_B)
    for said in (
        "CONFLICT Training iterations",
        "1,000,000 iterations",
        "runs 625,000 iterations: Document and paper agree",
        "ok  Global batch: 32 GPUs × 64 images = 2,048",
        "log: published, valeoai/Franca logfiles/In21K/Franca_B.txt",
        "k-NN, ImageNet-1k top-1: 77.5 %",
    ):
        assert said in text
    assert "Initial value of LayerScale" not in text
    assert "Initial value of LayerScale" in render_audit(FRANCA_B, states=("agree",))


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (625_000, "iterations", "625,000 iterations"),
        (7.01e-4, None, "0.000701"),
        (1e-5, None, "1e-05"),
        (True, None, "yes"),
        ([0.32, 1.0], None, "[0.32, 1]"),
        ([], None, "[]"),
        ("swiglu", None, "swiglu"),
        (None, "px", "none"),
    ],
)
def test_values_are_printed_to_be_read(value: object, unit: str | None, text: str) -> None:
    """Numbers are grouped, truth is yes or no, a unit follows."""
    assert render_value(value, unit=unit) == text
