"""The index of all rows and the badge of one: every state a word, absent ones with their reason."""

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from html_page import Page
from synthetic_runs import make_check, make_runs, make_spec, make_verdict
from test_signatures import make_record
from test_weights_verdict import judge as judge_weights

from reproduce.report.badge import render_badge
from reproduce.report.index import RUNS_SHOWN, IndexEntry, IndexRun, render_index
from reproduce.report.sections import OUTCOMES
from reproduce.signatures import SignedRecord
from reproduce.verdict import Verdict

WORD = re.compile(r'<span class="state \w+"><svg.*?</svg>(.*?)</span>')


def make_entry(verdict: Verdict | None = None, **changes: Any) -> IndexEntry:
    run = IndexRun("main", verdict, "digits.html", "") if verdict else None
    return dataclasses.replace(IndexEntry(make_spec(), run, None, "dvc repro digits"), **changes)


def test_index_shows_every_row_and_why_a_check_is_absent() -> None:
    """Run or not, with a published log or without: each cell says its state in a word."""
    mine, references = make_runs()
    verdict = make_verdict(mine=mine, references=references, progress=0.02, outcome="on track")
    log = dataclasses.replace(make_spec().published_log, state="never published")
    unrun = make_spec(row="franca-L-in21k", title="Franca-L", published_log=log)
    text = render_index([make_entry(verdict, report="digits.html"),
                         IndexEntry(unrun, None, None, "dvc repro franca-L-in21k")])  # fmt: skip
    page = Page(text)
    first, second = re.findall(r"<tbody>(.*?)</tbody>", text, flags=re.DOTALL)
    assert WORD.findall(first) == ["On track", "pass", "warning", "pass", "pass", "pass", "unknown"]
    assert WORD.findall(second) == [
        "Not run", "not run", "no published log", "not run", "not run", "no published log", "not run",
    ]  # fmt: skip
    assert '<a href="digits.html">' in first
    assert "<a" not in second
    assert "2.0 % of the run" in page.text
    assert "dvc repro franca-L-in21k" in page.text
    assert "k-NN top-1, ImageNet-1k: 97.1 %" in page.text
    assert "1 conflict" in page.text


def test_index_shows_all_runs_of_a_row() -> None:
    """Below the row's own run its others, each with its checks and report; one not judged says how it stands."""
    mine, references = make_runs()
    verdict = make_verdict(mine=mine, references=references)
    failed = make_verdict(mine=mine, references=references, outcome="variant", checks=(make_check(state="fail"),))
    others = (
        IndexRun("optim.base_lr=0.006", failed, "digits.optim.base_lr=0.006.html", ""),
        IndexRun("seed=3", None, None, "paused, 30 of 600 iterations done"),
    )
    text = render_index([make_entry(verdict, others=others)])
    own, changed, paused, _ = re.findall(
        r"<tr.*?</tr>", re.findall(r"<tbody>.*?</tbody>", text, re.DOTALL)[0], re.DOTALL
    )
    assert WORD.findall(own)[0] == "Reproduced"
    assert WORD.findall(changed) == ["Variant", "not compared", "not compared", "fail", *["not compared"] * 3]
    assert 'href="digits.optim.base_lr%3D0.006.html"' in changed
    assert WORD.findall(paused) == ["Not judged", *["not judged"] * 6]
    assert 'title="paused, 30 of 600 iterations done"' in paused
    assert "<a" not in paused


def test_index_of_a_long_sweep_says_what_it_leaves_out() -> None:
    """Of hundreds of runs the first are shown, and how many there are besides."""
    others = tuple(IndexRun(f"seed={seed}", None, None, "") for seed in range(RUNS_SHOWN + 7))
    text = render_index([make_entry(others=others)])
    assert text.count('<tr class="run">') == RUNS_SHOWN
    assert "7 more runs" in Page(text).text


def test_index_shows_what_became_of_released_weights() -> None:
    """Evaluated ones with their verdict by size, others as what they are."""
    spec = make_spec(row="franca-L-laion600m")
    weights = dataclasses.replace(judge_weights("franca-L-laion600m"), px=518, outcome="differs")
    assert "518 px: differs" in Page(render_index([make_entry(spec=spec, weights=(weights,))])).text
    assert "Released weights not evaluated here" in Page(render_index([make_entry()])).text
    assert "Released weights none" in Page(render_index([make_entry(spec=make_spec(weights=()))])).text


def test_leaderboard_counts_only_what_is_verified() -> None:
    """Signed and known: in the table, the better verdict first; all others are folded away with their reason."""
    signed = [
        SignedRecord(Path("digits/b.json"), make_record(name="second"), "verified", "signed by second"),
        SignedRecord(Path("digits/a.json"), make_record(name="first", outcome="reproduced"), "verified", ""),
        SignedRecord(Path("digits/c.json"), make_record(name="stranger", knn=99.0), "unknown signer", "no key for it"),
        SignedRecord(Path("digits/<d>.json"), None, "no record", "not a record of a reproduction"),
    ]
    text = render_index([], signed=signed)
    counted, rest = text.split('<details class="more">')
    rows = re.findall(r"<td>(\w+)</td>\n", counted)
    assert rows == ["first", "second"]
    assert "2 signed reproductions" in counted
    assert "stranger" not in counted
    assert WORD.findall(counted) == ["Reproduced", "verified", "Consistent", "verified"]
    assert "2 records that do not count" in rest
    assert "no key for it" in rest
    assert "&lt;d&gt;.json" in rest
    assert "−1.04" in counted


def test_leaderboard_without_records_says_how_to_make_one() -> None:
    """An empty table is a sentence with the command."""
    assert "None yet. reproduce sign ROW --name YOU" in Page(render_index([])).text


def test_index_of_nothing_says_so() -> None:
    """Without a row the page has a sentence, not an empty table."""
    assert "No row was found" in Page(render_index([])).text


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_badge_is_an_image_that_says_its_word(outcome: Any) -> None:
    """A badge is valid SVG of a fitting width whose label reads row and outcome, and loads nothing."""
    mine, references = make_runs()
    verdict = None if outcome == "not run" else make_verdict(mine=mine, references=references, outcome=outcome)
    root = ElementTree.fromstring(render_badge(verdict, name="a<b>&@1"))
    said = f"{outcome} at 100 %" if outcome == "on track" else outcome
    assert root.get("aria-label") == f"a<b>&@1: {said}"
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words == ["a<b>&@1", said]
    ends = [
        float(text.get("x", 0)) + float(text.get("textLength", 0)) for text in root.iter() if text.get("textLength")
    ]
    assert max(ends) < float(root.get("width", 0))
    assert not [element for element in root.iter() if element.get("href")]
