"""`franca evaluate` measures runs and weights files, follows a run, and refuses what does not belong together."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from recipes import make_recipe, make_train_config
from safetensors.torch import load_file, save_file
from test_evaluate import CONFIG, CPU, make_run, make_teacher
from test_weights import chunked, prefixed

from franca.config import TrainConfig, dump_config
from franca.evaluate.__main__ import main
from franca.evaluate.protocol import FewShot, encode_pixels, evaluate_knn, make_encoder
from franca.evaluate.teacher import FILE, list_teachers, load_newest_teacher, save_teacher
from franca.models.vit import VisionTransformer
from franca.train.loop import train
from franca.train.parallel import load_start, make_model, make_untrained

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_command_evaluates_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`evaluation.json` holds both accuracies, the checkpoint's hash and the protocol; a table is shown."""
    make_run(tmp_path)
    assert main([str(tmp_path)]) == 0
    written = json.loads((tmp_path / "evaluation.json").read_text())
    teacher = load_newest_teacher(tmp_path, config=CONFIG)
    expected = evaluate_knn(make_encoder(teacher.model, config=CONFIG, device=CPU), config=CONFIG, device=CPU)
    assert written == {
        "iteration": 100,
        "checkpoint": f"eval/training_99/{FILE}",
        "checkpoint_sha256": teacher.sha256,
        "knn": {str(k): value for k, value in expected.accuracies.items()},
        "pixels_knn": {
            str(k): value for k, value in evaluate_knn(encode_pixels, config=CONFIG, device=CPU).accuracies.items()
        },
        "protocol": {
            "k": [1, 10, 20],
            "temperature": 0.07,
            "train_images": 1437,
            "test_images": 360,
            "dataset": "digits",
            "px": 16,
        },
        "unreadable": [],
    }
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "teacher of digits@1 after 100 iterations" in shown.out
    for k in (1, 10, 20):
        assert f"{expected.accuracies[k]:.2f} %" in shown.out


def test_command_runs_as_a_module(tmp_path: Path) -> None:
    """`python -m franca.evaluate` works from anywhere, warns of nothing and repeats itself bit for bit."""
    make_run(tmp_path / "run")
    written = []
    for _ in range(2):
        command = [sys.executable, "-W", "error", "-m", "franca.evaluate", str(tmp_path / "run")]
        done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        written.append((tmp_path / "run" / "evaluation.json").read_bytes())
    assert written[0] == written[1]


def spoil_no_config(run: Path) -> None:
    (run / "config.yaml").unlink()


def spoil_config_syntax(run: Path) -> None:
    (run / "config.yaml").write_text("row: [")


def spoil_edited_config(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("heads: 2\n", "heads: 4\n", 1))


def spoil_no_teacher(run: Path) -> None:
    for path in run.rglob(FILE):
        path.unlink()


def spoil_torn_teacher(run: Path) -> None:
    path = run / "eval" / "training_99" / FILE
    path.write_bytes(path.read_bytes()[:-100])


def spoil_pickled_teacher(run: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, run / "eval" / "training_99" / FILE)


def spoil_shapes(run: Path) -> None:
    path = run / "eval" / "training_99" / FILE
    weights = load_file(path)
    weights["norm.weight"] = torch.ones(5)
    save_file(weights, path, metadata={"fingerprint": CONFIG.fingerprint})


def spoil_foreign_teacher(run: Path) -> None:
    other = make_train_config(make_recipe(evaluation={"knn_k": [1, 10, 20]}, optim={"base_lr": 0.1}))
    save_teacher(make_teacher(other), path=run / "eval" / "training_99" / FILE, config=other)


def spoil_unsigned_teacher(run: Path) -> None:
    path = run / "eval" / "training_99" / FILE
    save_file(load_file(path), path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_no_config, "config.yaml: no such file"),
        (spoil_config_syntax, "config.yaml"),
        (spoil_edited_config, "edited after the run"),
        (spoil_no_teacher, f"no eval/training_*/{FILE}"),
        (spoil_torn_teacher, "not a weights file, or damaged"),
        (spoil_pickled_teacher, "not a weights file, or damaged"),
        (spoil_shapes, "norm.weight"),
        (spoil_foreign_teacher, "was trained by recipe"),
        (spoil_unsigned_teacher, "was trained by recipe None"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil, said: str
) -> None:
    """Exit 2 with one message that names the file; the evaluation of before is left alone."""
    run = make_run(tmp_path / "run")
    (run / "evaluation.json").write_text("earlier")
    spoil(run)
    assert main([str(run)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert said in shown.err
    assert str(run) in shown.err
    assert (run / "evaluation.json").read_text() == "earlier"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_missing_device_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluating on a device that is not there says how to evaluate on the CPU."""
    assert main([str(make_run(tmp_path)), "--device", "cuda"]) == 2
    assert "--device cpu" in capsys.readouterr().err


def test_all_protocols_are_measured_of_one_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Later protocols are added to the file as long as it is of the same checkpoint; DINOv2's files lie beside it."""
    run = make_run(tmp_path)
    linear = ["--protocol", "linear", "--linear-iterations", "20", "--linear-batch", "32"]
    assert main([str(run), "--protocol", "knn", "--per-class", "1,2", "--tries", "2"]) == 0
    assert main([str(run), *linear]) == 0
    written = json.loads((run / "evaluation.json").read_text())
    teacher = load_newest_teacher(run, config=CONFIG)
    few = evaluate_knn(
        make_encoder(teacher.model, config=CONFIG, device=CPU), config=CONFIG, device=CPU, few_shot=FewShot((1, 2), 2)
    ).few_shot
    assert written["knn_per_class"] == {f"{n} per class, k = {k}": value for (n, k), value in few.items()}
    assert written["checkpoint_sha256"] == hashlib.sha256(teacher.path.read_bytes()).hexdigest()
    assert written["linear"]["trained_on"] == "center crops, encoded once"
    assert written["linear"]["learning_rates"][-1] == 0.1 * 32 / 256
    assert (teacher.path.parent / "results_eval_linear.json").is_file()
    assert "linear probe top-1" in capsys.readouterr().out
    save_teacher(make_teacher(CONFIG, seed=7), path=teacher.path, config=CONFIG)
    assert main([str(run), *linear]) == 0
    assert "knn" not in json.loads((run / "evaluation.json").read_text())


def save_released(path: Path, model: VisionTransformer) -> Path:
    """Weights as upstream releases them: the teacher's backbone in chunks."""
    torch.save({"teacher": prefixed("backbone.")(chunked(model.state_dict()))}, path)
    return path


def make_weights(folder: Path, *, grid: int) -> tuple[Path, Path, VisionTransformer]:
    """A released file, its recipe's configuration, and the model that it holds."""
    (folder / "config.yaml").write_text(dump_config(CONFIG))
    model = VisionTransformer(CONFIG.recipe.model, grid=grid)
    model.init_weights(torch.Generator().manual_seed(3))
    return save_released(folder / "released.pth", model), folder / "config.yaml", model


@pytest.mark.parametrize(("grid", "size", "px"), [(4, None, 16), (6, None, 24), (6, 16, 16)])
def test_released_weights_are_measured_at_their_own_size(grid: int, size: int | None, px: int, tmp_path: Path) -> None:
    """Images are as large as the positions' grid says, or as asked; the result names file, hash and size."""
    file, config, model = make_weights(tmp_path, grid=grid)
    assert main([str(file), "--config", str(config), *(["--size", str(size)] if size else [])]) == 0
    written = json.loads((tmp_path / "released.pth.evaluation" / "evaluation.json").read_text())
    recipe = dataclasses.replace(CONFIG.recipe, crops=dataclasses.replace(CONFIG.recipe.crops, global_px=px))
    sized = dataclasses.replace(CONFIG, recipe=recipe)
    expected = evaluate_knn(make_encoder(model, config=sized, device=CPU), config=sized, device=CPU)
    assert written["knn"] == {str(k): value for k, value in expected.accuracies.items()}
    assert (written["protocol"]["px"], written["grid_px"]) == (px, 4 * grid)
    assert (written["iteration"], written["checkpoint"]) == (None, "released.pth")
    assert written["checkpoint_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    lines = (tmp_path / "released.pth.evaluation" / "results_eval_knn.json").read_text().splitlines()
    assert len(lines) == len(expected.accuracies)


def test_weights_of_another_recipe_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other tensors, another fingerprint, an edited or missing configuration: one line each, and nothing is written."""
    file, config, _ = make_weights(tmp_path, grid=4)
    assert main([str(file)]) == 2
    assert "needs --config" in capsys.readouterr().err
    other = make_train_config(make_recipe(model={"depth": 3}))
    (tmp_path / "other.yaml").write_text(dump_config(other))
    assert main([str(file), "--config", str(tmp_path / "other.yaml")]) == 2
    assert "is not a model of" in capsys.readouterr().err
    renamed = make_train_config(make_recipe(optim={"base_lr": 0.1}))
    save_teacher(make_teacher(renamed), path=tmp_path / "signed.safetensors", config=renamed)
    assert main([str(tmp_path / "signed.safetensors"), "--config", str(config)]) == 2
    assert "was trained by recipe" in capsys.readouterr().err
    config.write_text(config.read_text().replace("heads: 2\n", "heads: 4\n", 1))
    assert main([str(file), "--config", str(config)]) == 2
    assert "edited after the run" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.evaluation"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--protocol", "knn,lasso"], "--protocol: lasso is not among knn, linear, logreg"),
        (["--per-class", "1,x"], "--per-class: 1,x is no list"),
        (["--tries", "0"], "--tries: 0 is not at least 1"),
        (["--size", "32"], "--out FOLDER"),
        (["--size", "17", "--out", "x"], "--size: 17 is not a multiple of recipe.model.patch_px, 4"),
    ],
)
def test_senseless_options_are_refused(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line names the option."""
    assert main([str(make_run(tmp_path)), *arguments]) == 2
    assert said in capsys.readouterr().err


def make_apart(folder: Path, **execution: object) -> TrainConfig:
    """A run that writes teachers after 8, 16 and 20 iterations and measures none."""
    recipe = make_recipe(iterations=20, global_batch=8, evaluation={"period_iterations": 8})
    config = make_train_config(recipe, evaluate="apart", log_period_iterations=5, **execution)
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(config))
    return config


def test_run_evaluated_apart_is_measured_by_its_follower(tmp_path: Path) -> None:
    """Training writes its teachers alone; the follower finds what training in line finds, untrained too, and ends."""
    config = make_apart(tmp_path / "apart")
    inline = dataclasses.replace(config, execution=dataclasses.replace(config.execution, evaluate="inline"))
    for name, run in (("apart", config), ("inline", inline)):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.yaml").write_text(dump_config(run))
        train(run, folder=tmp_path / name)
    assert list(list_teachers(tmp_path / "apart")) == [8, 16, 20]
    assert not list((tmp_path / "apart").glob("eval/*/results_eval_knn.json"))
    assert main([str(tmp_path / "apart"), "--follow"]) == 0
    curves = [sorted(run.glob("eval/*/results_eval_knn.json")) for run in (tmp_path / "apart", tmp_path / "inline")]
    assert [path.read_bytes() for path in curves[0]] == [path.read_bytes() for path in curves[1]]
    assert [path.parent.name for path in curves[0]] == ["training_15", "training_19", "training_7", "untrained"]
    for done in (8, 16, 20):
        results = Path("eval") / f"training_{done - 1}" / "results_eval_knn.json"
        written = json.loads((tmp_path / "apart" / results.parent / "evaluation.json").read_text())
        teacher = tmp_path / "apart" / results.parent / FILE
        assert written["iteration"] == done
        assert written["checkpoint_sha256"] == hashlib.sha256(teacher.read_bytes()).hexdigest()


def test_follower_that_is_killed_measures_the_rest_when_it_is_started_again(tmp_path: Path) -> None:
    """It runs beside the training, dies, is started again while training goes on, and leaves nothing unmeasured."""
    folder = tmp_path / "run"
    make_apart(folder)
    follow = [sys.executable, "-m", "franca", "evaluate", str(folder), "--follow", "--poll-s", "0.1"]
    training = subprocess.Popen(
        [sys.executable, "-m", "franca", "train", str(folder / "config.yaml")],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
    )
    first = subprocess.Popen(follow, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    while training.poll() is None and not list(folder.glob("eval/*/results_eval_knn.json")):
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = subprocess.run(follow, env=ENVIRONMENT, check=False, capture_output=True, text=True)
    assert training.wait() == 0
    assert second.returncode == 0, second.stderr
    assert len(list_teachers(folder)) == 3
    assert len(list(folder.glob("eval/*/results_eval_knn.json"))) == 4


def test_teacher_that_a_run_writes_again_is_measured_again(tmp_path: Path) -> None:
    """A run that goes back behind a measured teacher takes its results away; only that one is measured anew."""
    config = make_apart(tmp_path / "run", checkpoint_period_iterations=16)
    train(config, folder=tmp_path / "run")
    assert main([str(tmp_path / "run"), "--all"]) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "000020")
    results = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("eval/*/results_eval_knn.json")}
    train(config, folder=tmp_path / "run")
    last = tmp_path / "run" / "eval" / "training_19" / "results_eval_knn.json"
    assert not last.exists()
    assert not last.with_name("evaluation.json").exists()
    assert main([str(tmp_path / "run"), "--all"]) == 0
    assert [path for path, at in results.items() if path.stat().st_mtime_ns != at] == [last]


@pytest.mark.parametrize("start", [False, True])
def test_first_values_need_no_trainer(start: bool, tmp_path: Path) -> None:
    """The network that is measured as untrained is the teacher that training begins with, its start's included."""
    config = make_train_config(make_recipe(start="other" if start else ""), start_weights=str(tmp_path / "other.pth"))
    other = VisionTransformer(config.recipe.model, grid=6)
    other.init_weights(torch.Generator().manual_seed(5))
    torch.save(other.state_dict(), tmp_path / "other.pth")
    generator = torch.Generator().manual_seed(1)
    model = make_model(config, device=CPU, generator=generator)
    load_start(model, config=config)
    untrained = make_untrained(config, generator=generator.manual_seed(1)).state_dict()
    first = model.teacher["backbone"].state_dict()
    assert untrained.keys() == first.keys()
    assert all(torch.equal(tensor, first[name]) for name, tensor in untrained.items())


def test_follower_of_a_failed_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What there is is measured first."""
    run = make_run(tmp_path)
    (run / "state.json").write_text(json.dumps({"state": "failed", "iteration": 100}))
    assert main([str(run), "--follow"]) == 1
    assert "the run has failed" in capsys.readouterr().err
    assert len(list(run.glob("eval/*/results_eval_knn.json"))) == 3


def test_processes_share_an_evaluation(tmp_path: Path) -> None:
    """Started by torchrun, the command writes what one process writes."""
    # Without small layer scales, under which random weights give features that rounding alone tells apart
    config = make_train_config(make_recipe(model={"layerscale": 1.0}, evaluation={"knn_k": [1, 10, 20]}))
    run = make_run(tmp_path / "run", config=config)
    assert main([str(run), "--out", str(tmp_path / "one")]) == 0
    command = ["torchrun", "--standalone", "--nproc-per-node", "2", "-m", "franca", "evaluate", str(run)]
    done = subprocess.run(
        [Path(sys.executable).with_name(command[0]), *command[1:], "--out", str(tmp_path / "two")],
        check=False, capture_output=True, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = (tmp_path / name / "evaluation.json" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
