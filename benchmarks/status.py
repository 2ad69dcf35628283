"""How long `reproduce status` takes over many runs: makes a project of run folders, measures, prints seconds.

    python benchmarks/status.py --runs 500

Of five runs each, one waits and one runs in the queue of a cluster (a stand-in for squeue, called once), one finished
and was judged, one was lost with its node, one is trained by nobody. The least of five, CPU and wall seconds.
"""

import argparse
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
STATES = ("new", "running", "finished", "running", "paused")  # in state.json, by the run's number modulo 5
LINES = 2000
NODE_FAILURE = "slurmstepd: error: *** JOB {} ON n1 CANCELLED AT 2026-11-21T15:00:00 DUE TO NODE FAILURE ***\n"


def make_run(root: Path, number: int, *, log: str) -> str:
    """A run folder as launches and trainers leave it; returns what squeue says of its job."""
    kind, name = number % 5, f"seed={number}"
    folder = root / "runs" / "digits@1" / name
    files = folder / "submitit" / "0001"
    files.mkdir(parents=True)
    (folder / "config.yaml").write_text("row: digits\n")
    state = {"state": STATES[kind], "iteration": 40, "of": 600, "images_per_second": 9.0, "error": None}
    if kind:
        (folder / "state.json").write_text(json.dumps(state))
        (folder / "training_metrics.json").write_text(log)
    if kind < 4:
        launch = {"executor": "slurm", "job_id": str(number), "submitit_folder": "submitit/0001"}
        (folder / "launch.json").write_text(json.dumps(launch))
        start = {"time": "2026-11-21T14:00:00+00:00", "iteration": 0}
        (files / f"{number}_starts.jsonl").write_text(f"{json.dumps(start)}\n")
    if kind == 2:
        (files / f"{number}_exit_code").write_text("0\n")
        (root / "reports" / f"digits.{name}.json").write_text(
            json.dumps({"outcome": "reproduced", "checks": [0] * 20000})
        )
    if kind == 3:
        (files / f"{number}_0_log.err").write_text(NODE_FAILURE.format(number))
    return ("PENDING|Priority", "RUNNING|None")[kind] if kind < 2 else ""


def make_project(root: Path, *, runs: int) -> None:
    """A project with this one's rows, its runs, and a `squeue` beside it."""
    shutil.copytree(ROOT / "experiments", root / "experiments")
    (root / "reports").mkdir()
    (root / "bin").mkdir()
    values = {f"raw_loss_{i}": 1.0 / 3 for i in range(24)} | {"iter_time": 0.5, "images_per_second": 8.0}
    log = "".join(f"{json.dumps({'iteration': i, **values})}\n" for i in range(LINES))
    said = [f"{number}|{make_run(root, number, log=log)}" for number in range(runs)]
    queue = "\n".join(line for line in said if not line.endswith("|"))
    (root / "bin" / "queue").write_text(f"{queue}\n")
    squeue = root / "bin" / "squeue"
    squeue.write_text(f"#!/bin/sh\necho >> {root}/bin/calls\nexec cat {root}/bin/queue\n")
    squeue.chmod(stat.S_IRWXU)


def measure(root: Path) -> tuple[float, float]:
    """CPU and wall seconds of one `reproduce status`, Python's own start included."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "reproduce", "status"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=root, env=environment, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    """Make the project, measure five times, print the least."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_project(Path(folder), runs=options.runs)
        found = [measure(Path(folder)) for _ in range(5)]
        calls = len((Path(folder) / "bin" / "calls").read_text().splitlines())
    cpu, wall = (min(times) for times in zip(*found, strict=True))
    print(f"{options.runs} runs: {cpu:.2f} s of CPU, {wall:.2f} s, {calls // len(found)} call of squeue")


if __name__ == "__main__":
    main()
