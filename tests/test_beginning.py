"""The first line against its closed form: right runs pass, planted faults are found, the unknown stays unknown."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from simulated_runs import RECIPE, make_history, simulate

from franca.config import recipe_fingerprint
from reproduce.layers.beginning import check_beginning
from reproduce.lineage import History, load_history
from reproduce.log_head import Head

ROOT = Path(__file__).parents[1]
LOGS = ROOT.parent / "shared" / "logs" / "dinov2"
DIGITS = load_history(ROOT / "logfiles" / "digits" / "seed-1")


def told(history: History, **changes: Any) -> History:
    """The run with some groups of its configured recipe changed: what it would look like had its code ignored them."""
    assert history.config is not None
    recipe = history.config["recipe"]
    groups = {name: {**recipe[name], **keys} for name, keys in changes.items()}
    return dataclasses.replace(history, config={**history.config, "recipe": {**recipe, **groups}})


@pytest.mark.parametrize("seed", range(1, 21))
def test_runs_of_digits_begin_as_random_weights(seed: int) -> None:
    """None of the twenty reference runs is flagged, and each is well within its limits."""
    check = check_beginning(load_history(ROOT / "logfiles" / "digits" / f"seed-{seed}"))
    assert check.state == "pass"
    assert check.value is not None
    assert check.value < 0.75


HEAD = {"prototypes": 256, "hidden": 256, "bottleneck": 64, "layers": 3}


@pytest.mark.parametrize(
    "changes",
    [
        {"heads": {"dino": {**HEAD, "prototypes": 512}}},
        {"heads": {"dino": {**HEAD, "prototypes": 128}}},
        {"heads": {"ibot": {**HEAD, "prototypes": 1024}}},
        {"heads": {"dino": {**HEAD, "bottleneck": 16}}},
        {"heads": {"nesting": [48, 96]}},
        {"heads": {"nesting": []}},
        {"losses": {"student_temperature": 0.07}},
        {"losses": {"student_temperature": 0.2}},
        {"crops": {"local_number": 3}},
        {"crops": {"local_number": 8}},
        {"masking": {"sample_probability": 1.0}},
        {"quirks": {"head_unnormalized": True}},
    ],
)
def test_planted_faults_are_found(changes: dict[str, Any]) -> None:
    """A run that did not do what its configuration says fails, at iteration 0, with the line that shows it."""
    check = check_beginning(told(DIGITS, **changes))
    assert (check.state, check.iteration, len(check.evidence)) == ("fail", 0, 1)
    assert check.value is not None
    assert check.value > 1


def test_runs_without_a_known_beginning_are_not_judged() -> None:
    """No first line, no configuration or trained weights: nothing is concluded."""
    history = make_history(simulate(0))
    assert history.config is not None
    started = {**history.config["recipe"], "start": "another"}
    later = dataclasses.replace(history.lineage, records=history.lineage.records[1:])
    for unknown in (
        dataclasses.replace(history, lineage=later),
        dataclasses.replace(history, config=None),
        dataclasses.replace(history, config={**history.config, "recipe": started}),
    ):
        assert check_beginning(unknown).state == "unknown"
    assert check_beginning(history).state == "pass"
    assert recipe_fingerprint(RECIPE) == history.config["fingerprint"]


def test_loss_that_is_no_number_fails() -> None:
    """A first loss of NaN is beyond every limit."""
    first, *rest = DIGITS.lineage.records
    bad = dataclasses.replace(first, values={**first.values, "ibot_loss": float("nan")})
    lineage = dataclasses.replace(DIGITS.lineage, records=(bad, *rest))
    assert check_beginning(dataclasses.replace(DIGITS, lineage=lineage)).state == "fail"


def test_franca_logs_are_judged_by_their_own_configuration() -> None:
    """Its log does not list the nested levels, but they follow from the architecture: their sum begins near 46."""
    logged = yaml.safe_load(
        "{student: {arch: vit_base}, teacher: {warmup_teacher_temp: 0.04}, train: {centering: sinkhorn_knopp},"
        " dino: {MRL: true, head_n_prototypes: 131072, head_bottleneck_dim: 384},"
        " ibot: {separate_head: true, head_n_prototypes: 131072, head_bottleneck_dim: 256,"
        " mask_sample_probability: 0.5}, crops: {local_crops_number: 8}}"
    )
    history = make_history(simulate(0))
    for local, state in ((46.31, "pass"), (10.59, "fail")):
        values = {"dino_local_crops_loss": local, "dino_global_crops_loss": local / 8, "ibot_loss": 13.02}
        first = dataclasses.replace(history.lineage.records[0], values=values)
        lineage = dataclasses.replace(history.lineage, records=(first, *history.lineage.records[1:]))
        franca = dataclasses.replace(history, config=None, head=Head(logged), lineage=lineage)
        assert check_beginning(franca).state == state


@pytest.mark.parametrize(
    "name", ["appended-launches", "failed-launch-then-run", "seven-launches-inf", "sibling-1", "sibling-2"]
)
def test_public_logs_begin_as_random_weights(name: str) -> None:
    """Logs that others made, one with Sinkhorn-Knopp and four with a softmax, agree with the closed form."""
    path = LOGS / f"{name}.log.txt"
    if not path.exists():
        pytest.skip(f"the public log {path} is not here")
    check = check_beginning(load_history(path))
    assert check.state == "pass", check.finding
