"""The benchmark of a training step: it runs at a tiny size, times what it says, and so does its script for GPUs."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from franca.flops import step_flops

ROOT = Path(__file__).parents[1]
TINY = ["digits", "model.depth=1", "model.embed_dim=24", "model.heads=2", "heads.nesting=[12,24]", "--batch", "4"]
SHORT = ["--threads", "1", "--warmup", "1", "--steps", "2", "--rounds", "2"]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """The script as a module: benchmarks/ is no package."""
    spec = importlib.util.spec_from_file_location("train_step", ROOT / "benchmarks" / "train_step.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_step"] = module
    spec.loader.exec_module(module)
    return module


def test_variants_are_timed_in_turn(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every round times each variant once; FLOPs follow from images per second, and a CPU has no MFU."""
    file = tmp_path / "step.json"
    arguments = [*TINY, *SHORT, "--device", "cpu", "--recompute", "off,on", "--data", "real", "--to", str(file)]
    assert benchmark.main(arguments) == 0
    kept = json.loads(file.read_text())
    names = [item["variant"] for item in kept["rounds"]]
    assert names == names[:2] * 2
    assert len(set(names)) == 2
    for item in kept["rounds"]:
        assert item["images_per_second"] == pytest.approx(4 / item["seconds"])
        assert item["tflops_per_process"] == pytest.approx(item["images_per_second"] * kept["gflops_per_image"] / 1e3)
        assert (item["mfu"], 0 < item["data_seconds"] < item["seconds"]) == (None, True)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_row_is_timed_at_its_own_batch_and_flops(benchmark: ModuleType) -> None:
    """Without options a variant is the row on one process: its batch per GPU, its model."""
    options = benchmark.parse_options(["franca-L-in21k", "--precision", "bf16"])
    ((_, changes),) = benchmark.list_variants(options).items()
    config = benchmark.make_variant(options, processes=8, **changes)
    assert (config.execution.batch_per_process, config.recipe.global_batch) == (48, 384)
    assert (config.recipe.precision.backbone, config.recipe.precision.grad_scaler) == ("bf16", False)
    assert step_flops(config.recipe, images=48).total == pytest.approx(1.42e12, rel=0.01)


def test_gpu_script_runs_on_a_cpu(tmp_path: Path) -> None:
    """The command that is to be run on GPUs runs here at a tiny size, its own options overridden."""
    command = ["sh", str(ROOT / "benchmarks" / "gpu" / "train_step.sh"), *TINY[1:], *SHORT, "--device", "cpu"]
    environment = {
        **os.environ,
        "ROW": "digits",
        "OUT": str(tmp_path / "step.json"),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command += ["--compile", "off", "--recompute", "off", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "step.json").read_text())["rounds"]) == 1
