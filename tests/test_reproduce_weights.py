"""`reproduce weights` takes released weights from their address to a report, for both sizes and in parts."""

import hashlib
import json
from pathlib import Path

import pytest
from released_rows import ROW, cut, digits, make_project, make_site, pack, save_released
from row_copies import copy_rows
from shell import Result, reproduce

from franca.config import load_config
from reproduce.errors import SiteError, WeightsFileError
from reproduce.spec import load_spec
from reproduce.standing import load_standings
from reproduce.weights import Protocol, evaluate_weights, make_config
from reproduce.weights_verdict import load_weights_verdicts

VALUES = [
    {"value": 50.0, "sources": ["ours"], "condition": "16 px"},
    {"value": 99.9, "sources": ["ours"], "condition": "16 px, withdrawn"},
    {"value": 40.0, "sources": ["ours"], "condition": "24 px"},
]


def ignore(_: str) -> None:
    pass


def make_released(tmp_path: Path) -> tuple[Path, dict[int, Path]]:
    """A project whose row has released weights: a file for 24 px, and an archive in three parts for 16 px."""
    plain = digits(make_project(tmp_path / "plain", weights=[], metrics={}))
    folder = tmp_path / "there"
    folder.mkdir()
    files = {px: save_released(folder / f"model_{px}.pth", plain, px=px, seed=px) for px in (16, 24)}
    parts = pack({"chunks/model.pth": files[16].read_bytes()}, parts=3, folder=folder, name="small.tar.gz")
    listed = [{"url": path.as_uri(), "grid_px": 16} for path in parts]
    metric = {"target": 50.0, "target_why": "for the test", "condition": "16 px", "values": VALUES}
    project = make_project(
        tmp_path / "project",
        weights=[{"url": files[24].as_uri(), "grid_px": 24}, *listed],
        metrics={"knn_top1": metric, "linear_top1": {"values": VALUES[:1]}},
    )
    return project, files


def evaluate(project: Path, *arguments: str) -> Result:
    return reproduce("weights", ROW, *arguments, project=project)


def test_weights_go_from_their_address_to_a_report(tmp_path: Path) -> None:
    """Both sizes are fetched, put together, evaluated by `franca evaluate`, judged, and stand on the row's page."""
    project, files = make_released(tmp_path)
    small = evaluate(project, "--size", "16", "--linear-iterations", "10", "--json")
    large = evaluate(project, "--size", "24", "--protocol", "knn")
    assert small.returncode == 1, small.stderr
    verdicts = {verdict.px: verdict for verdict in load_weights_verdicts(ROW, root=project)}
    assert json.loads(small.stdout)["checkpoint_sha256"] == verdicts[16].checkpoint_sha256
    for px, verdict in verdicts.items():
        assert verdict.checkpoint_sha256 == hashlib.sha256(files[px].read_bytes()).hexdigest()
        assert verdict.problems == ()
        run = project / "runs" / "digits@1" / "weights" / str(px)
        assert load_config(run / "config.yaml").fingerprint == load_spec(ROW).fingerprint
        found = json.loads((run / "evaluation.json").read_text())
        assert (found["protocol"]["px"], found["grid_px"]) == (px, px)
        assert verdict.measured["k-NN, k = 10"] == found["knn"]["10"]
        assert [item.mine for item in verdict.comparisons if item.metric == "knn_top1" and item.mine is not None] == [
            found["knn"]["10"]
        ] * (2 if px == 16 else 1)
    assert [file.name for file in verdicts[16].files] == [f"small.tar.gz.part_a{letter}" for letter in "abc"]
    assert verdicts[16].outcome == "differs"
    assert "linear probe" in verdicts[16].measured
    assert "linear probe" not in verdicts[24].measured
    assert "random crops" in " ".join(verdicts[16].how)
    assert large.returncode in (0, 1)
    assert "knn_top1" in large.stdout
    page = (project / "reports" / "digits.html").read_text()
    assert page.count("weights: evaluated, ") == 2
    assert verdicts[16].checkpoint_sha256 in page
    assert f"{verdicts[24].measured['k-NN, k = 10']:.2f}" in page


def test_file_that_is_no_model_of_the_row_is_refused(tmp_path: Path) -> None:
    """What the evaluation says of it is the message; no verdict is written."""
    project, _ = make_released(tmp_path)
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(b"no weights")
    result = evaluate(project, "--size", "24", "--file", str(wrong))
    assert result.returncode == 2
    assert "wrong.pth: holds more than tensors, or is damaged" in result.stderr
    assert not list((project / "reports").glob("*"))
    assert load_standings(project) == ((), None)


def test_given_file_of_another_size_is_told(tmp_path: Path) -> None:
    """Positions for 24 px in a file that is listed for 16: the verdict says so, and its numbers are those of 24 px."""
    project, files = make_released(tmp_path)
    parts = cut(pack({"m.pth": files[24].read_bytes()}, parts=1, folder=tmp_path)[0].read_bytes(), parts=3,
                folder=tmp_path, name="given")  # fmt: skip
    site, protocol = make_site(project), Protocol(("knn",))
    spec = digits(project)
    spec = type(spec)(**{**vars(spec), "weights": spec.weights[1:]})
    verdict, _ = evaluate_weights(spec, site=site, protocol=protocol, given=parts, anyway=False, say=ignore)
    assert verdict.px == 24
    assert verdict.problems == ("the weights are listed for 16 px, and their positions are made for 24 px",)


def test_doubtful_weights_need_a_word(tmp_path: Path) -> None:
    """Withdrawn weights are evaluated with --anyway alone, and the verdict keeps saying what they are."""
    spec = digits(make_project(tmp_path / "plain", weights=[], metrics={}))
    file = save_released(tmp_path / "model.pth", spec, px=16)
    weights = [{"url": file.as_uri(), "grid_px": 16, "status": "withdrawn", "note": "it was another model"}]
    project = make_project(tmp_path / "project", weights=weights, metrics={"knn_top1": {"values": VALUES}})
    options = {"site": make_site(project), "protocol": Protocol(("knn",)), "given": ()}
    with pytest.raises(WeightsFileError, match="withdrawn: it was another model") as caught:
        evaluate_weights(digits(project), **options, anyway=False, say=ignore)
    assert caught.value.mend is not None
    assert "--anyway" in caught.value.mend
    said: list[str] = []
    verdict, _ = evaluate_weights(digits(project), **options, anyway=True, say=said.append)
    assert said[0] == "warning: model.pth: withdrawn: it was another model"
    assert verdict.problems == ("model.pth: withdrawn",)


def test_faults_of_a_file_come_before_those_of_the_site(tmp_path: Path) -> None:
    """Where the images are missing too, a file that is absent, none, or another model's is what is said first."""
    model = save_released(
        tmp_path / "digits.pth", digits(make_project(tmp_path / "plain", weights=[], metrics={})), px=16
    )
    junk = tmp_path / "junk.pth"
    junk.write_bytes(b"no weights")
    spec = load_spec("franca-B-in21k", root=copy_rows(tmp_path / "project"))
    options = {"protocol": Protocol(("knn",)), "anyway": True, "say": ignore}
    for path, said in ((tmp_path / "gone.pth", "no such file"), (junk, "or is damaged"), (model, "is not a model of")):
        with pytest.raises(WeightsFileError, match=said):
            evaluate_weights(spec, site=make_site(tmp_path), given=[path], **options)


def test_site_without_the_images_is_told(tmp_path: Path) -> None:
    """The message names the key to write, before anything is downloaded."""
    site = make_site(tmp_path)
    with pytest.raises(SiteError, match=r"data_roots\.imagenet1k is not set") as caught:
        make_config(load_spec("franca-B-in21k"), site=site, device="cpu")
    assert caught.value.mend is not None
    assert "site.yaml" in caught.value.mend


def test_unknown_protocols_are_refused(tmp_path: Path) -> None:
    """k-NN is always measured; others are named from a list."""
    project, _ = make_released(tmp_path)
    for names in (("linear",), ("knn", "lasso")):
        with pytest.raises(WeightsFileError, match="--protocol"):
            evaluate_weights(
                digits(project), site=make_site(project), protocol=Protocol(names), given=(), anyway=False, say=ignore
            )
