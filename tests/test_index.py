"""The index of all rows and the badge of one: every state a word, absent ones with their reason."""

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from html_page import Page
from synthetic_runs import make_runs, make_spec, make_verdict

from reproduce.report.badge import render_badge
from reproduce.report.index import IndexEntry, render_index
from reproduce.report.sections import OUTCOMES


def test_index_shows_every_row_and_why_a_check_is_absent() -> None:
    """Run or not, with a published log or without: each cell says its state in a word."""
    mine, references = make_runs()
    verdict = make_verdict(mine=mine, references=references, progress=0.02, outcome="on track")
    log = dataclasses.replace(make_spec().published_log, state="never published")
    unrun = make_spec(row="franca-L-in21k", title="Franca-L", published_log=log)
    text = render_index([IndexEntry(make_spec(), verdict, "digits.html", "dvc repro digits"),
                         IndexEntry(unrun, None, None, "dvc repro franca-L-in21k")])  # fmt: skip
    page = Page(text)
    first, second = re.findall(r"<tbody>(.*?)</tbody>", text, flags=re.DOTALL)
    words = [re.findall(r'<span class="state \w+"><svg.*?</svg>(.*?)</span>', row) for row in (first, second)]
    assert words[0] == ["On track", "pass", "warning", "pass", "pass", "pass", "unknown"]
    assert words[1] == ["Not run", "not run", "no published log", "not run", "not run", "no published log", "not run"]
    assert '<a href="digits.html">' in first
    assert "<a" not in second
    assert "2.0 % of the run" in page.text
    assert "dvc repro franca-L-in21k" in page.text
    assert "k-NN top-1, ImageNet-1k: 97.1 %" in page.text
    assert "1 conflict" in page.text


def test_index_of_nothing_says_so() -> None:
    """Without a row the page has a sentence, not an empty table."""
    assert "No row was found" in Page(render_index([])).text


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_badge_is_an_image_that_says_its_word(outcome: Any) -> None:
    """A badge is valid SVG of a fitting width whose label reads row and outcome, and loads nothing."""
    mine, references = make_runs()
    verdict = None if outcome == "not run" else make_verdict(mine=mine, references=references, outcome=outcome)
    root = ElementTree.fromstring(render_badge(verdict, name="a<b>&@1"))
    assert root.get("aria-label") == f"a<b>&@1: {outcome}"
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words == ["a<b>&@1", outcome]
    ends = [
        float(text.get("x", 0)) + float(text.get("textLength", 0)) for text in root.iter() if text.get("textLength")
    ]
    assert max(ends) < float(root.get("width", 0))
    assert not [element for element in root.iter() if element.get("href")]
