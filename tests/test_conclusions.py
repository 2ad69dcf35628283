"""What a verdict says could not be concluded."""

import dataclasses

import pytest
from simulated_runs import RECIPE, make_history, simulate
from synthetic_runs import make_spec

from reproduce.report.badge import render_badge
from reproduce.verdict import judge


def test_what_references_reach_is_not_doubted() -> None:
    """Nothing came after the end of references that are as long as the run."""
    verdict = judge(make_history(simulate(50), hidden=True), [make_history(simulate(0), hidden=True)])
    assert (verdict.outcome, verdict.on_track_at) == ("consistent", None)
    assert not any("came after" in sentence for sentence in verdict.cannot_conclude)


@pytest.mark.parametrize("count", [1, 4])
def test_finished_run_is_on_track_as_far_as_its_references_go(count: int) -> None:
    """Nothing is said of its end where they end early but that: neither equality nor "consistent"."""
    short = [make_history(simulate(seed), done=200, hidden=True) for seed in range(count)]
    verdict = judge(make_history(simulate(50), hidden=True), short)
    assert (verdict.outcome, verdict.exit_code, verdict.progress) == ("on track", 0, 1.0)
    assert verdict.sentence.startswith("At 31.8 % (191 iterations, where the logs that it is compared with end)")
    assert any("What came after iteration 191" in sentence for sentence in verdict.cannot_conclude)
    assert "row: on track at 31.8 %" in render_badge(verdict, name="row")


def test_what_fails_fails_wherever_references_end() -> None:
    """A loss that is off before they end is no matter of what came after."""
    short = [make_history(simulate(0), done=200, hidden=True)]
    assert judge(make_history(simulate(50, shift={"ibot_loss": 3.0}), hidden=True), short).outcome == "failed"


def test_published_value_decides_where_references_end_early() -> None:
    """k-NN of the run's end is held against the published one, whatever the losses could be held against."""
    short = [make_history(simulate(0), done=200, hidden=True)]
    truth = simulate(50)
    spec = make_spec(recipe=RECIPE, metrics=(dataclasses.replace(make_spec().metrics[0], target=truth.knn[600][10]),))
    verdict = judge(make_history(truth), short, spec=spec)
    assert (verdict.outcome, verdict.on_track_at) == ("consistent", None)
