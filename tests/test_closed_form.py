"""Closed forms of the first losses: against naive sums and samples, and against freshly made models."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recipes import make_recipe, make_train_config

from franca.closed_form import (
    bottleneck_square,
    first_losses,
    gelu_square,
    log_mean_exp,
    make_beginning,
    mean_direction,
)
from franca.config import Head, Recipe
from franca.data.datasets import load_dataset
from franca.data.loader import make_loader
from franca.models.heads import make_head
from franca.train.self_distillation import SelfDistillation, make_views
from reproduce.spec import load_spec

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
LARGE = {"prototypes": 4096, "hidden": 256, "bottleneck": 256, "layers": 3}
UNNORMALIZED = {"matryoshka_full_input": True, "head_unnormalized": True}


def limits(recipe: Recipe) -> dict[str, tuple[float, float, float]]:
    beginning = make_beginning(recipe)
    assert beginning is not None
    return {name: (loss.low, loss.value, loss.high) for name, loss in first_losses(beginning).items()}


@pytest.mark.parametrize(("kappa", "dim"), [(10.0, 64), (25.0, 256), (3.0, 16), (100.0, 8)])
def test_sphere_integrals_are_those_of_a_grid(kappa: float, dim: int) -> None:
    """Both integrals over the sphere equal a sum over a fine grid of the angle: density sin^(d-2)."""
    angles = (np.arange(200_000) + 0.5) * math.pi / 200_000
    weights = np.sin(angles) ** (dim - 2)
    tilted = weights * np.exp(kappa * (np.cos(angles) - 1))
    assert log_mean_exp(kappa, dim=dim) == pytest.approx(math.log(tilted.sum() / weights.sum()) + kappa, rel=1e-9)
    assert mean_direction(kappa, dim=dim) == pytest.approx((tilted * np.cos(angles)).sum() / tilted.sum(), rel=1e-9)


@given(st.floats(0.05, 1.0), st.integers(64, 1024))
def test_usual_approximation_holds_for_wide_bottlenecks(temperature: float, dim: int) -> None:
    """1 / (2 b τ²) is an upper bound, and what it leaves out is of the next order."""
    first_order = 1 / (2 * dim * temperature**2)
    exact = log_mean_exp(1 / temperature, dim=dim)
    assert exact < first_order
    assert exact == pytest.approx(first_order, rel=2.1 * first_order / dim + 1e-9)


def test_gelu_square_is_that_of_samples() -> None:
    """The quadrature equals the mean over many draws."""
    for variance in (1e-4, 0.3, 4.0):
        x = torch.randn(500_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * variance**0.5
        assert gelu_square(variance) == pytest.approx(torch.nn.functional.gelu(x).square().mean().item(), rel=5e-3)


@pytest.mark.parametrize("full", [True, False])
def test_bottleneck_of_an_unnormalized_head_has_the_predicted_size(full: bool) -> None:
    """The mean square of the real module's bottlenecks, level by level, within chance."""
    dim, nesting = 384, (24, 96, 384)
    quirks = make_recipe(quirks={"head_unnormalized": True, "matryoshka_full_input": full}).quirks
    head = Head(prototypes=64, hidden=512, bottleneck=256, layers=3)
    module = make_head(head, embed_dim=dim, nesting=nesting, quirks=quirks)
    module.init_weights(torch.Generator().manual_seed(0))
    tokens = torch.nn.functional.layer_norm(torch.randn(512, dim, generator=torch.Generator().manual_seed(1)), [dim])
    for place, width in enumerate(nesting):
        seen = dim if full else width
        projected = module.matryoshka_projections[place](tokens[:, :seen])
        square = module.mlps[place](projected).square().mean().item()
        assert square == pytest.approx(bottleneck_square(head, width=width, seen=seen), rel=0.15)


@pytest.mark.parametrize(
    "changes",
    [
        {"heads": {"dino": {**LARGE, "bottleneck": 384}, "ibot": LARGE}},
        {"heads": {"dino": LARGE, "ibot": LARGE, "nesting": [12, 24, 48]}, "masking": {"kind": "block"}},
        {"heads": {"dino": LARGE, "ibot": LARGE, "nesting": [12, 24, 48]}, "quirks": UNNORMALIZED},
        {"heads": {"dino": LARGE, "ibot": LARGE}, "losses": {"centering": "softmax"}},
        {"heads": {"dino": LARGE, "ibot": LARGE}, "losses": {"student_temperature": 0.2}},
    ],
)
def test_fresh_model_begins_within_the_limits(changes: dict[str, Any]) -> None:
    """A model of random weights has the losses of the closed form on its first batch."""
    recipe = make_recipe(**{"global_batch": 24, "masking": {"kind": "cyclic"}, **changes})
    model = SelfDistillation(recipe)
    model.init_weights(torch.Generator().manual_seed(0))
    batch = next(
        make_loader(make_train_config(recipe), load_dataset("digits", root="", split="train"), start_iteration=0)
    )
    views = make_views(batch, device=CPU)
    with torch.no_grad():
        (targets,) = model.make_targets([views], temperature=recipe.teacher.temperature_start)
        logged = model(views, targets).logged
    for name, (low, _, high) in limits(recipe).items():
        assert low <= logged[name].item() <= high, name


@pytest.mark.parametrize(
    ("row", "expected"),
    [("dinov2-L-in21k", (10.590, 1.3237, 2.995)), ("franca-B-in21k", (46.31, 5.788, 13.024))],
)
def test_rows_begin_where_it_was_derived_by_hand(row: str, expected: tuple[float, float, float]) -> None:
    """ln K + 50 / b, summed over levels; public logs of DINOv2's heads began at 10.5893, 1.3237 and 2.991 to 2.996."""
    values = [value for _, value, _ in limits(load_spec(row, root=ROOT).recipe).values()]
    assert values == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("row", ["dinov2-B-in21k", "franca-B-in21k", "franca-G-in21k", "digits"])
def test_another_program_begins_beyond_the_limits(row: str) -> None:
    """Half the prototypes, one crop less, a level dropped, other masks: the right value of each is wrong here."""
    recipe = load_spec(row, root=ROOT).recipe
    right, heads = limits(recipe), recipe.heads
    halved = {
        name: dataclasses.replace(getattr(heads, name), prototypes=getattr(heads, name).prototypes // 2)
        for name in ("dino", "ibot")
    }
    fewer = dataclasses.replace(recipe.crops, local_number=recipe.crops.local_number - 1)
    faults = {
        "prototypes": dataclasses.replace(recipe, heads=dataclasses.replace(heads, **halved)),
        "crops": dataclasses.replace(recipe, crops=fewer),
        "masks": dataclasses.replace(recipe, masking=dataclasses.replace(recipe.masking, sample_probability=1.0)),
    }
    if not recipe.quirks.head_unnormalized:  # whose logits are near zero at any temperature
        sharper = dataclasses.replace(recipe.losses, student_temperature=0.07)
        faults["temperature"] = dataclasses.replace(recipe, losses=sharper)
    if heads.nesting:
        dino, ibot = (dataclasses.replace(head, prototypes=head.prototypes // 2) for head in (heads.dino, heads.ibot))
        nested = dataclasses.replace(heads, dino=dino, ibot=ibot, nesting=heads.nesting[:-1])
        faults["level"] = dataclasses.replace(recipe, heads=nested)
    for fault, wrong in faults.items():
        assert any(not low <= limits(wrong)[name][1] <= high for name, (low, _, high) in right.items()), fault


def test_weights_of_another_row_have_no_closed_form() -> None:
    """A recipe that starts from trained weights says nothing of its first losses."""
    assert make_beginning(dataclasses.replace(make_recipe(), start="franca-B-in21k")) is None


def test_a_run_without_masks_has_no_patch_loss() -> None:
    """iBOT is left out where it weighs nothing."""
    assert "ibot_loss" not in limits(make_recipe(losses={"ibot_weight": 0.0}))
