"""Runs over processes that are killed, and runs that go on with another number of processes or another wrapper."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_train import RECIPE, ROOT, assert_same_run, make_run, read_weights, records

# No dropped paths: what a process drops is a share of its own part of the batch
PLAIN = {"model": {**RECIPE["model"], "drop_path": 0.0}}
ONE = {"processes": 1, "batch_per_process": 8}
TWO = {"processes": 2, "batch_per_process": 4}


def launch(folder: Path, *, processes: int) -> subprocess.Popen[str]:
    """The trainer on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=127.0.0.1:0", "--nproc-per-node", str(processes), "-m", "franca.train"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, str(folder / "config.yaml")],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder: Path, *, processes: int) -> None:
    process = launch(folder, processes=processes)
    errors = process.communicate(timeout=250)[1]
    assert process.returncode == 0, errors


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["fsdp", "ddp"])
def test_killed_processes_go_on_bit_for_bit(parallel: str, tmp_path: Path) -> None:
    """Two processes killed between two checkpoints, and started again, end as two that were left alone."""
    options = {**TWO, "parallel": parallel, "log_period_iterations": 1, "checkpoint_period_iterations": 5}
    make_run(tmp_path / "whole", recipe={"iterations": 40}, **options)
    finish(tmp_path / "whole", processes=2)
    make_run(tmp_path / "killed", recipe={"iterations": 40}, **options)
    process = launch(tmp_path / "killed", processes=2)
    deadline = time.monotonic() + 200
    while not any(line["iteration"] >= 7 for line in records(tmp_path / "killed")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # The launcher puts each trainer into a session of its own
    trainers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for number in (process.pid, *map(int, trainers)):
        os.kill(number, signal.SIGKILL)
    process.communicate()
    assert records(tmp_path / "killed")[-1]["iteration"] < 39
    finish(tmp_path / "killed", processes=2)
    assert (tmp_path / "killed" / "log.txt").read_text().count("Resuming from checkpoint") == 1
    assert_same_run(tmp_path / "whole", tmp_path / "killed", done=40)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({**TWO, "parallel": "fsdp"}, ONE),
        (ONE, {**TWO, "parallel": "fsdp"}),
        ({**TWO, "parallel": "ddp"}, {**TWO, "parallel": "fsdp"}),
    ],
    ids=["2-to-1", "1-to-2", "ddp-to-fsdp"],
)
def test_run_goes_on_with_other_processes(first: dict[str, int], then: dict[str, int], tmp_path: Path) -> None:
    """Six iterations in one layout and six in another are, to rounding, twelve in one process."""
    make_run(tmp_path / "whole", recipe=PLAIN, **ONE)
    finish(tmp_path / "whole", processes=1)
    make_run(tmp_path / "changed", recipe=PLAIN, **first, until_iteration=6)
    finish(tmp_path / "changed", processes=first["processes"])
    make_run(tmp_path / "changed", recipe=PLAIN, **then)
    finish(tmp_path / "changed", processes=then["processes"])
    lines = zip(records(tmp_path / "whole"), records(tmp_path / "changed"), strict=True)
    for a, b in lines:
        for key in a:
            if key.startswith(("raw_", "mean_")):
                assert b[key] == pytest.approx(a[key], rel=1e-4), key
    whole, changed = (read_weights(tmp_path / name, done=12) for name in ("whole", "changed"))
    for name, tensor in whole.items():
        torch.testing.assert_close(changed[name], tensor, rtol=1e-3, atol=2e-5, msg=lambda text, name=name: name + text)
