"""A run's teacher is exported with a card that says where it comes from, and loads again to the bit."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_evaluate import CONFIG, make_run, make_teacher

import franca
from franca.config import dump_config
from franca.evaluate.__main__ import main as evaluate
from franca.evaluate.teacher import FILE, save_teacher
from franca.export import escape, main, quote
from franca.models.weights import WeightsError


def test_exported_teacher_loads_and_computes_the_same(tmp_path: Path) -> None:
    """The file is the teacher's, byte for byte; `franca.load` and `torch.hub` make its model of the folder."""
    run = make_run(tmp_path / "run")
    assert main([str(run), "--out", str(tmp_path / "out" / "model")]) == 0
    folder = tmp_path / "out" / "model"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    teacher = run / "eval" / "training_99" / FILE
    assert (folder / "model.safetensors").read_bytes() == teacher.read_bytes()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    hub = torch.hub.load(str(Path(__file__).parents[1]), "exported", source="local", weights=str(folder))
    with torch.inference_mode():
        expected = make_teacher(CONFIG, seed=1).eval()(images)
        found = franca.load("exported", weights=folder).forward_features(images)
        assert torch.equal(found["x_norm_clstoken"], expected.cls)
        assert torch.equal(found["x_norm_patchtokens"], expected.patches)
        assert torch.equal(hub(images), expected.cls)


def test_card_tells_where_the_model_comes_from(tmp_path: Path) -> None:
    """Recipe, hash, accuracy of this very file and the verdict, with what could not be concluded."""
    run = make_run(tmp_path / "run")
    assert evaluate([str(run)]) == 0
    verdict = {"outcome": "consistent", "sentence": "No check fails.", "cannot_conclude": ["Small <b>differences</b>."]}
    (run / "verdict.json").write_text(json.dumps(verdict))
    (run / "environment.json").write_text(json.dumps({"torch": "2.13.0", "device": "cpu"}))
    assert main([str(run), "--out", str(tmp_path / "first")]) == 0
    card = (tmp_path / "first" / "README.md").read_text()
    sha = hashlib.sha256((run / "eval" / "training_99" / FILE).read_bytes()).hexdigest()
    accuracy = json.loads((run / "evaluation.json").read_text())["knn"]["10"]
    for text in ("after 100 of 100 iterations", CONFIG.fingerprint, sha, f"`{accuracy:.2f} %`", "**consistent**"):
        assert text in card
    assert "- Small \\<b\\>differences\\</b\\>." in card
    save_teacher(make_teacher(CONFIG, seed=5), path=run / "eval" / "training_99" / FILE, config=CONFIG)
    assert main([str(run), "--out", str(tmp_path / "second")]) == 0
    assert "Not measured." in (tmp_path / "second" / "README.md").read_text()


def test_card_of_a_run_of_the_harness_finds_its_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report of this row, version, run, iteration and accuracy is its verdict; one that differs is left out."""
    run = make_run(tmp_path / "runs" / f"{CONFIG.row}@{CONFIG.version}" / "main")
    assert evaluate([str(run)]) == 0
    accuracy = json.loads((run / "evaluation.json").read_text())["knn"]["10"]
    metrics = [{"name": "knn_top1", "mine": accuracy}]
    own = {"row": CONFIG.row, "version": CONFIG.version, "run": "main", "done": 100, "metrics": metrics}
    report = tmp_path / "reports" / f"{CONFIG.row}.json"
    report.parent.mkdir()
    strangers = [
        {"version": CONFIG.version + 1},
        {"run": "seed=3"},
        {"done": 50},
        {"metrics": [metrics[0] | {"mine": 1.5}]},
    ]
    for number, other in enumerate([{}, *strangers]):
        report.write_text(json.dumps({**own, "outcome": "consistent", "sentence": "No check fails.", **other}))
        assert main([str(run), "--out", str(tmp_path / f"{number}")]) == 0
        card = (tmp_path / f"{number}" / "README.md").read_text()
        assert ("**consistent** No check fails." in card) == (not other)
        assert (f"{report}: left out" in capsys.readouterr().err) == bool(other)
    assert main([str(run), "--out", str(tmp_path / "asked"), "--verdict", str(report)]) == 2
    assert "not the verdict on this teacher" in capsys.readouterr().err


def test_card_of_a_variant_does_not_pass_for_the_row(tmp_path: Path) -> None:
    """Title, text and table name what was changed, and each accuracy its images; another seed is no other recipe."""
    run = make_run(tmp_path / "runs" / f"{CONFIG.row}@{CONFIG.version}" / "optim.base_lr=0.006,seed=3")
    assert evaluate([str(run)]) == 0
    (run / "provenance.json").write_text(json.dumps({"overrides": ["optim.base_lr=0.006", "seed=3"]}))
    assert main([str(run), "--out", str(tmp_path / "variant")]) == 0
    card = (tmp_path / "variant" / "README.md").read_text()
    assert card.startswith(f"# {CONFIG.row}, version {CONFIG.version}, changed: optim.base_lr=0.006\n")
    assert f"**This is not {CONFIG.row}\\@{CONFIG.version}:** its recipe was changed, optim.base_lr=0.006." in card
    assert f"| recipe | `{CONFIG.row}@{CONFIG.version}, changed: optim.base_lr=0.006` |" in card
    assert "k-NN top-1 on digits, k = 10, temperature 0.07, 1,437 train and 360 test images" in card
    (run / "provenance.json").write_text(json.dumps({"overrides": ["seed=3"]}))
    assert main([str(run), "--out", str(tmp_path / "seed")]) == 0
    card = (tmp_path / "seed" / "README.md").read_text()
    assert card.startswith(f"# {CONFIG.row}, version {CONFIG.version}\n\nA vision transformer")


@given(st.text("`|\\ab_ \n"))
def test_quoted_text_is_one_piece_of_code_or_escaped(text: str) -> None:
    """Between fences that it does not hold stands the text in one line; with a bar in it, it is escaped instead."""
    line = " ".join(text.split())
    if "|" in line or not line:
        assert quote(text) == escape(text)
        return
    found = re.fullmatch(r"(`+)( ?)(.*?)\2\1", quote(text))
    assert found
    assert found[3] == line
    assert found[1] not in re.findall("`+", line)


def test_nothing_in_a_run_is_taken_for_markdown(tmp_path: Path) -> None:
    """A row's name or a machine's cannot add a heading, a link, an image or a script to the card."""
    run = make_run(tmp_path / "run")
    evil = "x\n# [a](http://b) ![c](d) <script>`|"
    config = dataclasses.replace(CONFIG, row=evil)
    (run / "config.yaml").write_text(dump_config(config))
    (run / "environment.json").write_text(json.dumps({"device": evil}))
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert not re.search(r"(?<!\\)<script|(?<!\\)\]\(|(?<!\\)!\[", card)
    assert card.count("\n# ") == 0
    rows = [line for line in card.splitlines() if line.startswith("| device")]
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 3


@given(st.text())
def test_escaped_text_has_no_bare_punctuation(text: str) -> None:
    """Every character with a meaning has a backslash before it, and taking them away gives the text in one line."""
    escaped = escape(text)
    assert "\n" not in escaped
    assert not re.search(r"(?<!\\)(?:\\\\)*(?:[`*<>|\[\]]|(?<![^\W_])(?<!\\)_|_(?![^\W_]))", escaped)
    assert re.sub(r"\\(.)", r"\1", escaped) == " ".join(text.split())


def test_what_cannot_be_exported_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run without teacher, an old folder, a missing run or verdict, a damaged record: exit 2, nothing written."""
    run = make_run(tmp_path / "run")
    (tmp_path / "exists").mkdir()
    cases = [
        ([str(run), "--out", str(tmp_path / "exists")], "exists already"),
        ([str(tmp_path / "none"), "--out", str(tmp_path / "out")], "config.yaml: no such file"),
        ([str(run), "--out", str(tmp_path / "out"), "--verdict", "none.json"], "none.json: no such file"),
    ]
    for arguments, said in cases:
        assert main(arguments) == 2
        assert said in capsys.readouterr().err
    (run / "evaluation.json").write_text("[")
    assert main([str(run), "--out", str(tmp_path / "out")]) == 2
    assert "evaluation.json: not JSON" in capsys.readouterr().err
    for path in run.rglob(FILE):
        path.unlink()
    assert main([str(run), "--out", str(tmp_path / "out")]) == 2
    assert "no eval/training_*/" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_damaged_export_is_refused(tmp_path: Path) -> None:
    """Weights that do not fit the description beside them do not load."""
    run = make_run(tmp_path / "run")
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    description = json.loads((tmp_path / "out" / "config.json").read_text())
    description["model"]["depth"] = 3
    (tmp_path / "out" / "config.json").write_text(json.dumps(description))
    with pytest.raises(WeightsError, match="missing: blocks"):
        franca.load("exported", weights=tmp_path / "out")
