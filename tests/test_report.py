"""The report, the index and the badge: complete, self-contained, escaped, legible, and the same bytes every time."""

import base64
import dataclasses
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from html_page import Page
from hypothesis import given
from hypothesis import strategies as st
from synthetic_runs import (
    OURS,
    PAPER,
    README,
    make_check,
    make_checks,
    make_history,
    make_records,
    make_result,
    make_runs,
    make_spec,
    make_verdict,
)

from reproduce.log_head import Head
from reproduce.quantities import make_legible, typeset
from reproduce.report.index import IndexEntry, IndexRun, render_index
from reproduce.report.page import embed_json, render_report, source_label, source_url, weights_url
from reproduce.report.provenance import LogFile, Provenance, load_provenance
from reproduce.report.sections import OUTCOMES, make_layers, make_results, worst_state
from reproduce.runs import margins_sha256
from reproduce.verdict import Verdict

HOSTILE = '</script><img src=x onerror="alert(1)">\'`${x}`$(rm -rf ~)]]>&amp;{{7*7}}<!--'
CSS = (Path(__file__).parents[1] / "reproduce/report/report.css").read_text()


def make_provenance(**changes: Any) -> Provenance:
    launch = {
        "command": ["reproduce", "run", "digits"],
        "git": {"sha": "7cf07d68", "dirty": True},
        "margins_sha256": margins_sha256(make_spec().margins),
        "launches": [{}],
    }
    environment = {"python": "3.11.2", "cpu": "some CPU", "packages": {"numpy": "2.4"}, "data": {"fingerprint": "9f8e"}}
    fields: dict[str, Any] = {
        "launch": launch, "environment": environment, "evaluation": {"pixels_knn": {"10": 98.25}},
        "logs": (LogFile("mine", "runs/digits@1/main/log.txt", 31_000_000, "ab" * 32),), "problems": (),
    }  # fmt: skip
    return Provenance(**(fields | changes))


@pytest.fixture(scope="module")
def report() -> str:
    mine, references = make_runs()
    verdict = make_verdict(mine=mine, references=references)
    return render_report(verdict, mine=mine, references=references, spec=make_spec(), provenance=make_provenance(),
                         commands=["reproduce run digits", "dvc repro digits"])  # fmt: skip


def test_report_is_well_formed_and_complete(report: str) -> None:
    """Every section is there with its heading, every entry of the contents leads to one, and no id stands twice."""
    page = Page(report)
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    anchors = [
        href[1:] for tag, attributes in page.tags if tag == "a" and (href := attributes.get("href") or "#")[0] == "#"
    ]
    assert set(anchors) <= set(ids)
    for section in ("Checks", "Results", "Losses", "Schedules", "k-NN", "Published results", "Claims and conflicts",
                    "Configuration", "Lineage", "Speed", "Provenance", "Method"):  # fmt: skip
        assert f">{section}</h2>" in report
    assert {"lang": "en"} in [attributes for tag, attributes in page.tags if tag == "html"]


def test_report_shows_what_it_rests_on(report: str) -> None:
    """The numbers, quoted lines, sources, hashes and commands of its inputs are all in its text."""
    text = Page(report).text
    for expected in (
        "96.83", "97.1", "mean of 10 reference runs", "margin ±0.5", "90 % interval −0.31 to +0.17",
        "A difference below 0.41 points of k-NN would not have been seen.", "runs/digits@1/main/log.txt:412",
        "Training [ 10/6000] eta: 0:21:02", "That gradients, data or precision are the same.",
        "1,000,000", "(800 epochs of 1,250)", "we run this", "The training document and the paper state it",
        "2 launches: 1 resume. 60 logged lines do not count: overwritten", "raw pixels 98.25 %",
        "declared before the launch, unchanged",
        "with uncommitted changes", "ab" * 32, "31 MB", "reproduce run digits", "dvc repro digits", "some CPU",
        "6,000 of 6,000 iterations", "exit code 0",
    ):  # fmt: skip
        assert expected in text.replace(" : ", ":").replace("\N{NO-BREAK SPACE}", " "), expected


def test_report_needs_nothing_else(report: str) -> None:
    """No script runs, nothing is loaded: every address is a plain link to a source, and the page's policy says so."""
    page = Page(report)
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "verdict"}]
    for tag, attributes in page.tags:
        assert "src" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        href = attributes.get("href") or attributes.get("xlink:href") or "#"
        own = "download" in attributes and href.startswith("data:application/json;base64,")
        assert href.startswith("#") or (tag == "a" and (own or href.startswith("https://"))), (tag, href)
    policies = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert not re.search(r"url\((?!#)|@import|javascript:", report)


def test_report_is_the_same_bytes_every_time(report: str) -> None:
    """Nothing but the inputs is in the report."""
    mine, references = make_runs()
    verdict = Verdict.from_json(make_verdict(mine=mine, references=references).to_json())
    again = render_report(verdict, mine=mine, references=references, spec=make_spec(), provenance=make_provenance(),
                          commands=["reproduce run digits", "dvc repro digits"])  # fmt: skip
    assert again == report


def test_embedded_verdict_reads_back(report: str) -> None:
    """The JSON in the page is the verdict itself, and so is the file that its link saves, to the byte."""
    embedded = re.search(r'<script type="application/json" id="verdict">(.*?)</script>', report, flags=re.DOTALL)
    assert embedded is not None
    mine, references = make_runs()
    verdict = make_verdict(mine=mine, references=references)
    assert Verdict.from_json(embedded[1]) == verdict
    links = [attributes for _, attributes in Page(report).tags if "download" in attributes]
    assert [link["download"] for link in links] == ["verdict.json"]
    assert base64.b64decode((links[0]["href"] or "").partition(",")[2]).decode() == verdict.to_json()


@given(st.text())
def test_embedded_json_cannot_end_its_element(text: str) -> None:
    """Whatever a log holds, its JSON has no markup in it and reads back the same."""
    embedded = embed_json(json.dumps({"text": text + "</script><!--&\u2028"}, ensure_ascii=False))
    assert not set("<>&\u2028\u2029") & set(embedded)
    assert json.loads(embedded)["text"] == text + "</script><!--&\u2028"


def test_everything_from_logs_and_specs_is_escaped() -> None:
    """Markup, quotes and template code in every text of every input come out as text: no new tag, no new attribute."""
    mine, references, evil = *make_runs(), HOSTILE
    check = make_check(id=evil, title=evil, finding=evil, unit=evil, says=evil, cannot_say=evil, state="fail")
    evidence = dataclasses.replace(check.evidence[0], source=evil, text=evil)
    verdict = make_verdict(
        mine=mine, references=references, sentence=evil, cannot_conclude=(evil,), run=evil, problems=(evil,),
        checks=(dataclasses.replace(check, evidence=(evidence,)),),
        metrics=(make_result(title=evil, unit=evil, basis=evil, target_source=evil, note=evil),),
        method={evil: 1.0},
    )  # fmt: skip
    source = dataclasses.replace(PAPER, title=evil, ref=evil, note=evil, locator=evil)
    spec = make_spec()
    values = tuple(dataclasses.replace(v, value=evil, condition=evil, note=evil, sources=(source,))
                   for v in spec.claims[0].values)  # fmt: skip
    claim = dataclasses.replace(spec.claims[0], field=evil, label=evil, unit=evil, why=evil, values=values)
    metric = dataclasses.replace(spec.metrics[0], label=evil, unit=evil, condition=evil, target_why=evil, values=values)
    weights = dataclasses.replace(spec.weights[0], url=f"javascript:{evil}", note=evil, sources=(source,))
    log = dataclasses.replace(spec.published_log, path=evil, note=evil, repository=evil, local=(evil,))
    spec = make_spec(title=evil, summary=evil, notes=(evil,), overrides=(evil,), claims=(claim,), metrics=(metric,),
                     weights=(weights,), published_log=log)  # fmt: skip
    mine = dataclasses.replace(mine, name=evil, config={"recipe": {evil: evil}}, knn={10: {20: 90.0}})
    references[0] = dataclasses.replace(references[0], name=evil, config=None, head=Head(config={evil: evil}))
    provenance = Provenance({"command": evil, "git": {"sha": evil}}, {evil: evil, "packages": {evil: evil}},
                            {"pixels_knn": {"20": evil}}, (LogFile(evil, evil, 1, evil),), (evil,))  # fmt: skip
    text = render_report(verdict, mine=mine, references=references, spec=spec, provenance=provenance, commands=[evil])
    text += render_index([IndexEntry(spec, IndexRun(evil, verdict, evil, evil), evil, evil)])
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"img", "iframe", "object", "embed", "form", "base"}
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert all(not (attributes.get("href") or "").startswith("javascript") for _, attributes in page.tags)
    assert page.text.count("{{7*7}}") > 30
    assert page.text.count("onerror=") > 30


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_every_outcome_is_a_word_with_an_icon(outcome: Any) -> None:
    """Each outcome has its own word in the banner, beside an icon that the page defines."""
    mine, references = make_runs()
    verdict = None if outcome == "not run" else make_verdict(mine=mine, references=references, outcome=outcome)
    text = render_report(verdict, mine=mine if verdict else None, references=references, spec=make_spec())
    tone, word = OUTCOMES[outcome]
    assert f'<p class="outcome {tone}"><svg class="icon" aria-hidden="true" focusable="false">' in text
    assert f'<use href="#icon-{tone}"/></svg><span>{word}</span>' in text
    assert f'<symbol id="icon-{tone}"' in text


def test_no_state_is_told_by_color_alone(report: str) -> None:
    """Every state mark in the page holds an icon and a word."""
    marks = re.findall(r'<span class="state [a-z]+">(.*?)</span>', report)
    assert len(marks) > 15
    assert all(re.fullmatch(r'<svg class="icon".*?</svg>\w[\w ]+', mark) for mark in marks)


def test_row_that_was_never_run_has_a_report() -> None:
    """Without a run the report is an audit: claims, conflicts, what is missing, and nothing that judges."""
    log = dataclasses.replace(make_spec().published_log, state="never published")
    text = render_report(None, spec=make_spec(published_log=log, weights=()), commands=["dvc repro digits"])
    page = Page(text)
    assert "No run of this row was found" in page.text
    assert "contradict one another on 1 fact" in page.text
    assert "Its log was never published" in page.text
    assert "Released weights that can be trusted." in page.text
    assert "Does it add up?" in page.text
    assert ">Checks</h2>" not in text
    assert "<script" not in text


def test_two_logs_are_compared_without_a_spec() -> None:
    """Without a spec the report names both logs and holds what they print against each other."""
    mine, other = (
        make_history(f"{name}.txt", config=None, head=Head(config={"train": {"seed": seed, "amp": True}}), knn={})
        for seed, name in enumerate(("mine", "theirs"))
    )
    verdict = make_verdict(
        mine=mine, references=[other], row=None, version=None, metrics=(make_result(name="ibot_loss"),), bands=()
    )
    page = Page(render_report(verdict, mine=mine, references=[other]))
    assert "mine.txt against theirs.txt" in page.text
    assert "They differ in 1 key." in page.text
    assert "Claims and conflicts" not in page.text
    assert "No k-NN evaluation was found" in page.text


def test_nothing_to_judge_is_said_and_not_hidden() -> None:
    """A run without one line still has a report in which each empty section says why it is."""
    mine = dataclasses.replace(make_history("empty", records=[], knn={}), total=None)
    verdict = make_verdict(mine=mine, references=[], outcome="no reference", checks=(), metrics=(), progress=None)
    text = render_report(verdict, mine=mine, spec=make_spec())
    page = Page(text)
    for sentence in ("No check ran.", "No result yet", "The run has logged no loss yet.",
                     "No k-NN evaluation was found", "The log holds no iteration line."):  # fmt: skip
        assert sentence in page.text
    assert len(re.findall(r"</svg>not compared</span>", text)) == 6


def test_verdict_and_history_come_together() -> None:
    """One without the other is a mistake of the caller."""
    with pytest.raises(ValueError, match="come together"):
        render_report(None, mine=make_history("main"), spec=make_spec())


def test_margins_that_were_changed_since_the_launch_are_flagged() -> None:
    """A margin that is not the declared one stands out in the provenance."""
    mine, references = make_runs()
    verdict = make_verdict(mine=mine, references=references)
    provenance = make_provenance(launch={"margins_sha256": "00" * 32})
    page = Page(render_report(verdict, mine=mine, references=references, spec=make_spec(), provenance=provenance))
    assert "CHANGED SINCE" in page.text


def test_keys_that_differ_are_marked() -> None:
    """A variant's changed key stands in a table of its own with both values."""
    mine, references = make_runs()
    assert mine.config is not None
    changed = {**mine.config, "recipe": {**mine.config["recipe"], "global_batch": 128}}
    mine = dataclasses.replace(mine, config=changed)
    verdict = make_verdict(mine=mine, references=references, outcome="variant")
    text = render_report(verdict, mine=mine, references=references, spec=make_spec())
    assert "They differ in 1 key." in text
    row = re.search(r'<tr class="changed"><th scope="row" class="mono">global_batch</th>(.*?)</tr>', text)
    assert row is not None
    assert re.findall(r"<td>(.*?)</td>", row[1]) == ["64", "128", "64"]


def test_damaged_records_of_a_run_are_named(tmp_path: Path) -> None:
    """A torn environment.json is no reason to have no report; its place is in the list of problems."""
    (tmp_path / "log.txt").write_text("a log\n")
    (tmp_path / "environment.json").write_text('{"python": ')
    (tmp_path / "provenance.json").write_text("[1]")
    mine = dataclasses.replace(make_history("main"), path=tmp_path, log_path=tmp_path / "log.txt")
    provenance = load_provenance(mine)
    assert [problem.split(": ")[0] for problem in provenance.problems] == [
        str(tmp_path / "provenance.json"), str(tmp_path / "environment.json"),
    ]  # fmt: skip
    (log,) = provenance.logs
    assert (log.size, log.sha256[:8]) == (6, "43033c83")
    verdict = make_verdict(mine=mine, references=[])
    assert "not readable as JSON" in Page(render_report(verdict, mine=mine, provenance=provenance)).text


def test_longest_run_fits_in_two_megabytes() -> None:
    """625,000 iterations of mine beside twenty reference runs of as many, drawn over every axis: of another length and
    batch, they are stretched on each."""
    mine, other = (
        make_history(f"r{seed}", records=make_records(seed, stop=625_000, total=625_000, period=50), total=625_000)
        for seed in range(2)
    )
    assert other.config is not None
    recipe = {**other.config["recipe"], "global_batch": 128}
    references = [dataclasses.replace(other, config={**other.config, "recipe": recipe}, total=600_000)] * 20
    verdict = make_verdict(mine=mine, references=references)
    text = render_report(verdict, mine=mine, references=references, spec=make_spec())
    assert text.count('class="plot  by by-') == 4 * 5
    assert len(text.encode()) < 2_000_000


def test_crash_loop_stays_legible() -> None:
    """A run of a thousand launches shows its newest hundred and says so."""
    records = list(itertools.chain.from_iterable(
        make_records(1, start=10 * index, stop=10 * index + 60, first_line=6 * index + 1) for index in range(500)
    ))  # fmt: skip
    mine = make_history("loop", records=records)
    text = render_report(make_verdict(mine=mine, references=[]), mine=mine)
    assert "500 launches: 499 resumes." in text
    assert "That was some" in text
    assert "Shown are the newest 100." in text
    assert len(text) < 600_000


def test_worst_state_decides_a_layer() -> None:
    """One failing check makes its layer fail; a layer without checks was not compared."""
    layers = {layer.id: layer for layer in make_layers(make_checks()[:4])}
    assert [layers[f"L{i}"].state for i in range(6)] == ["pass", "warn", "pass", "pass", "absent", "absent"]
    assert layers["L5"].word == "not compared"
    assert worst_state(["pass", "unknown", "fail", "warn"]) == "fail"


def test_lower_loss_is_not_called_better() -> None:
    """Losses that differ are lower or higher; only an accuracy is better or worse."""
    results = make_results([make_result(name="ibot_loss", unit="", state="better"), make_result(state="better")])
    assert [(view.state, view.word) for view in results] == [("fail", "lower"), ("warn", "better")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("z = -17.5, limit 5.6", "z = −17.5, limit 5.6"),
        ("90 % interval, -0.22 to +0.29", "90\u00a0% interval, −0.22 to +0.29"),
        ("iterations 10-20 of seed-3", "iterations 10-20 of seed-3"),
        ("lr=1e-3", "lr=1e-3"),
    ],
)
def test_sentences_are_typeset(text: str, shown: str) -> None:
    """Minus signs and percent signs are set right; ranges, names and settings stay as they are."""
    assert typeset(text) == shown


def test_keys_of_a_log_become_words() -> None:
    """Columns are called as a reader calls them, settings and other keys stay."""
    assert make_legible("ibot_loss leaves; 4.5 % of koleo_loss.") == "iBOT loss leaves; 4.5 % of KoLeo loss."
    assert make_legible("lr is 1 where total_loss is 2") == "Learning rate is 1 where total loss is 2"
    assert (
        make_legible("last_layer_lr, optim.lr, lr=3, mean_ibot_loss") == "last_layer_lr, optim.lr, lr=3, mean_ibot_loss"
    )


def test_sources_link_to_what_they_cite() -> None:
    """A file at its commit, a paper at its number, and nothing else becomes an address."""
    commit = README.commit
    assert source_url(README) == f"https://github.com/valeoai/Franca/blob/{commit}/README.md"
    assert source_url(PAPER) == "https://arxiv.org/abs/2507.14137v4"
    assert source_url(OURS) is None
    assert source_url(dataclasses.replace(PAPER, ref="javascript:alert(1)")) is None
    assert source_label(README) == "Franca README.md@24f8c60a"
    assert weights_url("https://example.org/a/b.pth") == "https://example.org/a/b.pth"
    assert weights_url("javascript:alert(1)") is None


def colors(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})\b", block))


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colors (WCAG 2.1, relative luminance)."""

    def luminance(color: str) -> float:
        channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return math.fsum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(scheme: str) -> None:
    """Every color that text is set in reaches 4.5 to 1 on every ground it is set on, light and dark."""
    light, dark = CSS.split("prefers-color-scheme: dark")[:2]
    palette = colors(light) | (colors(dark.split("}")[0]) if scheme == "dark" else {})
    grounds = ["paper", "card", "sunk"]
    pairs = [(text, ground) for text in ("ink", "soft", "link", "mine", "published", "pixels") for ground in grounds]
    pairs += [(state, ground) for state in ("pass", "warn", "fail", "unknown") for ground in (*grounds, f"{state}-bg")]
    pairs += [(text, f"{state}-bg") for text in ("ink", "soft") for state in ("pass", "warn", "fail", "unknown")]
    pairs += [("ink", "mark"), ("soft", "mark"), ("soft", "band")]
    low = {pair: contrast(palette[pair[0]], palette[pair[1]]) for pair in pairs}
    assert {pair: ratio for pair, ratio in low.items() if ratio < 4.5} == {}
    for state, ground in itertools.product(("mine", "reference"), ("paper", "band")):
        assert contrast(palette[state], palette[ground]) >= (3 if state == "mine" else 2)
