"""Verdicts on runs whose truth is known: outcomes, exit codes, sentences, false alarms, and the JSON round trip."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_runs import (
    ITERATIONS,
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

from franca.config import recipe_fingerprint
from reproduce.comparison import compare_runs
from reproduce.lineage import History, load_history, make_lineage
from reproduce.spec import Change
from reproduce.verdict import Verdict, judge

LOGS = Path(__file__).parents[2] / "shared" / "logs" / "dinov2"
REFERENCES = [make_history(simulate(seed)) for seed in range(10)]
SPEC = make_spec(recipe=RECIPE, fingerprint=recipe_fingerprint(RECIPE), metrics=())


def with_knn(history: History, final: float) -> History:
    return dataclasses.replace(history, knn={**history.knn, ITERATIONS: {10: final}})


def test_one_more_run_is_consistent() -> None:
    """A run of the recipe is consistent: no check fails, and what it cannot show is said."""
    verdict = judge(make_history(simulate(50)), REFERENCES, spec=SPEC)
    assert (verdict.outcome, verdict.exit_code, verdict.progress) == ("consistent", 0, 1.0)
    assert verdict.sentence.endswith("Equality is not shown.")
    assert any("would not have been seen" in sentence for sentence in verdict.cannot_conclude)
    assert {check.state for check in verdict.checks} == {"pass"}


def test_run_within_the_margin_is_reproduced() -> None:
    """Where seeds lie close together and the run among them, equality within the margin is shown."""
    close = [with_knn(run, 90.0 + 0.02 * place) for place, run in enumerate(REFERENCES)]
    flat = [dataclasses.replace(run, knn={ITERATIONS: run.knn[ITERATIONS]}) for run in close]
    mine = dataclasses.replace(make_history(simulate(50)), knn={ITERATIONS: {10: 90.1}})
    verdict = judge(mine, flat, spec=SPEC)
    assert (verdict.outcome, verdict.exit_code) == ("reproduced", 0)
    assert "lies inside the margin of ±0.5" in verdict.sentence


def test_repeated_run_is_reproduced() -> None:
    """A run that repeats a reference number for number is reproduced, even of one reference alone, even resumed."""
    truth = simulate(3)
    records = make_records(truth, stop=400)
    records += make_records(truth, start=300, first_line=len(records) + 1)
    resumed = dataclasses.replace(make_history(truth), lineage=make_lineage(records))
    for mine in (make_history(truth), resumed):
        for references in (REFERENCES, [REFERENCES[3]]):
            verdict = judge(mine, references)
            assert (verdict.outcome, verdict.exit_code) == ("reproduced", 0)
            assert "digit for digit" in verdict.sentence
            assert any("another seed" in sentence for sentence in verdict.cannot_conclude)


def test_resumed_run_is_judged_like_an_uninterrupted_one() -> None:
    """Lines that stand twice change neither outcome nor any state."""
    truth = simulate(51)
    records = make_records(truth, stop=400)
    records += make_records(truth, start=300, first_line=len(records) + 1)
    whole = judge(make_history(truth), REFERENCES)
    resumed = judge(dataclasses.replace(make_history(truth), lineage=make_lineage(records)), REFERENCES)
    assert resumed.outcome == whole.outcome == "consistent"
    assert [check.state for check in resumed.checks] == [check.state for check in whole.checks]


@pytest.mark.parametrize(
    ("change", "layer"),
    [
        ({"optim": {"base_lr": 0.008}}, "L2"),
        ({"teacher": {"momentum_start": 1.0}}, "L2"),
        ({"optim": {"weight_decay_end": 0.2}}, "L2"),
        ({"global_batch": 128}, "L2"),
    ],
)
def test_changed_hyperparameter_is_never_consistent(change: dict[str, Any], layer: str) -> None:
    """With its configuration the run is a variant; by its lines alone it fails where the schedule says so."""
    truth = simulate(50, recipe=changed_recipe(**change))
    known = judge(make_history(truth), REFERENCES, spec=SPEC)
    assert (known.outcome, known.exit_code) == ("variant", 1)
    hidden = judge(make_history(truth, hidden=True), REFERENCES)
    assert (hidden.outcome, hidden.exit_code) == ("failed", 1)
    assert hidden.sentence.startswith(f"It fails at {layer}: ")


@pytest.mark.parametrize("loss", ["koleo_loss", "ibot_loss", "dino_local_crops_loss"])
def test_loss_that_is_off_is_never_consistent(loss: str) -> None:
    """A loss column of zeros fails without any configuration."""
    truth = simulate(50)
    off = dataclasses.replace(truth, columns={**truth.columns, loss: np.zeros(ITERATIONS)})
    verdict = judge(make_history(off, hidden=True), REFERENCES)
    assert (verdict.outcome, verdict.exit_code) == ("failed", 1)
    assert loss in verdict.sentence


def test_loss_that_drifts_fails_by_its_curve_alone() -> None:
    """Nothing but a curve differs: the run fails at L4, with the block where it left."""
    verdict = judge(make_history(simulate(50, shift={"ibot_loss": 0.2}), hidden=True), REFERENCES)
    assert (verdict.outcome, verdict.exit_code) == ("failed", 1)
    assert "L4: ibot_loss leaves the band at iterations" in verdict.sentence


def test_better_and_worse() -> None:
    """k-NN decides: two points off, either way, is no reproduction."""
    for shift, outcome in ((-3.0, "worse"), (3.0, "better")):
        verdict = judge(make_history(simulate(50, knn_shift=shift)), REFERENCES, spec=SPEC)
        assert (verdict.outcome, verdict.exit_code) == (outcome, 1)
        assert "The losses do not show it." in verdict.sentence


def test_unfinished_run_is_on_track_or_not() -> None:
    """Half a run is judged as far as it came; one that is off already fails before its end."""
    verdict = judge(make_history(simulate(50), done=300), REFERENCES, spec=SPEC)
    assert (verdict.outcome, verdict.exit_code, verdict.done) == ("on track", 0, 291)
    assert verdict.progress == pytest.approx(0.485)
    assert "48.5 %" in verdict.sentence
    assert any("is to be expected at the end" in sentence for sentence in verdict.cannot_conclude)
    off = judge(make_history(simulate(50, shift={"ibot_loss": 0.4}), done=300), REFERENCES, spec=SPEC)
    assert off.outcome == "failed"


def test_first_part_says_how_far_it_came_and_what_it_cannot_prove() -> None:
    """A run that stopped between two lines is as far as its state says; it can be proven off, and never right."""
    mine = dataclasses.replace(make_history(simulate(50), done=60), state={"state": "paused", "iteration": 60})
    verdict = judge(mine, REFERENCES)
    assert (verdict.outcome, verdict.done, verdict.progress) == ("on track", 60, 0.1)
    assert "At 10 % (60 of 600 iterations)" in verdict.sentence
    assert any("can prove it off, and never right" in sentence for sentence in verdict.cannot_conclude)
    stale = dataclasses.replace(mine, state={"state": "running", "iteration": 20})
    assert judge(stale, REFERENCES).done == 51


def test_random_weights_are_no_result() -> None:
    """Before the first evaluation k-NN is that of random weights: named so, and of no consequence."""
    mine = dataclasses.replace(make_history(simulate(50), done=60), knn={0: {10: 80.0}})
    verdict = judge(mine, REFERENCES)
    (knn,) = (result for result in verdict.metrics if result.name == "knn_top1")
    assert (knn.state, knn.iteration) == ("unknown", 0)
    assert knn.title.endswith("of random weights")
    spec = dataclasses.replace(SPEC, variant=True, changes=(Change("optim.base_lr", 0.002, 0.004),))
    for sentence in (verdict.sentence, judge(mine, REFERENCES, spec=spec).sentence):
        assert "k-NN" not in sentence
    assert any(sentence.startswith("How good the features are") for sentence in verdict.cannot_conclude)


@pytest.mark.parametrize("accuracy", [37.0, 80.0])
def test_untrained_network_alone_decides_nothing(accuracy: float) -> None:
    """A run that is over and shares no evaluation but that of random weights has not enough evidence for any end."""
    history = make_history(simulate(50), done=60)
    mine = dataclasses.replace(history, total=60, knn={0: {10: accuracy}, 60: {10: 50.0}})
    variant = dataclasses.replace(SPEC, variant=True, changes=(Change("iterations", 600, 60),))
    for spec, outcome in ((variant, "variant"), (SPEC, "no reference"), (None, "no reference")):
        verdict = judge(mine, REFERENCES, spec=spec)
        assert (verdict.outcome, verdict.exit_code) == (outcome, 3)
        assert "only the untrained network's can be compared" in verdict.sentence
        (curve,) = (check for check in verdict.checks if check.id == "knn-curve")
        assert (curve.state, "untrained" in curve.finding) == ("unknown", True)
    compared = compare_runs(mine, REFERENCES).verdict
    assert (compared.outcome, compared.exit_code) == ("no reference", 3)


def test_untrained_network_is_not_held_against_the_published_value() -> None:
    """A log that does not say how long its run is, with random weights alone evaluated, is not judged by them."""
    recipe = changed_recipe(data={"evaluation_dataset": "imagenet1k"})
    spec = make_spec(recipe=recipe, fingerprint=recipe_fingerprint(recipe))
    mine = dataclasses.replace(make_history(simulate(50, recipe=recipe)), total=None, knn={0: {10: 5.0}})
    (knn,) = (result for result in judge(mine, [], spec=spec).metrics if result.name == "knn_top1")
    assert (knn.state, knn.iteration) == ("unknown", 0)


def test_two_limits_of_knn_are_told_apart() -> None:
    """Outside the margin by its interval and yet not called different: the sentence says why the one is wider."""
    history = make_history(simulate(50))
    center = float(np.mean([run.knn[600][10] for run in REFERENCES]))
    (knn,) = (result for result in judge(history, REFERENCES).metrics if result.name == "knn_top1")
    half = (knn.high - knn.low) / 2
    assert 0.5 + half < knn.detectable
    verdict = judge(with_knn_at(history, 600, center - (0.5 + half + knn.detectable) / 2), REFERENCES)
    assert verdict.outcome == "consistent"
    assert "lies outside the margin" in verdict.sentence
    assert f"once in ten, while a difference counts from {knn.detectable:.2g} points on" in verdict.sentence


def test_wide_limits_are_said_in_plain_numbers() -> None:
    """Of a loss that wanders wildly, more than the whole loss would not be seen: 130 %, not 1.3e+02 %."""
    wild = [make_history(simulate(seed, wander=0.4), hidden=True) for seed in (51, 52)]
    said = " ".join(judge(wild[0], wild[1:]).cannot_conclude)
    assert re.search(r" \d{3,} % of ", said)
    assert "e+0" not in said


def test_first_part_outside_the_margin_is_said() -> None:
    """A k-NN accuracy that differs by more than the margin, if not significantly, is in the sentence of a prefix."""
    history = make_history(simulate(50), done=300)
    center = np.mean([run.knn[200][10] for run in REFERENCES])
    verdict = judge(with_knn_at(history, 200, float(center) - 0.7), REFERENCES)
    assert verdict.outcome == "on track"
    assert "0.70 points below the mean of 10 reference runs" in verdict.sentence
    assert "Neither equality nor" in verdict.sentence or "Equality is not shown" in verdict.sentence


def with_knn_at(history: History, done: int, accuracy: float) -> History:
    return dataclasses.replace(history, knn={0: history.knn[0], done: {10: accuracy}})


def test_without_references() -> None:
    """What can be judged alone is; nothing more is claimed, and the exit code says that it is not enough."""
    verdict = judge(make_history(simulate(50)), [], spec=SPEC)
    assert (verdict.outcome, verdict.exit_code) == ("no reference", 3)
    assert "What can be judged alone passes" in verdict.sentence
    assert any("no log to compare with" in sentence for sentence in verdict.cannot_conclude)
    empty = judge(make_history(simulate(50), done=0), REFERENCES)
    assert (empty.outcome, empty.exit_code) == ("no reference", 3)
    assert "no iteration lines" in empty.sentence


def test_wrong_schedule_fails_without_references() -> None:
    """A run that does not follow its own recipe is not saved by having nothing to compare with."""
    truth = simulate(50)
    columns = {**truth.columns, "lr": truth.columns["lr"] * 2}
    verdict = judge(make_history(dataclasses.replace(truth, columns=columns)), [])
    assert (verdict.outcome, verdict.exit_code) == ("failed", 1)


def test_published_value_alone_can_be_reproduced() -> None:
    """Without a log, a published accuracy on 50,000 images can be met within the margin, and no more is claimed."""
    recipe = changed_recipe(data={"evaluation_dataset": "imagenet1k"})
    spec = make_spec(recipe=recipe, fingerprint=recipe_fingerprint(recipe))
    mine = with_knn(make_history(simulate(50, recipe=recipe)), 97.12)
    verdict = judge(mine, [], spec=spec)
    assert (verdict.outcome, verdict.exit_code) == ("reproduced", 0)
    assert any("no log to compare with" in sentence for sentence in verdict.cannot_conclude)
    assert judge(with_knn(mine, 95.0), [], spec=spec).outcome == "worse"


def test_variant_of_the_spec_is_a_variant() -> None:
    """Overrides make a variant even where the run does exactly what they say; without a deviation it exits with 0."""
    spec = dataclasses.replace(SPEC, variant=True, changes=(Change("optim.base_lr", 0.002, 0.004),))
    verdict = judge(make_history(simulate(50)), REFERENCES, spec=spec)
    assert (verdict.outcome, verdict.exit_code) == ("variant", 0)
    assert "optim.base_lr: 0.002 → 0.004" in verdict.sentence


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_references_say_so(count: int) -> None:
    """With few references no equality is claimed, and the limits are said to be estimated or wide."""
    verdict = judge(make_history(simulate(50)), REFERENCES[:count])
    assert (verdict.outcome, verdict.exit_code) == ("consistent", 0)
    said = " ".join(verdict.cannot_conclude)
    assert ("wide limits" if count == 3 else "estimated") in said


def test_text_logs_alone_are_compared(tmp_path: Path) -> None:
    """Two text logs and no spec: what `reproduce compare mine.txt theirs.txt` does."""
    paths = [tmp_path / f"{seed}.txt" for seed in range(6)]
    for seed, path in enumerate(paths):
        path.write_text(render_text(simulate(seed)))
    runs = [load_history(path) for path in paths]
    verdict = judge(runs[0], runs[1:])
    assert (verdict.outcome, verdict.exit_code) == ("consistent", 0)
    assert any("no k-NN accuracy was compared" in sentence for sentence in verdict.cannot_conclude)


def test_real_siblings_and_a_stranger() -> None:
    """Of public logs, two of one recipe are on track against each other, and one of other data is a variant."""
    paths = [LOGS / name for name in ("sibling-1.log.txt", "sibling-2.log.txt", "failed-launch-then-run.log.txt")]
    if not all(path.exists() for path in paths):
        pytest.skip(f"the public logs in {LOGS} are not here")
    one, other, stranger = (load_history(path) for path in paths)
    verdict = judge(one, [other])
    assert (verdict.outcome, verdict.exit_code) == ("on track", 0)
    assert verdict.progress == pytest.approx(35_091 / 125_000)
    assert judge(stranger, [one]).outcome == "variant"


def test_json_round_trip(tmp_path: Path) -> None:
    """What is written is read back equal, with the same bytes; NaN never reaches the file."""
    folders = [write_run(simulate(seed), tmp_path / f"seed-{seed}") for seed in range(4)]
    runs = [load_history(folder) for folder in folders]
    cases = [
        judge(runs[0], runs[1:], spec=SPEC),
        judge(runs[0], runs[1:2]),
        judge(runs[0], []),
        judge(make_history(simulate(60), done=200), runs),
        judge(make_history(simulate(60), done=0), runs),
    ]
    for verdict in cases:
        text = verdict.to_json()
        assert Verdict.from_json(text) == verdict
        assert Verdict.from_json(text).to_json() == text
        assert "NaN" not in text
        assert "Infinity" not in text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"outcome": "reproduced"}', "null"])
def test_other_json_is_refused(text: str) -> None:
    """What is no verdict raises ValueError."""
    with pytest.raises(ValueError, match=r"."):
        Verdict.from_json(text)


def test_same_inputs_same_verdict() -> None:
    """The simulation behind the limits is seeded: a verdict is a function of its inputs."""
    mine = make_history(simulate(50))
    assert judge(mine, REFERENCES).to_json() == judge(mine, REFERENCES).to_json()
    assert json.loads(judge(mine, REFERENCES).to_json())["method"]["references_losses"] == 10


@settings(max_examples=15)
@given(st.integers(0, 9), st.integers(1, 10), st.integers(30, ITERATIONS))
def test_any_prefix_of_a_reference_never_fails(seed: int, count: int, done: int) -> None:
    """A run that is one of the references, cut off anywhere, contradicts none of them."""
    references = REFERENCES[seed:] + REFERENCES[:seed]
    verdict = judge(make_history(simulate(seed), done=done), references[:count])
    assert verdict.exit_code == 0
    assert not [check for check in verdict.checks if check.state == "fail"]


def odd_runs() -> dict[str, History]:
    """Runs that are short, empty, broken or logged by halves."""
    truth = simulate(9)
    late = np.arange(ITERATIONS) > 200
    whole = make_history(truth)
    bare = [dataclasses.replace(record, values={"iter_time": 0.3}) for record in whole.lineage.records]
    return {
        "whole": whole,
        "hidden": make_history(simulate(8), hidden=True),
        "infinite": make_history(with_columns(truth, koleo_loss=lambda values: values * np.inf)),
        "undefined late": make_history(with_columns(truth, ibot_loss=lambda values: np.where(late, np.nan, values))),
        "constant": make_history(with_columns(truth, ibot_loss=np.zeros_like, dino_local_crops_loss=np.zeros_like)),
        "empty": make_history(truth, done=0),
        "one line": make_history(truth, done=1),
        "three lines": make_history(truth, done=25),
        "no losses": dataclasses.replace(whole, lineage=make_lineage(bare)),
        "one evaluation": dataclasses.replace(whole, knn={300: {20: 50.0}}),
    }


@pytest.mark.parametrize("name", odd_runs())
def test_any_two_logs_give_a_verdict(name: str) -> None:
    """Whatever two logs, or one and several, hold: a verdict that JSON can hold, and never an exception."""
    runs = odd_runs()
    mine = runs[name]
    ordinary = REFERENCES[:3]
    for other in runs.values():
        for references in ([other], [*ordinary, other]):
            verdict = judge(mine, references)
            assert Verdict.from_json(verdict.to_json()) == verdict
            assert verdict.sentence
            assert verdict.exit_code in (0, 1, 3)


def test_every_problem_of_a_log_is_passed_on(tmp_path: Path) -> None:
    """Problems of mine and of the references are in the verdict, with their places."""
    folder = write_run(simulate(0), tmp_path / "mine")
    with (folder / "training_metrics.json").open("a") as file:
        file.write('{"iteration": 60')
    verdict = judge(load_history(folder), REFERENCES)
    assert verdict.problems == (f'{folder / "training_metrics.json"}:62: torn or corrupt line: {{"iteration": 60',)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_false_alarms_of_whole_verdicts() -> None:
    """Of 250 runs, each against ten references of its own, at most 1 % and its error fail; none by schedules."""
    alarms: dict[str, int] = {}
    sets = 250
    for case in range(sets):
        runs = [make_history(simulate(11 * case + place + 1000)) for place in range(11)]
        for check in judge(runs[0], runs[1:]).checks:
            if check.state == "fail":
                alarms[check.layer] = alarms.get(check.layer, 0) + 1
    assert not alarms.keys() & {"L0", "L2", "L3"}
    assert sum(alarms.values()) / sets <= 0.01 + 3 * (0.01 / sets) ** 0.5, alarms


def test_seeds_of_one_recipe_never_part_against_one_reference() -> None:
    """Of twenty published seeds of one recipe, each held against each other alone, none is worse, better or failed."""
    folders = sorted((Path(__file__).parents[1] / "logfiles" / "digits").iterdir())
    runs = [load_history(folder) for folder in folders]
    outcomes = [judge(mine, [other]).outcome for mine in runs for other in runs if mine is not other]
    assert outcomes == ["consistent"] * 380
