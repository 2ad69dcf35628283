"""L0 to L2 on runs with a known truth: what they pass, what they fail, the lines that they quote."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated_runs import (
    RECIPE,
    changed_recipe,
    make_history,
    make_records,
    render_text,
    simulate,
    with_columns,
    write_run,
)
from synthetic_runs import make_spec

from franca.config import recipe_fingerprint, to_mapping
from reproduce.checks import Check, quote
from reproduce.layers.configuration import check_configuration, known_recipe, translate_dinov2
from reproduce.layers.fingerprint import check_first_lines
from reproduce.layers.schedules import check_schedules, expected_medians, first_streak
from reproduce.lineage import load_history, make_lineage

LOGS = Path(__file__).parents[2] / "shared" / "logs" / "dinov2"
REFERENCES = [make_history(simulate(seed)) for seed in range(10)]
SPEC = make_spec(recipe=RECIPE, fingerprint=recipe_fingerprint(RECIPE), metrics=())


def by_id(checks: tuple[Check, ...]) -> dict[str, Check]:
    return {check.id: check for check in checks}


def test_same_recipe_passes() -> None:
    """Configurations that agree pass against the row and against the reference runs, and say over how many keys."""
    checks = by_id(check_configuration(make_history(simulate(50)), references=REFERENCES, spec=SPEC))
    assert {check.state for check in checks.values()} == {"pass"}
    assert "All 85 keys" in checks["recipe-row"].finding


def test_other_recipe_is_named_key_by_key() -> None:
    """Every differing key with both values, as a warning: the run is a variant."""
    mine = make_history(simulate(50, recipe=changed_recipe(optim={"base_lr": 0.008}, teacher={"momentum_start": 1.0})))
    checks = by_id(check_configuration(mine, references=REFERENCES, spec=SPEC))
    for check in checks.values():
        assert (check.state, check.value) == ("warn", 2.0)
        assert "optim.base_lr: 0.004 → 0.008" in check.finding
        assert "teacher.momentum_start: 0.992 → 1.0" in check.finding


def test_hidden_configuration_is_unknown() -> None:
    """Where there is no configuration, nothing is said of it."""
    mine = make_history(simulate(50), hidden=True)
    checks = check_configuration(mine, references=REFERENCES, spec=SPEC)
    assert {check.state for check in checks} == {"unknown"}


def test_edited_configuration_fails(tmp_path: Path) -> None:
    """A recipe that does not have the fingerprint written beside it was edited after the launch: the line is quoted."""
    folder = write_run(simulate(50), tmp_path / "run")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("base_lr: 0.004", "base_lr: 0.008"))
    check = by_id(check_configuration(load_history(folder), references=(), spec=SPEC))["recipe-row"]
    assert check.state == "fail"
    assert check.evidence[0].text.startswith("fingerprint: ")


def test_dinov2_configuration_is_translated() -> None:
    """The configuration of a public log, in our keys: lengths in iterations, the batch from the scaled rate."""
    path = LOGS / "sibling-1.log.txt"
    if not path.exists():
        pytest.skip(f"the public log {path} is not here")
    recipe = translate_dinov2(load_history(path).head)
    expected = {
        "iterations": 125_000,
        "global_batch": 12,
        "optim.warmup_iterations": 12_500,
        "optim.freeze_last_layer_iterations": 1250,
        "optim.scaling": "sqrt_1024",
        "teacher.temperature_warmup_iterations": 37_500,
        "model.embed_dim": 1024,
        "model.ffn": "mlp",
        "crops.local_scale": [0.05, 0.32],
        "losses.centering": "softmax",
        "heads.dino.prototypes": 65_536,
    }
    assert {key: recipe[key] for key in expected} == expected
    assert not [key for key in recipe if key.startswith("heads.ibot")]  # its heads are shared


def test_two_public_logs_are_compared_by_their_heads() -> None:
    """Two logs of one recipe agree; one of another data set differs in that alone."""
    paths = [LOGS / name for name in ("sibling-1.log.txt", "sibling-2.log.txt", "failed-launch-then-run.log.txt")]
    if not all(path.exists() for path in paths):
        pytest.skip(f"the public logs in {LOGS} are not here")
    one, other, third = (load_history(path) for path in paths)
    assert by_id(check_configuration(one, references=[other], spec=None))["recipe-references"].state == "pass"
    check = by_id(check_configuration(one, references=[third], spec=None))["recipe-references"]
    assert (check.state, check.value) == ("warn", 1.0)
    assert "data.dataset_path" in check.finding


def test_first_lines_of_another_seed_pass() -> None:
    """Another seed of the recipe starts within the spread of the references."""
    for seed in range(20, 30):
        (check,) = check_first_lines(make_history(simulate(seed)), references=REFERENCES, alpha=0.0025)
        assert check.state == "pass", check.finding


def test_first_lines_of_another_head_fail(tmp_path: Path) -> None:
    """A loss that starts elsewhere fails at iteration 0, quoting both lines."""
    truth = with_columns(simulate(20), ibot_loss=lambda values: values + math.log(2))
    runs = [load_history(write_run(simulate(seed), tmp_path / f"seed-{seed}")) for seed in range(10)]
    (check,) = check_first_lines(load_history(write_run(truth, tmp_path / "mine")), references=runs, alpha=0.0025)
    assert (check.state, check.iteration) == ("fail", 0)
    assert [evidence.line for evidence in check.evidence] == [1, 1]
    assert all('"ibot_loss": ' in evidence.text for evidence in check.evidence)


def test_first_lines_against_one_reference() -> None:
    """Fixed limits for a run of the same seed; where the seed differs or is not known, one run tells nothing."""
    mine = make_history(with_columns(simulate(3), dino_local_crops_loss=lambda values: values * 1.001))
    (check,) = check_first_lines(mine, references=[REFERENCES[3]], alpha=0.0025)
    assert check.state == "fail"
    (check,) = check_first_lines(mine, references=[REFERENCES[4]], alpha=0.0025)
    assert check.state == "unknown"
    assert "gives no limit" in check.finding


def test_repeated_run_is_recognized() -> None:
    """A run whose every loss is a reference's is said to repeat it, also after a resume and without its config."""
    truth = simulate(3)
    records = make_records(truth, stop=400)
    records += make_records(truth, start=300, first_line=len(records) + 1)
    resumed = dataclasses.replace(make_history(truth, hidden=True), lineage=make_lineage(records))
    for mine in (REFERENCES[3], resumed):
        (check,) = check_first_lines(mine, references=REFERENCES, alpha=0.0025)
        assert "seed-3, digit for digit" in check.finding


def test_printed_schedule_is_the_lower_median() -> None:
    """What is expected on a line is the sorted window's lower middle, however short the window."""
    values = np.random.default_rng(0).standard_normal(100)
    iterations = np.array([0, 1, 10, 18, 19, 20, 50, 99])
    naive = [sorted(values[max(i - 19, 0) : i + 1])[(min(i, 19)) // 2] for i in iterations]
    np.testing.assert_array_equal(expected_medians(values, iterations), naive)
    np.testing.assert_array_equal(expected_medians(values[:5], iterations[:2]), naive[:2])


def test_streak_needs_three_lines_in_a_row() -> None:
    """One or two odd lines are none; where there are fewer lines, all of them must differ."""
    assert first_streak(np.array([1, 1, 0, 1, 1, 0], dtype=bool)) is None
    assert first_streak(np.array([1, 0, 1, 1, 1], dtype=bool)) == 2
    assert first_streak(np.array([1, 1], dtype=bool)) == 0
    assert first_streak(np.array([], dtype=bool)) is None


@pytest.mark.parametrize("hidden", [False, True])
def test_same_schedules_pass(hidden: bool) -> None:
    """A run of the recipe has every column of the references, and of its own recipe where that is known."""
    mine = make_history(simulate(50), hidden=hidden)
    checks = check_schedules(mine, references=REFERENCES)
    assert {check.state for check in checks} == {"pass"}
    assert len(checks) == (5 if hidden else 9)


@pytest.mark.parametrize(
    ("change", "columns"),
    [
        ({"optim": {"base_lr": 0.0040001}}, {"lr", "last_layer_lr"}),
        ({"optim": {"warmup_iterations": 61}}, {"lr", "last_layer_lr"}),
        ({"optim": {"weight_decay_end": 0.401}}, {"wd"}),
        ({"optim": {"freeze_last_layer_iterations": 100}}, {"last_layer_lr"}),
        ({"teacher": {"momentum_start": 1.0}}, {"mom"}),
        ({"global_batch": 65}, {"lr", "last_layer_lr", "current_batch_size"}),
    ],
)
def test_changed_schedule_is_seen_without_a_configuration(change: dict[str, Any], columns: set[str]) -> None:
    """However small the change, the columns that it reaches fail, and no other, by the lines alone."""
    mine = make_history(simulate(50, recipe=changed_recipe(**change)), hidden=True)
    checks = check_schedules(mine, references=REFERENCES)
    assert {check.id.removeprefix("column-") for check in checks if check.state == "fail"} == columns


def test_first_deviating_line_is_quoted_from_both_logs(tmp_path: Path) -> None:
    """The evidence is the first line that differs, in mine and in the reference, cut down to what differs."""
    mine = load_history(
        write_run(simulate(50, recipe=changed_recipe(teacher={"momentum_end": 0.999})), tmp_path / "mine")
    )
    reference = load_history(write_run(simulate(0), tmp_path / "seed-0"))
    check = by_id(check_schedules(mine, references=[reference]))["column-mom"]
    assert (check.state, check.iteration) == ("fail", 30)
    lines = (tmp_path / "mine" / "training_metrics.json").read_text().splitlines()
    assert check.evidence[0].source == str(tmp_path / "mine" / "training_metrics.json")
    assert f'"mom": {json.loads(lines[3])["mom"]}' in check.evidence[0].text
    assert [evidence.line for evidence in check.evidence] == [4, 4]


def test_schedule_that_its_recipe_does_not_give_fails() -> None:
    """A log whose learning rate is not that of its own configuration fails without any reference."""
    mine = make_history(with_columns(simulate(50), lr=lambda values: values * 1.001))
    checks = by_id(check_schedules(mine, references=()))
    assert checks["schedule-lr"].state == "fail"
    assert "(computed)" in checks["schedule-lr"].evidence[-1].text
    assert checks["schedule-wd"].state == "pass"


def test_resume_does_not_break_a_schedule() -> None:
    """Windows that start anew, seen or unseen, are no deviation."""
    truth = simulate(50)
    for stop, start in ((305, 250), (300, 300)):
        records = make_records(truth, stop=stop)
        records += make_records(truth, start=start, first_line=len(records) + 1)
        mine = dataclasses.replace(make_history(truth), lineage=make_lineage(records))
        assert {check.state for check in check_schedules(mine, references=REFERENCES)} == {"pass"}


def test_text_and_json_logs_are_compared_to_rounding(tmp_path: Path) -> None:
    """A text log agrees with JSON lines of the same recipe to its four decimals, and says what it cannot show."""
    path = tmp_path / "mine.txt"
    path.write_text(render_text(simulate(50)))
    checks = by_id(check_schedules(load_history(path), references=REFERENCES))
    assert {check.state for check in checks.values()} == {"pass"}
    assert "4 decimals" in checks["column-lr"].cannot_say
    path.write_text(render_text(simulate(50, recipe=changed_recipe(optim={"base_lr": 0.008}))))
    assert by_id(check_schedules(load_history(path), references=REFERENCES))["column-lr"].state == "fail"


def test_batch_split_otherwise_is_excused() -> None:
    """Another batch per process at the same global batch is resources: a warning. Without a configuration it fails, and
    where its processes and parts do not make the global batch."""
    truth = with_columns(simulate(50), current_batch_size=lambda values: values / 2)
    half = make_history(truth)
    assert half.config is not None
    split = {**half.config, "execution": {**half.config["execution"], "accumulation": 2}}
    for mine, state in ((dataclasses.replace(half, config=split), "warn"), (half, "fail")):
        assert by_id(check_schedules(mine, references=REFERENCES))["column-current_batch_size"].state == state
    hidden = make_history(truth, hidden=True)
    assert by_id(check_schedules(hidden, references=REFERENCES))["column-current_batch_size"].state == "fail"


def test_real_siblings_have_the_same_schedules() -> None:
    """Two public runs of one recipe print the same columns on all common lines."""
    paths = [LOGS / name for name in ("sibling-1.log.txt", "sibling-2.log.txt")]
    if not all(path.exists() for path in paths):
        pytest.skip(f"the public logs in {LOGS} are not here")
    one, other = (load_history(path) for path in paths)
    checks = check_schedules(one, references=[other])
    assert [check.state for check in checks] == ["pass"] * 5
    assert "3,437 common lines" in checks[0].finding


def test_quotes_are_cut_to_what_matters(tmp_path: Path) -> None:
    """A line of either dialect is quoted with its number, its iteration and the one metric."""
    folder = write_run(simulate(0), tmp_path / "run")
    (evidence,) = quote(load_history(folder), 20, metric="wd")
    assert evidence.line == 3
    assert evidence.text.startswith('{"iteration": 20, … "wd": 0.04')
    (folder / "training_metrics.json").unlink()
    (evidence,) = quote(load_history(folder), 20, metric="koleo_loss")
    assert "Training  [ 20/600]  …  koleo_loss: 0." in evidence.text
    assert "wd" not in evidence.text
    assert quote(load_history(folder), 25, metric="wd") == ()


def test_known_recipe_of_each_source(tmp_path: Path) -> None:
    """From config.yaml, from our own log's head, and none from bare lines."""
    expected = to_mapping(RECIPE)["optim"]["base_lr"]
    folder = write_run(simulate(0), tmp_path / "run")
    assert known_recipe(load_history(folder))["optim.base_lr"] == expected
    assert known_recipe(load_history(folder / "log.txt"))["optim.base_lr"] == expected
    assert known_recipe(load_history(folder / "training_metrics.json")) == {}
