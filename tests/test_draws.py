"""What a run's log says of its crops and masks, against the recipe and against other runs."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from recipes import make_recipe
from synthetic_runs import make_history, make_records

from franca.config import Recipe, to_mapping
from franca.data.augment import draw_views
from franca.data.draws import average_masks, average_views
from franca.laws import DRAWS
from franca.masking import sample_masks
from reproduce.layers.draws import check_draws
from reproduce.lineage import History, make_lineage

OWN = make_recipe()
LINES, BATCH = 30, 4  # a small batch, so that chance has its part


def a_run(recipe: Recipe = OWN, *, seed: int = 1, lines: int = LINES) -> History:
    """The log of a run that says that its recipe is `OWN`, and draws as `recipe` does."""
    generator = np.random.default_rng(seed)
    drawn: Any = {"crops": recipe.crops, "augment": recipe.augment, "quirks": recipe.quirks, "generator": generator}
    records = []
    for record in make_records(seed, stop=10 * lines):
        views = [average_views(draw_views((8, 8), **drawn), size=(8, 8)) for _ in range(BATCH * 10)]
        masks = sample_masks(recipe.masking, images=20 * BATCH, grid=4, generator=generator)
        means = zip(DRAWS, (*np.mean(views, axis=0), *average_masks(masks)), strict=True)
        columns = {f"mean_{name}": float(mean) for name, mean in means}
        records.append(dataclasses.replace(record, values={**record.values, **columns}))
    config = {"recipe": {**to_mapping(OWN), "global_batch": BATCH}, "seed": seed}
    return dataclasses.replace(make_history("mine", records=records), config=config, log_path=None)


def states(history: History, *references: History) -> dict[str, str]:
    return {check.id: check.state for check in check_draws(history, references=references)}


def test_unchanged_runs_pass_at_every_look() -> None:
    """Whatever their seed and however far they are, alone and beside others."""
    references = [a_run(seed=seed) for seed in range(2, 5)]
    for seed in range(5, 10):
        mine = a_run(seed=seed)
        for end in (1, 2, 7, LINES):
            cut = dataclasses.replace(mine, lineage=make_lineage(mine.lineage.records[:end]))
            assert set(states(cut, *references).values()) == {"pass"}


@pytest.mark.parametrize(
    ("changes", "broken", "said"),
    [
        ({"crops": {"local_scale": [0.1, 0.3]}}, "draws-crops", "a local crop covers"),
        ({"crops": {"global_scale": [0.6, 1.0]}}, "draws-crops", "a global crop covers"),
        ({"augment": {"blur_probability_global_1": 0.9}}, "draws-pixels", "blurred first global crops"),
        ({"quirks": {"blur_inverted": True}}, "draws-pixels", "blurred"),
        ({"augment": {"jitter": [0.2, 0.4, 0.2, 0.1]}}, "draws-pixels", "change of brightness"),
        ({"augment": {"flip_probability": 0.01}}, "draws-pixels", "flipped"),
        ({"masking": {"ratio": [0.1, 0.65]}}, "draws-masks", "the share of masked patches"),
        ({"masking": {"sample_probability": 0.3}}, "draws-masks", "the share of masked"),
    ],
)
def test_a_program_that_draws_otherwise_fails(changes: dict[str, Any], broken: str, said: str) -> None:
    """The check of that group names the draw, the line and what the recipe gives; the other groups pass."""
    checks = {check.id: check for check in check_draws(a_run(make_recipe(**changes)), references=())}
    assert {name for name, check in checks.items() if check.state != "pass"} == {broken}
    check = checks[broken]
    assert check.state == "fail"
    assert said in check.finding
    assert "the recipe gives" in check.finding
    assert check.value is not None
    assert check.value > 6
    assert check.iteration in range(0, 10 * LINES, 10)
    for passed in checks.values():  # every mean is there to be read
        assert any("the recipe gives" in evidence.text for evidence in passed.evidence)


def test_not_a_number_fails() -> None:
    """A mean that is not a number is no mean of the recipe's."""
    mine = a_run()
    first, *rest = mine.lineage.records
    odd = dataclasses.replace(first, values={**first.values, "mean_flipped": math.nan})
    assert states(dataclasses.replace(mine, lineage=make_lineage([odd, *rest])))["draws-pixels"] == "fail"


def test_other_images_show_against_the_references_alone() -> None:
    """How large crops are depends on the images' shapes, on which recipes are silent: runs on the same images agree."""
    mine = a_run()
    config = to_mapping(make_recipe(data={"dataset": "imagenet1k"}))

    def on_photographs(history: History, area: float) -> History:
        records = [
            dataclasses.replace(record, values={**record.values, "mean_global_area": area})
            for record in history.lineage.records
        ]
        recipe = {**config, "global_batch": BATCH, "crops": {**config["crops"], "global_scale": [0.32, 1.0]}}
        return dataclasses.replace(history, lineage=make_lineage(records), config={"recipe": recipe, "seed": 1})

    wide, square = on_photographs(mine, 0.45), on_photographs(a_run(seed=2), 0.6)
    assert states(wide)["draws-crops"] == states(square)["draws-crops"] == "pass"
    (check, *_) = check_draws(wide, references=[square])
    assert check.state == "fail"
    assert "the reference runs have 0.6" in check.finding
    assert states(wide, on_photographs(a_run(seed=3), 0.455))["draws-crops"] == "pass"


def test_logs_without_such_columns_are_not_asked() -> None:
    """Neither is a run whose recipe nobody knows; references without the columns are passed over."""
    bare = make_history("mine")
    assert check_draws(bare, references=()) == ()
    assert check_draws(dataclasses.replace(a_run(), config=None), references=()) == ()
    assert set(states(a_run(), bare).values()) == {"pass"}
