"""What released weights are worth is held against every version of the published numbers of the same image size."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from released_rows import digits, make_project

from reproduce.report.page import render_report
from reproduce.spec import load_spec
from reproduce.weights_verdict import (
    EvaluatedFile,
    WeightsVerdict,
    judge_weights,
    load_weights_verdicts,
    verdict_path,
)

FILE = EvaluatedFile("model.pth", "https://example.org/model.pth", "a" * 64, False, "published")


def evaluation(*, knn: float = 82.2, linear: float | None = 84.5, px: int = 224, unreadable: int = 0) -> dict[str, Any]:
    """What `franca evaluate` writes of weights."""
    protocol = {"k": [10, 20], "temperature": 0.07, "train_images": 1_281_167, "test_images": 50_000, "px": px}
    content: dict[str, Any] = {
        "checkpoint_sha256": "b" * 64,
        "knn": {"10": knn, "20": knn - 0.3},
        "protocol": {**protocol, "dataset": "imagenet1k"},
        "unreadable": ["x"] * unreadable,
    }
    if linear is not None:
        content["linear"] = {
            "top_1": linear,
            "classifier": "classifier_4_blocks_avgpool_True_lr_0_02500",
            "iterations": 12_500,
            "batch": 1024,
            "trained_on": "random crops, flipped every other time",
            "chosen_by": "accuracy on the test split, as published",
        }
    return content


def judge(row: str, **found: Any) -> WeightsVerdict:
    return judge_weights(load_spec(row), evaluation(**found), files=(FILE,), listed_px=224, grid_px=224)


def test_every_version_of_the_numbers_is_compared() -> None:
    """Franca-L on LAION has values of two READMEs and the paper; those of 518 px are not held against 224."""
    verdict = judge("franca-L-laion600m")
    spec = load_spec("franca-L-laion600m")
    published = [
        item.value
        for m in spec.metrics
        if m.name in ("knn_top1", "linear_top1")
        for item in m.values
        if item.value is not None
    ]
    assert sorted(item.published for item in verdict.comparisons) == sorted(published)
    assert {item.state for item in verdict.comparisons if (item.condition or "").startswith("518 px")} == {"other size"}
    assert all(item.sources for item in verdict.comparisons)
    for item in verdict.comparisons:
        if item.difference is not None:
            assert item.difference == pytest.approx((82.2 if item.metric == "knn_top1" else 84.5) - item.published)
            assert item.state == ("agrees" if abs(item.difference) <= 0.5 else "differs")
    assert verdict.measured == {"k-NN, k = 10": 82.2, "k-NN, k = 20": pytest.approx(81.9), "linear probe": 84.5}


@pytest.mark.parametrize(
    ("values", "target", "outcome", "code"),
    [
        ([80.0, 85.0], 80.0, "reproduced", 0),
        ([80.0, 85.0], 85.0, "differs", 1),
        ([80.0, 80.4], None, "reproduced", 0),
        ([80.0, 85.0], None, "consistent", 0),
        ([70.0, 85.0], None, "differs", 1),
        ([None], None, "no reference", 3),
    ],
)
def test_the_trusted_value_decides_and_else_all(
    values: list[float | None], target: float | None, outcome: str, code: int, tmp_path: Path
) -> None:
    """80.3 % against published values, one of which may be the one that the row is judged by."""
    metric = {"target": target, "target_why": "because", "values": [{"value": v, "sources": ["ours"]} for v in values]}
    spec = digits(make_project(tmp_path, weights=[], metrics={"knn_top1": metric}))
    found = evaluation(knn=80.3, linear=None)
    verdict = judge_weights(spec, found, files=(FILE,), listed_px=224, grid_px=224)
    assert (verdict.outcome, verdict.exit_code) == (outcome, code)
    assert ("80.30" in verdict.sentence) == (outcome != "no reference")


def test_the_worse_metric_names_the_outcome() -> None:
    """k-NN that agrees does not hide a linear probe that differs, and what was not measured decides nothing."""
    good, bad, half = (
        judge("dinov2-L-in21k", knn=82.0, linear=84.2),
        judge("dinov2-L-in21k", knn=82.0, linear=70.0),
        judge("dinov2-L-in21k", knn=82.0, linear=None),
    )
    assert bad.outcome == "differs"
    assert good.outcome in ("reproduced", "consistent")
    assert {item.state for item in half.comparisons if item.metric == "linear_top1"} <= {"not measured", "other size"}
    assert half.outcome in ("reproduced", "consistent")


def test_what_is_wrong_with_the_files_is_said() -> None:
    """A doubtful status, another grid than listed, unreadable images."""
    doubtful = dataclasses.replace(FILE, status="withdrawn")
    spec = load_spec("franca-L-laion600m")
    verdict = judge_weights(spec, evaluation(unreadable=3), files=(doubtful,), listed_px=224, grid_px=518)
    assert verdict.problems == (
        "model.pth: withdrawn",
        "the weights are listed for 224 px, and their positions are made for 518 px",
        "3 images could not be read and were left out",
    )


def test_verdict_survives_its_file(tmp_path: Path) -> None:
    """Written and read it is the same; several sizes come in order; another file is refused."""
    (tmp_path / "reports").mkdir()
    verdicts = [judge("franca-L-laion600m", px=px) for px in (518, 224)]
    for verdict in verdicts:
        verdict_path(verdict.row, px=verdict.px, root=tmp_path).write_text(verdict.to_json())
    assert load_weights_verdicts("franca-L-laion600m", root=tmp_path) == tuple(verdicts[::-1])
    assert load_weights_verdicts("franca-L-in21k", root=tmp_path) == ()
    for text in ("{", "[]", "{}", '{"files": [{}]}'):
        with pytest.raises(ValueError):  # noqa: PT011 - json's own or ours
            WeightsVerdict.from_json(text)


def test_page_shows_the_weights_beside_the_published_values() -> None:
    """The row's page has a section with the verdict of each size, every number, source and hash; all escaped."""
    spec = load_spec("franca-L-laion600m")
    evil = dataclasses.replace(FILE, name="<script>alert(1)</script>", url="javascript:alert(1)")
    verdicts = [judge("franca-L-laion600m", px=px) for px in (224, 518)]
    verdicts[0] = dataclasses.replace(verdicts[0], files=(evil,))
    text = render_report(None, spec=spec, weights=verdicts)
    assert text.count("weights: evaluated, ") == 2
    assert 'href="#weights"' in text
    assert "<script>alert" not in text
    assert "javascript:" not in text.replace('title="javascript', "")
    assert "a" * 64 in text
    assert "82.20" in text
    assert ">trusted</span>" in text
    assert 'id="weights"' not in render_report(None, spec=spec)
