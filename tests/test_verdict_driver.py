"""The driver of planted faults: what it counts, on runs that are made up; training is the benchmark's own."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import beta, binom
from simulated_runs import make_history, simulate

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import verdicts  # noqa: E402

from reproduce.judging import load_run_spec  # noqa: E402
from reproduce.lineage import load_history  # noqa: E402


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (1, 20), (7, 9), (12, 12)])
def test_interval_is_clopper_and_pearsons(successes: int, trials: int) -> None:
    """The interval is that of the beta distribution, and at its ends the binomial's tails are 2.5 % each."""
    low, high = verdicts.clopper_pearson(successes, trials)
    if successes:
        assert low == pytest.approx(beta.ppf(0.025, successes, trials - successes + 1))
        assert binom.sf(successes - 1, trials, low) == pytest.approx(0.025)
    if successes < trials:
        assert high == pytest.approx(beta.ppf(0.975, successes + 1, trials - successes))


def test_every_fault_is_one_of_the_row() -> None:
    """Each override is valid and a recipe of its own, but for that of missing images; all trials are different runs."""
    own = load_run_spec("digits", changes=(), seed=None)
    prints = [load_run_spec("digits", changes=changes, seed=None).fingerprint for changes in verdicts.FAULTS.values()]
    assert len({own.fingerprint, *prints}) == len(verdicts.FAULTS) >= 16  # all but the images that are missing
    trials = list(verdicts.list_trials())
    assert len({(trial.fault, trial.seed) for trial in trials}) == len(trials)
    assert len([trial for trial in trials if not trial.fault]) >= 20


def test_cut_run_is_what_stood_then() -> None:
    """A run cut after 100 iterations holds the lines before and the evaluations up to there."""
    short = verdicts.cut(make_history(simulate(1)), 100)
    assert short.lineage.records[-1].iteration == 90
    assert max(short.knn) == 100


def test_published_seed_is_no_false_alarm_and_a_doubled_rate_is_found_at_once() -> None:
    """A published seed against four others passes at every cut; with another learning rate it fails at the first."""
    runs = [load_history(ROOT / "logfiles" / "digits" / f"seed-{seed}") for seed in range(1, 6)]
    fine = verdicts.judge_trial(runs[0], runs[1:], fault="", seed=1)
    assert (fine.detected, fine.share) == (False, None)
    records = [
        dataclasses.replace(record, values={**record.values, "lr": 2 * record.values["lr"]})
        for record in runs[0].lineage.records
    ]
    lineage = dataclasses.replace(runs[0].lineage, records=tuple(records))
    off = verdicts.judge_trial(
        dataclasses.replace(runs[0], lineage=lineage), runs[1:], fault="learning rate × 2", seed=1
    )
    assert off.detected
    assert off.share is not None
    assert off.share == 40 / 600  # three lines after that of iteration 0, where both rates are none
    assert off.check in ("schedule-lr", "column-lr")
    summary = verdicts.summarize([fine, off], planned=80) | {
        "one reference": verdicts.summarize_pairs([off]),
        "columns": {row: verdicts.schedule_shares(row) for row in verdicts.COLUMN_ROWS},
    }
    assert summary["alarms"]["new seeds against the published"]["alarms"] == 0
    assert summary["faults"]["learning rate × 2"]["detected"] == 1
    assert "| learning rate × 2 | 1 | 1 | 1 |" in verdicts.render(summary)
    assert "| KoLeo off | not run |" in verdicts.render(summary)
    assert all(share < 0.06 for shares in summary["columns"].values() for share in shares.values())


def test_a_tenth_of_the_digits_to_train_on_is_taken_away() -> None:
    """What is planted leaves the test images alone and a tenth of the others out."""
    count = """
from franca.data.datasets import load_dataset
print(*(len(load_dataset("digits", root="", split=split)) for split in ("train", "test")))
"""
    command = [sys.executable, "-c", verdicts.WITHOUT_A_TENTH + count]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.split() == ["1293", "360"]


def test_effects_of_faults_that_were_not_found_are_held_against_what_was_printed() -> None:
    """The mean over a fault's runs less that of unchanged ones; found runs do not count."""

    def outcome(fault: str, effect: float, *, share: float | None = None) -> verdicts.Outcome:
        effects = {"knn_top1": (effect, 5.0)}
        return verdicts.Outcome(fault, 1, 10, "consistent", None, None, share, effects)

    runs = [outcome("", 1.0), outcome("", 3.0), outcome("KoLeo off", -4.0), outcome("KoLeo off", -6.0, share=0.5)]
    assert verdicts.count_missed(runs) == {"runs": 1, "results": 1, "below": 0}  # -5 - 2 is beyond 5
    runs += [outcome("no clipping", 6.9)]
    assert verdicts.count_missed(runs) == {"runs": 2, "results": 2, "below": 1}


def test_outcomes_of_runs_that_are_gone_are_kept() -> None:
    """All that an earlier file holds but what was judged anew."""
    file = ROOT / "reproduce" / "report" / "rates" / "digits.json"
    every = list(verdicts.list_kept(file, but=()))
    judged = {(item.fault, item.seed) for item in every[:3]}
    assert list(verdicts.list_kept(file, but=judged)) == every[3:]
