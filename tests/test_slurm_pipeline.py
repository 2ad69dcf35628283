"""The whole way on a real SLURM cluster: `dvc repro` of the digits row, from sbatch to report. Skipped without one."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from slurm_runs import NEEDS_CLUSTER, wait_until
from small_runs import ROOT

from reproduce.runs import newest_job, read_provenance

pytestmark = NEEDS_CLUSTER
BIN = Path(sys.executable).parent
SHORTER = {
    "digits.yaml": (("version: 1", "version: 2"), ("iterations: 600", "iterations: 60")),
    "recipe/digits.yaml": (("warmup_iterations: 100", "warmup_iterations: 10"), ("iterations: 100", "iterations: 20")),
}
SITE: dict[str, Any] = {
    "default": "slurm",
    "slurm": {
        "device": "auto",
        "nodes": 2,
        "processes_per_node": 2,
        "workers": 0,
        "slurm": {"timeout_min": 60, "signal_delay_s": 30, "cpus_per_task": 1, "mem_gb_per_node": 4},
    },
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project like this one with a shorter digits row, another one, and a site that is a cluster of two nodes."""
    project = tmp_path / "project"
    for file in (".dvc/config", ".dvcignore", ".gitignore"):
        (project / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, project / file)
    for folder in ("experiments", "reproduce", "franca", "logfiles/digits"):
        shutil.copytree(ROOT / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in SHORTER.items():
        text = (project / "experiments" / name).read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        (project / "experiments" / name).write_text(text)
    row = (project / "experiments" / "digits.yaml").read_text()
    row = row.replace("row: digits", "row: other", 1).replace("iterations: 60", "iterations: 20", 1)
    (project / "experiments" / "other.yaml").write_text(row)
    write_site(project)
    subprocess.run(["git", "init", "--quiet", str(project)], check=True)
    for words in (["lock"], ["pipeline", "--write"]):
        subprocess.run([sys.executable, "-m", "reproduce", *words], cwd=project, check=True, capture_output=True)
    return project


def write_site(project: Path, **parameters: object) -> None:
    """The project's cluster; `parameters` go to sbatch."""
    slurm = {**SITE["slurm"]["slurm"], "additional_parameters": parameters}
    (project / "site.yaml").write_text(yaml.safe_dump({**SITE, "slurm": {**SITE["slurm"], "slurm": slurm}}))


def dvc(project: Path, *words: str) -> "subprocess.Popen[str]":
    """A command of DVC, in a process group of its own, with the project's own code."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(project)}
    return subprocess.Popen(
        ["dvc", *words],
        cwd=project,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_row_goes_from_cluster_to_report_though_its_client_is_killed(project: Path) -> None:
    """Two nodes of two tasks train; a killed `dvc repro` is followed by one that re-attaches and writes the report."""
    run = project / "runs" / "digits@2" / "main"
    with dvc(project, "repro", "digits") as first:
        wait_until(lambda: (run / "training_metrics.json").is_file())
        os.killpg(first.pid, signal.SIGKILL)
    job = newest_job(run)
    assert job is not None
    assert job.is_running()
    with dvc(project, "repro", "digits") as second:
        said, _ = second.communicate(timeout=600)
        assert second.returncode == 0, said
    assert f"already being trained by job {job.job_id}" in said
    assert [launch["job"] for launch in read_provenance(run)["launches"]] == [job.job_id]
    assert json.loads((run / "environment.json").read_text())["processes"] == 4
    assert json.loads((run / "state.json").read_text())["state"] == "finished"
    assert json.loads((run / "evaluation.json").read_text())["iteration"] == 60
    assert (project / "reports" / "digits.html").stat().st_size > 10_000
    assert len(list(job.folder.glob(f"{job.job_id}_*_log.err"))) == 4


def test_row_that_waits_holds_up_no_other(project: Path) -> None:
    """While a row's job waits, another row is reproduced and asked about; what DVC locks is what the first one writes.

    A `dvc repro` that was killed leaves its lock behind: the next one takes it over, and the waiting job.
    """
    run = project / "runs" / "digits@2" / "main"
    write_site(project, hold=True)
    with dvc(project, "repro", "digits") as first:
        try:
            wait_until(lambda: (run / "launch.json").is_file())
            job = newest_job(run)
            assert job is not None
            write_site(project)
            for words in (("repro", "other"), ("status", "other"), ("metrics", "show")):
                with dvc(project, *words) as beside:
                    said, _ = beside.communicate(timeout=600)
                    assert beside.returncode == 0, said
            assert (project / "reports" / "other.html").is_file()
            with dvc(project, "status", "digits") as itself:
                assert f"(PID {first.pid}): " in itself.communicate(timeout=600)[0]
        finally:
            os.killpg(first.pid, signal.SIGKILL)
    assert job.is_running()
    with dvc(project, "repro", "digits") as second:
        held = subprocess.run(["squeue", "-h", "-t", "PD", "-o", "%i"], capture_output=True, text=True, check=True)
        assert job.job_id in held.stdout.split()
        subprocess.run(["scontrol", "release", ",".join(held.stdout.split())], check=True)  # its evaluation is held too
        said, _ = second.communicate(timeout=600)
        assert second.returncode == 0, said
    assert f"already being trained by job {job.job_id}" in said
    assert (project / "reports" / "digits.html").is_file()
