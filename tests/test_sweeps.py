"""Sweeps: which runs the words name, what they would take, and what is left to submit."""

import dataclasses
import json
from pathlib import Path

import pytest
from row_copies import copy_rows
from shell import reproduce

from reproduce.errors import ReproduceError, SpecError
from reproduce.overrides import split_sweep
from reproduce.resolve import load_site
from reproduce.sweeps import Member, check_cost, make_sweep, render_sweep


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with this one's rows and nothing run yet, in which the test stands."""
    copy_rows(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sweep_digits(*changes: str, project: Path) -> tuple[Member, ...]:
    return make_sweep("digits", changes, site=load_site("local", root=project), until=None)


@pytest.mark.parametrize(
    ("text", "said"), [("seed=range(1,1)", "names no value"), ("seed=range(1,100000000)", "more than 10,000 values")]
)
def test_lists_of_none_and_of_too_many_are_refused(text: str, said: str) -> None:
    """At once: the values are not listed first."""
    with pytest.raises(SpecError, match=said):
        split_sweep(text)


def test_too_many_runs_are_refused_and_one_run_counts_once(project: Path) -> None:
    """Two lists of two hundred make more than a sweep may have; one value written twice is one run."""
    with pytest.raises(SpecError, match="40,000 runs are more than"):
        sweep_digits("seed=range(0,200)", "iterations=range(600,800)", project=project)
    assert len(sweep_digits("optim.base_lr=1e-3,0.001", "seed=1,1", project=project)) == 1


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("seed=1,2", ("seed=1", "seed=2")),
        ("seed=3", ("seed=3",)),
        ("seed=range(1,4)", ("seed=1", "seed=2", "seed=3")),
        ("optim.base_lr=5e-4,1e-3", ("optim.base_lr=0.0005", "optim.base_lr=0.001")),
        ("heads.nesting=[24,48],[96]", ("heads.nesting=[24,48]", "heads.nesting=[96]")),
        ("heads.nesting=[24,48]", ("heads.nesting=[24,48]",)),
        ("masking.kind=choice(block,cyclic)", ("masking.kind=block", "masking.kind=cyclic")),
    ],
)
def test_list_of_values_is_so_many_changes(text: str, changes: tuple[str, ...]) -> None:
    """Choices and ranges are split into single changes; a value that is a list is one."""
    assert split_sweep(text) == changes


def test_lists_are_taken_each_with_each(project: Path) -> None:
    """Two rates and two seeds are four runs, each with its own folder; the row's own values are the row's own run."""
    members = sweep_digits("optim.base_lr=3e-3,1e-3", "seed=0,1", project=project)
    assert [member.resolved.run for member in members] == ["main", "seed=1", *(m.resolved.run for m in members[2:])]
    assert len({member.resolved.folder for member in members}) == 4
    assert [member.resolved.config.seed for member in members] == [0, 1, 0, 1]
    assert [member.resolved.config.recipe.optim.base_lr for member in members] == [3e-3, 3e-3, 1e-3, 1e-3]
    assert all(member.is_missing for member in members)


def test_only_what_differs_is_shown(project: Path) -> None:
    """The table has a column for each key that varies, and none for those that do not."""
    text = render_sweep(sweep_digits("seed=1,2", "optim.clip_norm=2.0", project=project), width=200)
    assert "seed" in text.splitlines()[0]
    assert "clip_norm" not in text
    assert text.splitlines()[-1].startswith("2 runs, 2 to submit")


def test_what_is_done_is_not_missing(project: Path) -> None:
    """A finished run is left out, a paused one goes on."""
    for run, done in (("main", 600), ("seed=1", 30)):
        folder = project / "runs" / "digits@1" / run
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        state = {"state": "paused", "iteration": done, "of": 600, "images_per_second": None, "error": None}
        (folder / "state.json").write_text(json.dumps(state))
    assert [member.is_missing for member in sweep_digits("seed=0,1,2", project=project)] == [False, True, True]


def test_unknown_row_and_key_are_named(project: Path) -> None:
    """A pattern that fits no row, and a key that the recipe has not, are the user's mistakes with the nearest name."""
    with pytest.raises(SpecError, match="no row is named digit") as error:
        make_sweep("digit", [], site=load_site("local", root=project), until=None)
    assert error.value.mend == "did you mean digits?"
    with pytest.raises(SpecError, match=r"no key optim\.base_rate"):
        sweep_digits("optim.base_rate=1,2", project=project)


def test_cost_is_refused_above_the_limit(project: Path) -> None:
    """What is missing may take the hours allowed and no more; hours that nobody knows are not taken for none."""
    first, second = (
        dataclasses.replace(member, gpu_hours=60.0) for member in sweep_digits("seed=1,2", project=project)
    )
    check_cost((first, second), max_gpu_hours=120.0)
    check_cost((first, second), max_gpu_hours=None)
    with pytest.raises(ReproduceError, match="2 runs would take about 120 GPU-hours, more than 119"):
        check_cost((first, second), max_gpu_hours=119.0)
    execution = dataclasses.replace(first.resolved.config.execution, device="cuda")
    config = dataclasses.replace(first.resolved.config, execution=execution)
    unknown = dataclasses.replace(first, gpu_hours=None, resolved=dataclasses.replace(first.resolved, config=config))
    with pytest.raises(ReproduceError, match="not known"):
        check_cost((unknown,), max_gpu_hours=119.0)


def test_nothing_is_submitted_unasked(project: Path) -> None:
    """Without a terminal to ask on, and without --yes, the table is shown and nothing happens."""
    result = reproduce("sweep", "digits", "seed=1,2", "--site", "local", project=project)
    assert result.returncode == 2
    assert "add --yes" in result.stderr
    assert "2 runs, 2 to submit" in result.stdout
    assert not (project / "runs").exists()
