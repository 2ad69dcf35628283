"""Compiled blocks, and blocks whose activations are made again, give the numbers of plain ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_compiled_and_recomputed_steps_equal_plain_ones() -> None:
    """Losses and gradients of one step: to rounding where torch fuses operations, to the bit where it repeats them."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "compiled_steps.py")]
    result = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    ways = json.loads(result.stdout.splitlines()[-1])
    for name, way in ways.items():
        assert way["losses"] == pytest.approx(ways["eager"]["losses"], rel=1e-5), name
        assert way["difference"] < 1e-4, name
    assert ways["recomputed"] == ways["eager"]
