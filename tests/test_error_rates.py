"""How often verdicts are wrong, as a report tells it: what was counted and where, or that nothing was."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from html_page import Page
from synthetic_runs import make_runs, make_spec, make_verdict

from reproduce.errors import ReproduceError
from reproduce.report.error_rates import MEASURED, load_error_rates
from reproduce.report.page import make_environment, render_report

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import verdicts


def make_outcome(fault: str, seed: int, **changes: Any) -> verdicts.Outcome:
    fields = {"references": 10, "final": "consistent", "layer": None, "check": None, "share": None,
              "effects": {"knn_top1": (-1.0, 9.0), "ibot_loss": (2.0, 1.0)}}  # fmt: skip
    return verdicts.Outcome(fault=fault, seed=seed, **(fields | changes))


@pytest.fixture
def counted(tmp_path: Path) -> Path:
    """A folder with the counts of a row: no alarm in five runs, one fault found twice, one missed."""
    found = {"layer": "L4", "check": "band-ibot_loss"}
    outcomes = [make_outcome("published", seed) for seed in range(5)]
    outcomes += [make_outcome("KoLeo off", seed, **found, share=0.1 * seed) for seed in (1, 6)]
    outcomes += [make_outcome("no clipping", 1)]
    pairs = [make_outcome("", seed, references=1) for seed in range(4)]
    pairs += [
        make_outcome("KoLeo off", 1, references=1, **found, share=0.5),
        make_outcome("KoLeo off", 1, references=1),
    ]
    summary = verdicts.summarize(outcomes, planned=80) | {"one reference": verdicts.summarize_pairs(pairs)}
    (tmp_path / "digits.json").write_text(json.dumps(summary))
    return tmp_path


def render_method(folder: Path, **context: Any) -> str:
    template = make_environment().get_template("method.html")
    return Page(template.render(error_rates=load_error_rates(folder), **{"spec": None, **context})).text


def test_method_says_what_was_counted(counted: Path) -> None:
    """False alarms with their interval, each fault with how often, how early and by what it was found, and the rest."""
    text = render_method(counted)
    assert "each published seed against the others 5 0 0 to 52 %" in text
    assert "new seeds against one published, then the next 4 0 0 to 60 %" in text
    assert "2 of 3 runs with a planted fault were found out" in text
    assert "KoLeo off 2 2 1 10 to 60 % band-ibot_loss 1 of 2" in text
    assert "no clipping 1 0 0 – – 0 of 0" in text
    assert "In 1 run the fault was not found; of their 2 results, k-NN and losses, 1 have a true effect below" in text
    assert "19 planted faults were not run" in text
    assert "learning rate × 2" in text


def test_method_says_on_which_row_it_was_counted(counted: Path) -> None:
    """On another row, and where there is none, the rates need not hold; on their own they need not carry over."""
    assert "They were not counted on logs like these and need not carry over" in render_method(counted)
    assert "They were not counted on this row" in render_method(counted, spec=make_spec(row="franca-L-in21k"))
    assert "need not carry over to another row" in render_method(counted, spec=make_spec(row="digits"))


def test_method_without_counts_says_so(tmp_path: Path) -> None:
    """No file, no rates, and no silence about it."""
    assert "No error rates are measured" in render_method(tmp_path)


def test_damaged_counts_are_named(tmp_path: Path) -> None:
    """A file that is no such count is an error with its place."""
    (tmp_path / "digits.json").write_text('{"alarms": []}')
    with pytest.raises(ReproduceError, match=r"digits.json: not the counts") as caught:
        load_error_rates(tmp_path)
    assert caught.value.mend


def test_counts_that_ship_follow_from_their_outcomes() -> None:
    """The numbers in the repository are those that the listed outcomes of single runs add up to."""
    paths = sorted(MEASURED.glob("*.json"))
    assert [path.stem for path in paths] == ["digits"]
    for path in paths:
        content = json.loads(path.read_text())
        assert content.pop("one reference")
        assert content.pop("columns")
        assert content.pop("outcomes")
        outcomes = list(verdicts.list_kept(path, but=()))
        again = verdicts.summarize(outcomes, planned=content["planned"])
        assert json.loads(json.dumps(again)) == content


def test_every_report_tells_the_counts_that_ship() -> None:
    """The method box of a report holds them."""
    mine, references = make_runs()
    text = render_report(make_verdict(mine=mine, references=references), mine=mine, references=references)
    assert "Counted on the row digits" in Page(text).text
