"""The images that a run counted against its recipe's and its references'."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from simulated_runs import RECIPE, changed_recipe, counted_data, make_history, make_records, simulate
from synthetic_runs import make_spec

from franca.config import to_mapping
from reproduce.conclusions import Outcome
from reproduce.layers.data import check_data, find_replay
from reproduce.lineage import History, load_history, make_lineage
from reproduce.log_head import Head
from reproduce.verdict import judge

HELD = counted_data(RECIPE)
REFERENCES = [make_history(simulate(seed)) for seed in range(2)]


def a_run(data: Mapping[str, Any] | None) -> History:
    return dataclasses.replace(make_history(simulate(50)), data=data)


@pytest.mark.parametrize(
    ("changes", "state", "said"),
    [
        ({}, "pass", "those of the 2 reference runs"),
        ({"fingerprint": "ffff"}, "warn", "images with the fingerprint ffff, not c42d"),
        ({"images": 1212}, "warn", "1,212 images, not 1,347 (-10.0%)"),
        ({"images": 1346, "fingerprint": None}, "pass", "1,346 images of digits."),
        ({"classes": 9}, "warn", "9 classes, not 10"),
        ({"classes": 0}, "pass", "1,347 images"),
    ],
)
def test_images_are_held_against_the_row_and_the_references(changes: dict[str, Any], state: str, said: str) -> None:
    """Counts within a thousandth, classes where there are labels, and fingerprints where both sides know theirs."""
    (check,) = check_data(a_run(HELD | changes), references=REFERENCES, spec=make_spec())
    assert check.state == state
    assert said in check.finding


def test_what_nobody_states_is_unknown() -> None:
    """A row's run without environment.json is asked for it; two bare logs are not."""
    (check,) = check_data(a_run(None), references=REFERENCES, spec=make_spec())
    assert check.state == "unknown"
    assert check_data(a_run(None), references=(), spec=None) == ()


def test_other_images_make_a_variant() -> None:
    """Whatever its curves show, the run did not do what the row says."""
    outcome: Outcome = judge(a_run(HELD | {"images": 1212}), REFERENCES, spec=make_spec()).outcome
    assert outcome == "variant"


def test_the_run_folder_holds_the_counts(tmp_path: Path) -> None:
    """environment.json is read with the run; one that is damaged or says something else is a problem or nothing."""
    source = Path(__file__).parents[1] / "logfiles" / "digits" / "seed-1"
    (tmp_path / "training_metrics.json").write_bytes((source / "training_metrics.json").read_bytes())
    environment = tmp_path / "environment.json"
    environment.write_text(json.dumps({"data": HELD}))
    assert load_history(tmp_path).data == HELD
    environment.write_text(json.dumps({"data": {"images": "<b>many</b>"}}))
    assert load_history(tmp_path).data is None
    environment.write_text("{")
    assert "not JSON" in str(load_history(tmp_path).problems)


def test_data_seen_again_after_a_resume_are_told() -> None:
    """By the run's own recipe, by the key that Franca's configuration alone has, or by the row's; once a run."""
    records = make_records(simulate(1))
    again = [dataclasses.replace(record, launch=1) for record in records if record.iteration >= 300]
    resumed = dataclasses.replace(a_run(None), lineage=make_lineage([*records, *again, *again]))
    franca, dinov2, plain = (
        dataclasses.replace(resumed, config=None, head=Head(config))
        for config in ({"dino": {"MRL": True}}, {"dino": {"head_nlayers": 3}}, None)
    )
    quirky = make_spec(recipe=changed_recipe(quirks={"data_replayed_on_resume": True}))
    own = dataclasses.replace(resumed, config={"recipe": to_mapping(quirky.recipe)})
    assert [find_replay(run, spec=None) is not None for run in (resumed, franca, dinov2, plain, own)] == [
        False, True, False, False, True,
    ]  # fmt: skip
    assert [find_replay(run, spec=quirky) is not None for run in (resumed, dinov2, plain)] == [False, False, True]
    assert find_replay(dataclasses.replace(own, lineage=make_lineage(records)), spec=None) is None
    (said,) = (problem for problem in judge(own, []).problems if "first sample" in problem)
    assert "2 resumes, the first at iteration 300" in said
