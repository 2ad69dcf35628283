"""The page of a sweep: what differs, how each run stands and ended, where its report is, and all curves."""

import json
from pathlib import Path

import pytest
from html_page import Page
from row_copies import copy_rows
from shell import reproduce
from simulated_runs import simulate, write_run

from reproduce.report.sweep import SweepRun, render_sweep_page
from reproduce.resolve import load_site
from reproduce.sweep_report import write_sweep_report
from reproduce.sweeps import make_sweep, render_sweep

WORDS = ("digits", "optim.base_lr=1e-3,2e-3", "seed=1,2")
HOSTILE = '</td><img src=x onerror="alert(1)">{{7*7}}'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which two runs of a sweep are done, one of them judged and reported, and two were never made."""
    copy_rows(tmp_path)
    monkeypatch.chdir(tmp_path)
    site = load_site("local", root=tmp_path)
    for number, member in enumerate(make_sweep(WORDS[0], WORDS[1:], site=site, until=None)[:2]):
        folder = write_run(simulate(number), member.resolved.folder)
        state = {"state": "finished", "iteration": 600, "of": 600, "images_per_second": 64.0, "error": None}
        (folder / "state.json").write_text(json.dumps(state))
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/digits.optim.base_lr=0.001,seed=1.json").write_text('{"outcome": "variant"}')
    (tmp_path / "reports/digits.optim.base_lr=0.001,seed=1.html").touch()
    return tmp_path


def test_page_holds_every_run_by_what_differs(project: Path) -> None:
    """Each run is a line with its values, its verdict and a link to its report; those with a log are drawn."""
    site = load_site("local", root=project)
    members = make_sweep(WORDS[0], WORDS[1:], site=site, until=None)
    path = write_sweep_report(members, words=WORDS, command=["reproduce", "sweep"])
    assert path.parent == project / "reports/sweeps"
    text = path.read_text()
    lines = text.partition("</tbody>")[0].split('<tr><th scope="row">')[1:]
    assert [line.count("<td") for line in lines] == [8] * 4
    assert ["0.001" in line for line in lines] == [True, True, False, False]
    assert "Variant" in lines[0]
    assert "600 / 600" in lines[0]
    assert (path.parent / "../digits.optim.base_lr=0.001,seed=1.html").is_file()
    assert 'href="../digits.optim.base_lr%3D0.001%2Cseed%3D1.html"' in lines[0]
    assert "Not judged" in lines[1]
    assert "not submitted" in lines[3]
    assert text.count("<title>digits optim.base_lr=0.001, seed=2</title>") == 2  # the loss and k-NN
    assert "0.002" not in text[text.index("<h2>Curves") :].partition("<h2>To ask again")[0]


def test_runs_that_went_further_are_shown_where_the_sweep_stops(project: Path) -> None:
    """Runs of unequal length are held side by side: losses, k-NN and curves end where the sweep does."""
    site = load_site("local", root=project)
    members = make_sweep(WORDS[0], WORDS[1:], site=site, until="250")
    text = write_sweep_report(members, words=WORDS, command=["reproduce", "sweep", "--until", "250"]).read_text()
    folder = members[0].resolved.folder
    knn = json.loads((folder / "eval/training_199/results_eval_knn.json").read_text())["('full', 10) Top 1"]
    losses = [json.loads(line)["total_loss"] for line in (folder / "training_metrics.json").read_text().splitlines()]
    assert "250 / 250" in text
    assert f"{knn:.2f} %" in text
    assert f"{losses[24]:.4g}" in text
    assert "500" not in text.partition("<h2>Curves")[2]
    assert "reproduce sweep --until 250" in text
    early = make_sweep(WORDS[0], WORDS[1:], site=site, until="50")
    text = write_sweep_report(early, words=WORDS, command=()).read_text()
    assert "k-NN top-1 of the teacher" not in text
    assert render_sweep(early[:1], width=200).endswith("1 run, 0 to submit")


def test_page_is_whole_and_safe() -> None:
    """What came from a command line or a run cannot break out of the page, nor does it load anything."""
    run = SweepRun(HOSTILE, (HOSTILE,), HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, None, None)
    text = render_sweep_page(HOSTILE, [run], keys=[HOSTILE], command=HOSTILE)
    assert "<img" not in text
    assert "<script" not in text
    page = Page(text)
    assert page


def test_report_submits_nothing(project: Path) -> None:
    """`sweep --report` says where the page lies, and starts none of the missing runs."""
    result = reproduce("sweep", *WORDS, "--site", "local", "--report", project=project)
    path = project / result.stdout.splitlines()[-1]
    assert path.is_file()
    assert len(list((project / "runs/digits@1").iterdir())) == 2
