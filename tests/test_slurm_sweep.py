"""A sweep on a real SLURM cluster. Skipped where there is none."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from slurm_runs import NEEDS_CLUSTER

pytestmark = NEEDS_CLUSTER
ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with this one's rows and nothing run yet."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    return tmp_path


def reproduce(*arguments: str, project: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "reproduce", *arguments]
    result = subprocess.run(
        command, cwd=project, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result


def test_array_runs_so_many_at_a_time_and_once(project: Path) -> None:
    """Eight runs go through one array, two at a time; asked again meanwhile and afterwards, none is submitted twice."""
    site = {"device": "auto", "workers": 0, "slurm": {"timeout_min": 60, "cpus_per_task": 1, "mem_gb_per_node": 2}}
    (project / "site.yaml").write_text(yaml.safe_dump({"default": "slurm", "slurm": site}))
    words = ("sweep", "digits", "seed=range(1,9)", "--until", "1", "--parallel", "2", "--yes")
    first = reproduce(*words, project=project)
    assert first.returncode == 0, first.stderr
    assert first.stderr.count("submitted as job") == 8
    folders = [project / "runs" / "digits@1" / f"seed={seed}" for seed in range(1, 9)]
    jobs = [json.loads((folder / "launch.json").read_text())["job_id"] for folder in folders]
    array = jobs[0].partition("_")[0]
    assert jobs == [f"{array}_{index}" for index in range(8)]
    assert "8 runs, 0 to submit" in reproduce(*words, project=project).stdout
    at_once = 0
    end = time.monotonic() + 600
    while True:
        queue = subprocess.run(
            ["squeue", "--noheader", "--array", "--format=%T", f"--jobs={array}"], capture_output=True, text=True
        ).stdout.split()
        at_once = max(at_once, queue.count("RUNNING"))
        if not queue:
            break
        assert time.monotonic() < end, "the array did not end"
        time.sleep(0.2)
    assert at_once == 2
    text = reproduce(*words, project=project).stdout
    assert text.count("paused") == 8
    assert "8 runs, 0 to submit" in text
    runs = json.loads(reproduce("status", "--json", project=project).stdout)["runs"]
    assert [(run["state"], run["iteration"]) for run in runs] == [("paused", 1)] * 8
