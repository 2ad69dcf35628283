"""RASA takes planted positions out of patch tokens and leaves the rest; a head can be folded, released and resumed."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fabricated_scenes import make_voc
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from test_evaluate import CONFIG, make_run

from franca.models.rasa import RasaHead, load_rasa_head, orthonormal_plane, remove_plane
from franca.models.weights import WeightsError
from franca.train.rasa import HEAD, RESULTS, main

DIM = 48
SMALL = ("--epochs", "2", "--lr", "0.05", "--batch", "8", "--device", "cpu")


def make_head(*, dim: int = 12, planes: int = 3, seed: int = 0) -> RasaHead:
    head = RasaHead(dim, planes=planes)
    head.init_weights(torch.Generator().manual_seed(seed))
    return head


def make_photographs(root: Path, *, images: int = 12) -> Path:
    """A folder of small noisy pictures, some below others."""
    generator = np.random.default_rng(0)
    for number in range(images):
        path = root / ("a" if number % 2 else "b/c") / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return root


def run_rasa(run: Path, data: Path, out: Path, *more: str) -> int:
    return main([str(run), "--data", str(data), "--out", str(out), *SMALL, *more])


@given(st.integers(0, 99), st.integers(2, 9))
def test_plane_is_orthonormal_and_the_same_plane(seed: int, dim: int) -> None:
    """Two unit vectors at right angles that span what the weights span, however long these are."""
    weight = torch.randn(2, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 10 ** (seed % 5)
    basis = orthonormal_plane(weight)
    torch.testing.assert_close(basis @ basis.T, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(weight @ basis.T @ basis, weight)


def test_parallel_weights_span_a_line() -> None:
    """Where a second vector says nothing new one direction is removed, and nothing becomes NaN."""
    direction = torch.tensor([3.0, 4.0, 0.0])
    left = remove_plane(torch.tensor([[1.0, 2.0, 5.0]]), torch.stack([direction, -2 * direction]))
    torch.testing.assert_close(left, torch.tensor([[1.0, 2.0, 5.0]]) - 11 / 5 * direction / 5)


def test_forward_equals_the_naive_loop() -> None:
    """Token by token, plane by plane: z less its projections onto u and onto the rest of v."""
    head = make_head()
    patches = torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(1))
    expected = patches.double().numpy().copy()
    for weight in head.planes:
        row, column = weight.detach().double().numpy()
        u = row / np.linalg.norm(row)
        v = column - (column @ u) * u
        v /= np.linalg.norm(v)
        for image in expected:
            for token in image:
                token -= (token @ u) * u + (token @ v) * v
    np.testing.assert_allclose(head(patches).detach(), expected, atol=1e-5)


@given(st.integers(1, 12), st.integers(0, 9))
def test_folding_equals_one_plane_after_the_other(planes: int, seed: int) -> None:
    """One matrix does what the head does, planes in any position to one another, as released heads have them."""
    head = make_head(planes=planes, seed=seed).double()
    patches = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(patches @ head.fold(), head(patches))


def test_position_is_told_by_the_last_plane_alone() -> None:
    """Predictions come from what the other planes leave; only the last one is given gradients in training."""
    head = make_head()
    patches = torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(1))
    left = remove_plane(remove_plane(patches, head.planes[0]), head.planes[1])
    torch.testing.assert_close(head.predict_positions(patches), torch.sigmoid(left @ head.planes[2].T))


@pytest.mark.parametrize("prefix", ["", "module.", "rasa_head.", "module.rasa_head."])
@pytest.mark.parametrize("planes", [1, 9, 10])
def test_released_spellings_load_exactly(prefix: str, planes: int, tmp_path: Path) -> None:
    """Upstream's names, bare or prefixed; how many planes there are is read from the file."""
    head = make_head(planes=planes)
    torch.save({prefix + name: value for name, value in head.state_dict().items()}, tmp_path / "rasa.pth")
    loaded = load_rasa_head(tmp_path / "rasa.pth", dim=12)
    assert len(loaded.planes) == planes
    assert all(torch.equal(a, b) for a, b in zip(loaded.planes, head.planes, strict=True))


def test_head_is_found_beside_a_backbone(tmp_path: Path) -> None:
    """Of a file that holds both, the tensors named after the head are taken."""
    head = make_head()
    state = {f"backbone.rasa_head.{name}": value for name, value in head.state_dict().items()}
    torch.save({"teacher": state | {"backbone.norm.weight": torch.ones(12)}}, tmp_path / "teacher.pth")
    assert torch.equal(load_rasa_head(tmp_path / "teacher.pth", dim=12).fold(), head.fold())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pos_pred.weight": None}, "pos_pred.weight"),
        ({"pre_pos_layers.0.weight": None}, "pre_pos_layers.0.weight"),
        ({"pre_pos_layers.x.weight": torch.ones(2, 12)}, "pre_pos_layers.x.weight"),
        ({"norm.weight": torch.ones(12)}, "norm.weight"),
        ({"pos_pred.weight": torch.ones(1, 12)}, "pos_pred.weight is (1, 12) for (2, 12)"),
    ],
)
def test_what_is_not_a_head_is_refused(change: dict, said: str, tmp_path: Path) -> None:
    """Missing, foreign and misshapen tensors are named with the file."""
    state = {name: value for name, value in (make_head().state_dict() | change).items() if value is not None}
    save_file(state, tmp_path / "head.safetensors")
    with pytest.raises(WeightsError, match=re.escape(said)) as caught:
        load_rasa_head(tmp_path / "head.safetensors", dim=12)
    assert "head.safetensors" in str(caught.value)


def test_command_trains_measures_and_repeats_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Head and results hold whose they are; planes are at right angles; the same command gives the same bytes."""
    run, data = make_run(tmp_path / "run"), make_photographs(tmp_path / "data")
    teacher = (run / "eval/training_99/teacher_checkpoint.safetensors").read_bytes()
    for out in ("one", "two"):
        assert run_rasa(run, data, tmp_path / out, "--iterations", "3") == 0
    assert (tmp_path / "one" / HEAD).read_bytes() == (tmp_path / "two" / HEAD).read_bytes()
    assert (tmp_path / "one" / RESULTS).read_bytes() == (tmp_path / "two" / RESULTS).read_bytes()
    results = json.loads((tmp_path / "one" / RESULTS).read_text())
    assert len(results["position_r2"]) == len(results["losses"]) + 1 == 4
    assert results["images_fitted"], results["images_held_out"] == (11, 1)
    assert len(results["checkpoint_sha256"]) == len(results["head_sha256"]) == 64
    assert (run / "eval/training_99/teacher_checkpoint.safetensors").read_bytes() == teacher
    fold = load_rasa_head(tmp_path / "one" / HEAD, dim=DIM).fold()
    torch.testing.assert_close(fold @ fold, fold, atol=1e-6, rtol=0)
    assert float(fold.trace()) == pytest.approx(DIM - 2 * 3, abs=1e-5)
    assert "plane 3 of 3" in capsys.readouterr().out


def test_images_that_cannot_be_read_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The head learns of the others and results name them, also where it went on; without any left it is refused."""
    run, data = make_run(tmp_path / "run"), make_photographs(tmp_path / "data")
    broken = data / "a" / "003.png"
    broken.write_bytes(broken.read_bytes()[:60])
    assert run_rasa(run, data, tmp_path / "one", "--iterations", "1") == 0
    assert f"1 images could not be read and were left out, the first: {broken}" in capsys.readouterr().err
    results = json.loads((tmp_path / "one" / RESULTS).read_text())
    assert (results["images_fitted"], results["images_held_out"], len(results["unreadable"])) == (10, 1, 1)
    (tmp_path / "one" / RESULTS).unlink()
    assert run_rasa(run, data, tmp_path / "one", "--iterations", "1") == 0
    assert json.loads((tmp_path / "one" / RESULTS).read_text()) == results
    for path in data.rglob("*.png"):
        path.write_bytes(b"no image")
    assert run_rasa(run, data, tmp_path / "none") == 2
    assert "error: none of the 11 images can be read, one of them: " in capsys.readouterr().err


def test_more_planes_go_on_where_fewer_ended(tmp_path: Path) -> None:
    """One plane and then two more are three planes, to the bit."""
    run, data = make_run(tmp_path / "run"), make_photographs(tmp_path / "data")
    for iterations in ("1", "3"):
        assert run_rasa(run, data, tmp_path / "grown", "--iterations", iterations) == 0
    assert run_rasa(run, data, tmp_path / "whole", "--iterations", "3") == 0
    assert (tmp_path / "grown" / HEAD).read_bytes() == (tmp_path / "whole" / HEAD).read_bytes()


def test_killed_training_goes_on(tmp_path: Path) -> None:
    """Killed after some plane and started again, a run writes the head of one that was left alone."""
    run, data = make_run(tmp_path / "run"), make_photographs(tmp_path / "data")
    more = ("--iterations", "6", "--epochs", "12")
    arguments = [str(run), "--data", str(data), "--out", str(tmp_path / "killed"), *SMALL, *more]
    process = subprocess.Popen([sys.executable, "-m", "franca", "rasa", *arguments], stdout=subprocess.DEVNULL)
    while not (tmp_path / "killed" / HEAD).exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 1 <= len(load_rasa_head(tmp_path / "killed" / HEAD, dim=DIM).planes) < 6
    assert run_rasa(run, data, tmp_path / "killed", *more) == 0
    assert run_rasa(run, data, tmp_path / "whole", *more) == 0
    assert (tmp_path / "killed" / HEAD).read_bytes() == (tmp_path / "whole" / HEAD).read_bytes()


def test_images_with_masks_are_segmented_before_and_after(tmp_path: Path) -> None:
    """In a segmentation dataset's layout the results hold both scores in percent."""
    run, data = make_run(tmp_path / "run"), make_voc(tmp_path / "voc", train=8, val=3)
    more = ("--layout", "voc", "--iterations", "1", "--memory", "200")
    assert run_rasa(run, data, tmp_path / "out", *more) == 0
    scores = json.loads((tmp_path / "out" / RESULTS).read_text())["in_context"]
    assert scores["dataset"] == "voc"
    assert scores["protocol"]["memory"] == 200
    assert 0 < scores["before"] <= 100
    assert 0 < scores["after"] <= 100


def test_head_of_another_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other settings, other images or fewer planes do not go on with a head: exit 2, and the file stays."""
    run, data = make_run(tmp_path / "run"), make_photographs(tmp_path / "data")
    assert run_rasa(run, data, tmp_path / "out", "--iterations", "2") == 0
    before = (tmp_path / "out" / HEAD).read_bytes()
    for more, said in (
        (("--iterations", "3", "--seed", "1"), "settings"),
        (("--iterations", "1"), "has 2 planes"),
    ):
        assert run_rasa(run, data, tmp_path / "out", *more) == 2
        assert said in capsys.readouterr().err
    (data / "a" / "more.png").write_bytes((data / "a" / "001.png").read_bytes())
    assert run_rasa(run, data, tmp_path / "out", "--iterations", "3") == 2
    assert "data: folder" in capsys.readouterr().err
    assert (tmp_path / "out" / HEAD).read_bytes() == before


def test_diverged_model_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens that are not finite make no head."""
    run = make_run(tmp_path / "run")
    path = run / "eval/training_99/teacher_checkpoint.safetensors"
    weights = load_file(path)
    weights["norm.weight"][0] = torch.nan
    save_file(weights, path, metadata={"fingerprint": CONFIG.fingerprint})
    assert run_rasa(run, make_photographs(tmp_path / "data"), tmp_path / "out") == 2
    assert "not finite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("images", "more", "said"),
    [
        (0, (), "0 images"),
        (12, ("--size", "15"), "--size: 15"),
        (12, ("--layout", "voc"), "val.txt: no such list"),
    ],
)
def test_what_cannot_be_trained_on_is_named(
    images: int, more: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2 and one line; nothing is written."""
    (tmp_path / "data").mkdir()
    data = make_photographs(tmp_path / "data", images=images)
    assert run_rasa(make_run(tmp_path / "run"), data, tmp_path / "out", *more) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said.replace("val.txt", "train.txt") in shown.err
    assert not (tmp_path / "out").exists()
