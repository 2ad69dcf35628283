"""`franca evaluate-dense` writes a line of results for each method, says whose it is, and refuses what does not fit."""

import json
from pathlib import Path

import pytest
import torch
from fabricated_scenes import make_ade20k, make_voc
from safetensors.torch import save_file
from test_evaluate import make_run
from test_evaluate_command import spoil_edited_config, spoil_foreign_teacher, spoil_torn_teacher
from test_rasa import DIM, make_head

from franca.__main__ import main as franca
from franca.data.datasets import DataError
from franca.data.pixel_labels import load_segmentation
from franca.evaluate.dense import FILE, main, render_result
from franca.evaluate.subject import file_sha256

SMALL = ("--device", "cpu", "--memory", "300", "--k", "5", "--size", "24", "--iterations", "4", "--batch", "6")
TEACHER = "eval/training_99/teacher_checkpoint.safetensors"


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("name", "make"), [("voc", make_voc), ("ade20k", make_ade20k)])
def test_both_methods_are_written_beside_the_checkpoint(
    name: str, make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line a method: mIoU, classes, the checkpoint's hash and the protocol; a second run gives the same bytes."""
    run, root = make_run(tmp_path / "run"), make(tmp_path / "data")
    command = [str(run), "--dataset", name, "--root", str(root), "--methods", "in-context", "linear", *SMALL]
    assert franca(["evaluate-dense", *command]) == 0
    path = (run / TEACHER).with_name(FILE)
    first = path.read_bytes()
    lines = read_lines(path)
    assert [(line["dataset"], line["method"]) for line in lines] == [(name, "in-context"), (name, "linear")]
    for line in lines:
        assert line["checkpoint_sha256"] == file_sha256(run / TEACHER)
        assert line["images"] == 12
        assert 0 <= line["mIoU"] <= 100
        assert line["mIoU"] == pytest.approx(sum(line["class_iou"].values()) / line["classes"])
        assert line["px"] == 24
        assert line["rasa_sha256"] is None
    assert lines[0]["protocol"] == {"memory": 300, "k": 5, "temperature": 0.02, "seed": 0}
    assert lines[0]["mIoU"] > 30
    assert (lines[1]["protocol"]["iterations"], lines[1]["protocol"]["warmup_iterations"]) == (4, 1)
    assert capsys.readouterr().out.count("mIoU") == 2
    assert main(command) == 0
    assert path.read_bytes() == first


def test_head_and_weights_file_give_lines_of_their_own(tmp_path: Path) -> None:
    """Results with a RASA head stand beside those without, under the hashes of both files."""
    run, root = make_run(tmp_path / "run"), make_voc(tmp_path / "data", train=6, val=2)
    save_file(make_head(dim=DIM).state_dict(), tmp_path / "head.safetensors")
    command = [str(run), "--dataset", "voc", "--root", str(root), "--out", str(tmp_path / "out"), *SMALL]
    assert main(command) == 0
    assert main([*command, "--rasa", str(tmp_path / "head.safetensors")]) == 0
    lines = read_lines(tmp_path / "out" / FILE)
    assert [line["rasa_sha256"] for line in lines] == [None, file_sha256(tmp_path / "head.safetensors")]
    assert not (run / TEACHER).with_name(FILE).exists()


@pytest.mark.parametrize("spoil", [spoil_edited_config, spoil_foreign_teacher, spoil_torn_teacher])
def test_checkpoint_that_is_not_of_the_configuration_is_refused(
    spoil, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2 with one line, and nothing written."""
    run, root = make_run(tmp_path / "run"), make_voc(tmp_path / "data", train=2, val=1)
    spoil(run)
    assert main([str(run), "--dataset", "voc", "--root", str(root), *SMALL]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert not (run / TEACHER).with_name(FILE).exists()


def test_missing_data_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2: a list that is missing, a mask that does not fit."""
    run, root = make_run(tmp_path / "run"), make_voc(tmp_path / "data", train=2, val=1)
    command = [str(run), "--dataset", "voc", "--root", str(root), *SMALL]
    assert main([*command, "--train-list", "trainaug"]) == 2
    assert "trainaug.txt: no such list" in capsys.readouterr().err
    (root / "SegmentationClass/val_000000.png").write_bytes(b"no mask")
    assert main(command) == 2
    assert "val_000000.png" in capsys.readouterr().err


def test_file_that_is_no_result_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of the same name that holds something else is neither read as results nor overwritten."""
    run, root = make_run(tmp_path / "run"), make_voc(tmp_path / "data", train=2, val=1)
    path = (run / TEACHER).with_name(FILE)
    path.write_text("notes\n")
    assert main([str(run), "--dataset", "voc", "--root", str(root), *SMALL]) == 2
    assert "not a file of segmentation results" in capsys.readouterr().err
    assert path.read_text() == "notes\n"


def test_masks_without_a_class_have_no_score(tmp_path: Path) -> None:
    """Where every pixel is unlabeled the masks are named instead of a NaN being written."""
    test = load_segmentation("voc", root=str(make_voc(tmp_path, train=1, val=1)), split="val")
    with pytest.raises(DataError, match="SegmentationClass: no pixel of the 1 masks has a class"):
        render_result(torch.zeros(21, 21, dtype=torch.long), test, method="linear")


@pytest.mark.parametrize("option", ["--k", "--memory", "--iterations", "--batch", "--temperature", "--lr"])
def test_numbers_must_be_positive(option: str, tmp_path: Path) -> None:
    """Zero of anything is refused before anything is loaded."""
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path), "--dataset", "voc", "--root", str(tmp_path), option, "0"])
    assert caught.value.code == 2
