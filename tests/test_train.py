"""The trainer from end to end on the digits: what a run leaves, how it stops and goes on, how it says a mistake."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from recipes import make_recipe, make_train_config
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageReader

from franca.config import ConfigError, TrainConfig, dump_config
from franca.train.__main__ import main
from franca.train.loop import train
from franca.train.run_folder import lock_folder

ROOT = Path(__file__).parents[1]
HEAD = {"prototypes": 16, "hidden": 16, "bottleneck": 8, "layers": 2}
RECIPE: dict[str, Any] = {
    "iterations": 12,
    "global_batch": 8,
    "model": {"embed_dim": 16, "depth": 2, "drop_path": 0.3, "layerscale": 1.0},
    "heads": {"dino": HEAD, "ibot": HEAD, "nesting": [8, 16]},
    "crops": {"local_number": 2},
    "optim": {"warmup_iterations": 2, "freeze_last_layer_iterations": 1},
    "evaluation": {"period_iterations": 6},
}
EXECUTION: dict[str, Any] = {"checkpoint_period_iterations": 4, "log_period_iterations": 2}


def make_run(folder: Path, *, seed: int = 0, recipe: dict[str, Any] | None = None, **execution: Any) -> TrainConfig:
    """A run folder with its configuration."""
    config = make_train_config(make_recipe(**{**RECIPE, **(recipe or {})}), seed=seed, **{**EXECUTION, **execution})
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(dump_config(config))
    return config


def start(folder: Path) -> subprocess.Popen[str]:
    """The trainer as the harness starts it."""
    command = [sys.executable, "-W", "error", "-m", "franca.train", str(folder / "config.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_iteration(folder: Path, iteration: int, process: subprocess.Popen[str]) -> None:
    """Return as soon as the run's log holds a line of `iteration` or a later one."""
    deadline = time.monotonic() + 120
    while not any(line["iteration"] >= iteration for line in records(folder)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def records(folder: Path) -> list[dict[str, float]]:
    path = folder / "training_metrics.json"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return state


def read_knn(folder: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in folder.glob("eval/*/results_eval_knn.json")}


def read_weights(folder: Path, *, done: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, whole."""
    reader = HuggingFaceStorageReader(str(folder / "checkpoints" / f"{done:06d}"))
    metadata = reader.read_metadata().state_dict_metadata
    weights = {name: torch.empty(found.size, dtype=found.properties.dtype) for name, found in metadata.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        dcp.load(weights, storage_reader=reader, no_dist=True)
    return weights


def assert_same_run(one: Path, two: Path, *, done: int) -> None:
    """Two runs have the same last checkpoint bit for bit, the same k-NN accuracies, and the same losses."""
    a, b = read_weights(one, done=done), read_weights(two, done=done)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name
    assert read_knn(one) == read_knn(two)
    lines = [{line["iteration"]: line for line in records(folder)} for folder in (one, two)]  # the last one wins
    assert lines[0].keys() == lines[1].keys()
    for iteration, line in lines[0].items():
        for key, value in line.items():
            if key.startswith(("raw_", "mean_")):
                assert lines[1][iteration][key] == value, (iteration, key)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(make_run(folder), folder=folder) == "finished"
    return folder


def test_run_leaves_what_the_harness_reads(whole: Path) -> None:
    """A finished run holds its log, its last checkpoints, its evaluations, its state and where it ran."""
    assert [int(line["iteration"]) for line in records(whole)] == [0, 2, 4, 6, 8, 10, 11]
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["000008", "000012"]
    assert sorted(path.name for path in (whole / "eval").iterdir()) == ["training_11", "training_5", "untrained"]
    for place in ("untrained", "training_5", "training_11"):
        accuracy = json.loads((whole / "eval" / place / "results_eval_knn.json").read_text())
        assert 0 < accuracy["('full', 10) Top 1"] <= 100
    teacher = load_file(whole / "eval" / "training_11" / "teacher_checkpoint.safetensors")
    checkpoint = read_weights(whole, done=12)
    for name, tensor in teacher.items():
        assert torch.equal(tensor, checkpoint[f"model.teacher.backbone.{name}"])
    state = read_state(whole)
    assert state.pop("images_per_second") > 0
    assert state == {"state": "finished", "iteration": 12, "of": 12, "error": None}
    environment = json.loads((whole / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["data"]["dataset"] == "digits"
    assert environment["data"]["classes"] == 10


def test_log_has_the_head_of_a_real_one(whole: Path) -> None:
    """Commit, scaled learning rate, configuration and model stand before the first line, as in DINOv2's logs."""
    text = (whole / "log.txt").read_text()
    head = text[: text.index("Training  [")]
    assert "franca run_folder.py:" in head
    assert "] git:\n  sha: " in head
    assert "sqrt scaling learning rate; base: 0.004, new: 0.00035355" in head
    assert (whole / "config.yaml").read_text() in head
    assert "Model:\nSelfDistillation(" in head
    assert "Starting training from iteration 0\n" in head
    assert "Training Total time: " in text


def test_losses_fall(whole: Path) -> None:
    """Even twelve steps lower the loss."""
    lines = records(whole)
    assert lines[-1]["raw_total_loss"] < lines[0]["raw_total_loss"]


def test_finished_run_stays_as_it_is(whole: Path) -> None:
    """Starting it again trains nothing and changes no weight."""
    before = read_weights(whole, done=12)
    lines = records(whole)
    assert main([str(whole / "config.yaml")]) == 0
    assert records(whole) == lines
    assert all(torch.equal(tensor, before[name]) for name, tensor in read_weights(whole, done=12).items())
    assert read_state(whole)["state"] == "finished"


@pytest.mark.parametrize("workers", [0, 1])
def test_paused_run_goes_on_as_if_it_had_not(whole: Path, tmp_path: Path, workers: int) -> None:
    """Stopped at `until_iteration` and started again, with or without workers, a run equals one that was not."""
    config = make_run(tmp_path, workers=workers, until_iteration=7)
    assert train(config, folder=tmp_path) == "paused"
    assert read_state(tmp_path)["state"] == "paused"
    assert read_state(tmp_path)["iteration"] == 7
    config = make_run(tmp_path, workers=workers)
    assert train(config, folder=tmp_path) == "finished"
    assert_same_run(whole, tmp_path, done=12)


def test_killed_run_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    """Killed amid its steps and started again, a run ends with the weights of one that was left alone, bit for bit."""
    longer = {"iterations": 40, "evaluation": {"period_iterations": 20}}
    make_run(tmp_path / "killed", recipe=longer, workers=1)
    train(make_run(tmp_path / "whole", recipe=longer), folder=tmp_path / "whole")
    process = start(tmp_path / "killed")
    wait_for_iteration(tmp_path / "killed", 10, process)
    process.kill()
    process.communicate()
    assert 0 < len(records(tmp_path / "killed")) < len(records(tmp_path / "whole"))
    second = start(tmp_path / "killed")
    errors = second.communicate(timeout=200)[1]
    assert (second.returncode, errors) == (0, "")
    assert "Resuming from checkpoint" in (tmp_path / "killed" / "log.txt").read_text()
    assert_same_run(tmp_path / "whole", tmp_path / "killed", done=40)


def test_accumulated_parts_equal_one_batch(whole: Path, tmp_path: Path) -> None:
    """Two parts of four images have the DINO and iBOT losses of eight; paths are dropped by part, so none are here."""
    plain = {"model": {**RECIPE["model"], "drop_path": 0.0}, "losses": {"koleo_weight": 0.0}, "iterations": 6}
    for name, parts in (("one", 1), ("two", 2)):
        config = make_run(tmp_path / name, recipe=plain, batch_per_process=8 // parts, accumulation=parts)
        train(config, folder=tmp_path / name)
    for a, b in zip(records(tmp_path / "one"), records(tmp_path / "two"), strict=True):
        assert b["raw_total_loss"] == pytest.approx(a["raw_total_loss"], rel=1e-5)
    one, two = (read_weights(tmp_path / name, done=6) for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5)


def test_two_processes_equal_one_with_two_parts(tmp_path: Path) -> None:
    """Data parallel: two processes of four images train as one process that takes twice four, KoLeo and paths too."""
    recipe = {"iterations": 6}
    config = make_run(tmp_path / "one", recipe=recipe, batch_per_process=4, accumulation=2)
    train(config, folder=tmp_path / "one")
    make_run(tmp_path / "two", recipe=recipe, batch_per_process=4, processes=2)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "franca.train", str(tmp_path / "two" / "config.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for a, b in zip(records(tmp_path / "one"), records(tmp_path / "two"), strict=True):
        for key in a:
            if key.startswith(("raw_", "mean_")):
                assert b[key] == pytest.approx(a[key], rel=1e-4), key
    one, two = (read_weights(tmp_path / name, done=6) for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5)
    assert read_state(tmp_path / "two")["state"] == "finished"


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGUSR2, 1), (signal.SIGTERM, 0), (signal.SIGINT, 0)])
def test_signal_saves_and_asks_to_be_started_again(tmp_path: Path, number: signal.Signals, workers: int) -> None:
    """A signal ends the run at the next step's end with a checkpoint of every step that was taken, and exit code 75."""
    often = {"log_period_iterations": 1, "checkpoint_period_iterations": 0, "workers": workers}
    make_run(tmp_path, recipe={"iterations": 2000}, **often)
    process = start(tmp_path)
    wait_for_iteration(tmp_path, 3, process)
    process.send_signal(number)
    errors = process.communicate(timeout=100)[1]
    assert (process.returncode, errors) == (75, "")
    state = read_state(tmp_path)
    assert state["state"] == "interrupted"
    assert state["iteration"] == records(tmp_path)[-1]["iteration"] + 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"{state['iteration']:06d}"]
    assert f"{number.name} after {state['iteration']} of 2000 iterations" in (tmp_path / "log.txt").read_text()


def test_second_trainer_is_turned_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder has one trainer at a time; the other one says whose it is and leaves everything as it was."""
    make_run(tmp_path)
    with lock_folder(tmp_path):
        assert main([str(tmp_path / "config.yaml")]) == 2
    assert f"another trainer (process {os.getpid()}) is at work here" in capsys.readouterr().err
    assert not (tmp_path / "state.json").exists()
    assert not (tmp_path / "log.txt").exists()


def test_diverging_run_stops_before_its_weights_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A loss that is not finite ends the run with code 1, its term and iteration named, and no checkpoint of it."""
    wild = {"optim": {**RECIPE["optim"], "base_lr": 1e12, "clip_norm": 0.0}, "iterations": 40}
    make_run(tmp_path, recipe=wild, checkpoint_period_iterations=1, checkpoints_kept=100)
    assert main([str(tmp_path / "config.yaml")]) == 1
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: iteration ")
    assert "not finite; the weights were kept" in message
    state = read_state(tmp_path)
    assert state["state"] == "failed"
    assert state["error"]["type"] == "NonFiniteError"
    assert state["error"]["message"] in message
    assert state["error"]["where"].startswith("metrics.py:")
    bad = int(message.split()[2].rstrip(":"))
    newest = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert newest == bad
    assert all(tensor.isfinite().all() for tensor in read_weights(tmp_path, done=newest).values())


def test_skipped_steps_leave_the_weights_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """KoLeo in half precision is infinite for equal tokens, as new ones are: two steps are skipped, a third is not."""
    infinite = {
        "model": {**RECIPE["model"], "layerscale": 1e-5},
        "optim": {**RECIPE["optim"], "nonfinite_skips": 2},
        "quirks": {"koleo_half": True},
    }
    make_run(tmp_path, recipe=infinite, checkpoint_period_iterations=1)
    assert main([str(tmp_path / "config.yaml")]) == 1
    assert "iteration 2: koleo_loss and grad_norm not finite" in capsys.readouterr().err
    first, second = (read_weights(tmp_path, done=done) for done in (1, 2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    moments = [tensor for name, tensor in second.items() if name.endswith(("exp_avg", "step"))]
    assert moments
    assert not any(tensor.any() for tensor in moments)


def test_seeds_make_different_runs(whole: Path, tmp_path: Path) -> None:
    """Another seed has other weights and other losses from the first line on."""
    train(make_run(tmp_path, seed=1, until_iteration=2), folder=tmp_path)
    assert records(tmp_path)[0]["raw_total_loss"] != records(whole)[0]["raw_total_loss"]


MISTAKES = [
    ({"execution": {"log_period_iterations": 0}}, "execution.log_period_iterations: 0 is not at least 1"),
    ({"execution": {"batch_per_process": 3}}, "recipe.global_batch: 8"),
    ({"execution": {"processes": 2, "batch_per_process": 4}}, "execution.processes: 2, but this is one of 1"),
    ({"recipe": {"optim": {"warmup_iterations": 13}}}, "recipe.optim.warmup_iterations: 13"),
    ({"recipe": {"crops": {"local_px": 6, "local_number": 2}}}, "recipe.crops.local_px: 6 is not a multiple of"),
    ({"recipe": {"crops": {"local_number": 0}}}, "recipe.crops.local_number: 0 is not at least 1"),
    ({"recipe": {"data": {"dataset": "imagenet21k"}}}, "no data root is given for imagenet21k"),
    ({"recipe": {"evaluation": {"knn_k": [5000]}}}, "recipe.evaluation.knn_k: 5000"),
]


@pytest.mark.parametrize(("changes", "said"), MISTAKES)
def test_mistake_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, dict[str, Any]], said: str
) -> None:
    """What the user can mend ends with code 2 and one line that names it."""
    make_run(tmp_path, recipe=changes.get("recipe"), **changes.get("execution", {}))
    assert main([str(tmp_path / "config.yaml")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert said in lines[0]


def test_edited_recipe_is_refused(tmp_path: Path) -> None:
    """A configuration whose recipe is not that of its fingerprint was edited after its launch."""
    make_run(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("iterations: 12\n", "iterations: 13\n", 1))
    assert main([str(path)]) == 2


def test_missing_configuration_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path that is no file, and a file that is no configuration, are said in one line."""
    assert main([str(tmp_path / "config.yaml")]) == 2
    assert f"error: {tmp_path / 'config.yaml'}: no such file" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("row: digits\n")
    assert main([str(tmp_path / "config.yaml")]) == 2
    assert "missing key" in capsys.readouterr().err


def test_checkpoint_of_another_seed_is_refused(whole: Path, tmp_path: Path) -> None:
    """A folder's checkpoints belong to its recipe and seed."""
    (tmp_path / "checkpoints").symlink_to(whole / "checkpoints")
    with pytest.raises(ConfigError, match="use another run folder"):
        train(make_run(tmp_path, seed=1), folder=tmp_path)
    assert read_state(tmp_path)["state"] == "failed"
