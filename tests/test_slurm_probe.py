"""A site that is a real SLURM cluster, tried. Skipped where there is none."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
from slurm_runs import NEEDS_CLUSTER, SLURM
from small_runs import ROOT

from reproduce.probes import check_site
from reproduce.resolve import Site, load_site

pytestmark = NEEDS_CLUSTER


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A cluster of which a run may take two nodes."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    monkeypatch.chdir(tmp_path)
    return dataclasses.replace(load_site("slurm", root=tmp_path), device="auto", nodes=2, slurm=SLURM)


def test_two_nodes_of_a_cluster_meet(site: Site) -> None:
    """The probe goes through sbatch to two nodes, which find one another and the folder that they share."""
    trials = {trial.what: trial for trial in check_site(site, wait_s=120)}
    assert {trial.outcome for trial in trials.values()} <= {"pass", "warn"}
    assert re.fullmatch(r"2 of 2 processes on vn\d, vn\d", trials["start"].found)
    assert trials["shared folder"].found == "all see 2 files"


def test_node_without_its_environment_is_told(site: Site) -> None:
    """A setup line that ends the job is found as a job of which no process started."""
    broken = dataclasses.replace(site, slurm=dataclasses.replace(SLURM, setup=("exit 3",)))
    (trial,) = check_site(broken, wait_s=100)
    assert (trial.outcome, trial.what) == ("fail", "start")
