"""Trying a site: what findings mean, and real probes of this machine."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from row_copies import copy_rows

from reproduce.probes import Trial, check_site, judge_probe, load_findings, render_trials
from reproduce.resolve import load_site

GOOD: dict[str, Any] = {
    "host": "vn1",
    "python": "3.11.7",
    "torch": "2.13.0",
    "meeting": "vn1:30000",
    "absent_data": [],
    "write_mb_s": 900.0,
    "met": True,
    "meeting_s": 0.4,
    "clock": 1000.0,
    "seen": 2,
    "error": None,
}


def judge(first: dict[str, Any], second: dict[str, Any] | None) -> dict[str, Trial]:
    findings = [{**GOOD, "rank": 0, **first}]
    if second is not None:
        findings.append({**GOOD, "rank": 1, "host": "vn2", **second})
    return {trial.what: trial for trial in judge_probe(findings, processes=2, said="")}


def test_good_site_passes() -> None:
    """Two processes that met on one folder with one environment and clock leave nothing to mend."""
    trials = judge({}, {})
    assert {trial.outcome for trial in trials.values()} == {"pass"}
    assert set(trials) == {
        "start", "rendezvous", "environment", "data", "write speed", "shared folder", "clock"
    }  # fmt: skip
    assert "mend" not in render_trials(list(trials.values()), width=120)


@pytest.mark.parametrize(
    ("first", "second", "what", "outcome", "found"),
    [
        ({"met": None}, None, "rendezvous", "fail", "1 of 2 processes came; at vn1:30000 wait: vn1"),
        ({}, {"met": False, "error": "RuntimeError: no NCCL"}, "rendezvous", "fail", "vn2: RuntimeError: no NCCL"),
        ({}, {"torch": "2.8.0"}, "environment", "fail", "torch 2.13.0 and Python"),
        ({}, {"absent_data": ["/data"]}, "data", "fail", "not there: /data on vn2"),
        ({}, {"write_mb_s": 3.0}, "write speed", "warn", "3 MB/s at the slowest (vn2)"),
        ({}, {"seen": 1}, "shared folder", "fail", "vn2 sees 1"),
        ({}, {"clock": 1060.0}, "clock", "warn", "60.0 s apart"),
    ],
)
def test_fault_is_named_with_its_mend(
    first: dict[str, Any], second: dict[str, Any] | None, what: str, outcome: str, found: str
) -> None:
    """Each thing that can be wrong is told apart, where it is wrong, and what to do."""
    trial = judge(first, second)[what]
    assert trial.outcome == outcome
    assert found in trial.found
    assert trial.mend
    assert f"mend: {trial.mend}" in " ".join(render_trials([trial], width=400).split())


def test_data_that_no_folder_is_named_for_is_a_warning() -> None:
    """Rows whose images the site does not name cannot run there, which is said though nothing named is absent."""
    trials = judge_probe([{**GOOD, "rank": 0}], processes=1, said="", unset=["laion600m"])
    (trial,) = [trial for trial in trials if trial.what == "data"]
    assert trial.outcome == "warn"
    assert "laion600m" in trial.found


def test_job_that_never_spoke_is_told_with_its_last_words() -> None:
    """Without any finding the job's own words are the finding."""
    (trial,) = judge_probe([], processes=2, said="No module named franca")
    assert (trial.outcome, trial.what, trial.found) == ("fail", "start", "No module named franca")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy_rows(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_this_machine_is_tried(project: Path) -> None:
    """Two processes of this machine meet, and a data folder that is not there is found."""
    site = load_site("local", root=project)
    roots = {**site.data_roots, "imagenet1k": str(project / "nowhere")}
    site = dataclasses.replace(site, device="cpu", processes_per_node=2, data_roots=roots)
    trials = {trial.what: trial for trial in check_site(site, wait_s=120)}
    assert trials["rendezvous"].outcome == "pass"
    assert trials["shared folder"].found == "all see 2 files"
    assert trials["data"].outcome == "fail"
    assert "nowhere" in trials["data"].found
    (folder,) = (project / "runs" / "probes").iterdir()
    assert [finding["rank"] for finding in load_findings(folder)] == [0, 1]
    assert not list(folder.glob("*.bytes"))
