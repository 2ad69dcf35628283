"""One step's losses against naive loops over crops and prototypes in float64, and what teacher and masks may do."""

import math
from typing import Any

import pytest
import torch
from recipes import make_recipe, make_train_config
from torch import Tensor

from franca.data.datasets import load_dataset
from franca.data.loader import Batch, make_loader
from franca.train.self_distillation import SelfDistillation, Views, make_views

TEMPERATURE = 0.05
CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "global_batch": 3,
    "model": {"embed_dim": 16, "depth": 1},
    "heads": {
        "dino": {"prototypes": 12, "hidden": 16, "bottleneck": 8, "layers": 2},
        "ibot": {"prototypes": 8, "hidden": 16, "bottleneck": 8, "layers": 2},
        "nesting": [8, 16],
    },
    "crops": {"local_number": 2},
    "masking": {"sample_probability": 0.7},
    "losses": {"dino_weight": 0.7, "ibot_weight": 1.3, "koleo_weight": 0.2, "student_temperature": 0.2},
}


def make_model(**changes: Any) -> SelfDistillation:
    """A small model in float64 whose teacher differs from its student and whose every parameter matters."""
    groups = {key: {**SMALL.get(key, {}), **value} for key, value in changes.items()}
    model = SelfDistillation(make_recipe(**{**SMALL, **groups})).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return model


def make_batch(model: SelfDistillation, **execution: Any) -> list[Batch]:
    """The parts of one process's first batch of digits."""
    config = make_train_config(model.recipe, **execution)
    batches = make_loader(config, load_dataset("digits", root="", split="train"), start_iteration=0)
    return [next(batches) for _ in range(config.execution.accumulation)]


def to_double(views: Views) -> Views:
    doubles = {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in vars(views).items()
    }
    return Views(**doubles)


def compute(model: SelfDistillation, **execution: Any) -> tuple[Views, dict[str, float], Tensor]:
    """The views of a batch in one part, its logged terms and its optimized loss."""
    views = to_double(make_views(make_batch(model, **execution)[0], device=CPU))
    targets = model.make_targets([views], temperature=TEMPERATURE)[0]
    losses = model(views, targets)
    return views, {name: value.item() for name, value in losses.logged.items()}, losses.optimized


def naive_sinkhorn(logits: Tensor, *, iterations: int = 3) -> Tensor:
    q = (logits / TEMPERATURE).exp()
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(0, keepdim=True) / q.shape[1]
        q = q / q.sum(1, keepdim=True) / q.shape[0]
    return q * q.shape[0]


def naive_cross_entropy(target: Tensor, logits: Tensor, *, temperature: float) -> float:
    scaled = [value / temperature for value in logits.tolist()]
    log_sum = math.log(sum(math.exp(value) for value in scaled))
    return -sum(p * (value - log_sum) for p, value in zip(target.tolist(), scaled, strict=True))


def naive_terms(model: SelfDistillation, views: Views) -> dict[str, float]:
    """The four logged terms, pair by pair and patch by patch."""
    losses, images = model.recipe.losses, len(views.global_crops) // 2
    student, teacher = model.student, model.teacher
    with torch.no_grad():
        seen = teacher["backbone"](views.global_crops)
        hidden = student["backbone"].forward_packed([views.global_crops], views.masks)[0]
        local_cls = student["backbone"](views.local_crops).cls
        where = [(crop, patch) for crop in range(2 * images) for patch in range(16) if views.masks[crop, patch]]
        wanted = torch.stack([seen.patches[place] for place in where])
        given = torch.stack([hidden.patches[place] for place in where])
        dino_targets = [naive_sinkhorn(level) for level in teacher["dino_head"](seen.cls)]
        ibot_targets = [naive_sinkhorn(level) for level in teacher["ibot_head"](wanted)]
        on_global, on_local = student["dino_head"](hidden.cls), student["dino_head"](local_cls)
        on_patches = student["ibot_head"](given)
    entropy = {"temperature": losses.student_temperature}
    locals_ = len(views.local_crops) // images
    terms = dict.fromkeys(("dino_local_crops_loss", "dino_global_crops_loss", "koleo_loss", "ibot_loss"), 0.0)
    for level in range(2):
        for image in range(images):
            for view in range(2):
                target = dino_targets[level][view * images + image]
                other = on_global[level][(1 - view) * images + image]
                terms["dino_global_crops_loss"] += naive_cross_entropy(target, other, **entropy) / images
                for crop in range(locals_):
                    logits = on_local[level][crop * images + image]
                    terms["dino_local_crops_loss"] += naive_cross_entropy(target, logits, **entropy) / images
        for i, (crop, _) in enumerate(where):
            patch = naive_cross_entropy(ibot_targets[level][i], on_patches[level][i], **entropy)
            terms["ibot_loss"] += patch / views.masks[crop].sum().item() / (2 * images) / 2
    for name in ("dino_local_crops_loss", "dino_global_crops_loss"):
        terms[name] /= 2 * locals_ + 2
    for view in hidden.cls.chunk(2):
        x = torch.nn.functional.normalize(view, dim=1)
        nearest = [max(range(images), key=lambda j: x[i] @ x[j] if i != j else -2) for i in range(images)]
        distances = [(x[i] - x[j] + 1e-8).norm().item() for i, j in enumerate(nearest)]
        terms["koleo_loss"] -= losses.koleo_weight * sum(math.log(d + 1e-8) for d in distances) / images / 2
    return terms


def test_losses_equal_naive_loops() -> None:
    """Every logged term is that of the loops; the optimized loss weighs them and counts KoLeo and iBOT in full."""
    model = make_model()
    views, logged, optimized = compute(model)
    expected = naive_terms(model, views)
    assert logged == pytest.approx(expected, rel=1e-7)  # the patches' weights are float32
    dino = expected["dino_local_crops_loss"] + expected["dino_global_crops_loss"]
    total = 0.7 * dino + 2 * expected["koleo_loss"] + 1.3 * 2 * expected["ibot_loss"]
    assert optimized.item() == pytest.approx(total, rel=1e-7)


def test_first_losses_are_those_of_uniform_predictions() -> None:
    """Before any step a head without normalization predicts almost uniformly: ln K summed over levels, by its share."""
    recipe = make_recipe(**{**SMALL, "quirks": {"head_unnormalized": True}})
    model = SelfDistillation(recipe)
    model.init_weights(torch.Generator().manual_seed(0))
    views = make_views(make_batch(model)[0], device=CPU)
    losses = model(views, model.make_targets([views], temperature=TEMPERATURE)[0]).logged
    dino, ibot = math.log(6) + math.log(12), math.log(4) + math.log(8)
    assert losses["dino_local_crops_loss"].item() == pytest.approx(dino * 4 / 6, rel=1e-2)
    assert losses["dino_global_crops_loss"].item() == pytest.approx(dino * 2 / 6, rel=1e-2)
    assert losses["ibot_loss"].item() == pytest.approx(ibot * 4 / 6 / 2, rel=1e-2)


def test_parts_of_a_batch_make_the_batch() -> None:
    """Three parts give the targets of one batch of three times the size, and its DINO and iBOT losses on average."""
    model = make_model(losses={"koleo_weight": 0.0})
    _, whole, _ = compute(model)
    parts = make_batch(model, batch_per_process=1, accumulation=3)
    views = [to_double(make_views(part, device=CPU)) for part in parts]
    targets = model.make_targets(views, temperature=TEMPERATURE)
    logged = [model(view, target).logged for view, target in zip(views, targets, strict=True)]
    for name, value in whole.items():
        assert sum(part[name].item() for part in logged) / 3 == pytest.approx(value, rel=1e-10)


def test_gradient_reaches_the_student_alone() -> None:
    """Every parameter of the student has a gradient, none of the teacher has."""
    model = make_model()
    compute(model)[2].backward()
    for name, parameter in model.student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in model.teacher.parameters())


def test_teacher_is_an_average_of_students() -> None:
    """Every parameter of backbone and heads moves by one minus the momentum; at momentum one none does."""
    model = make_model()
    before = [parameter.clone() for parameter in model.teacher.parameters()]
    model.update_teacher(momentum=1.0)
    for old, parameter in zip(before, model.teacher.parameters(), strict=True):
        assert torch.equal(parameter, old)
    model.update_teacher(momentum=0.9)
    for old, parameter, student in zip(before, model.teacher.parameters(), model.student.parameters(), strict=True):
        torch.testing.assert_close(parameter, 0.9 * old + 0.1 * student)


def test_teacher_starts_as_the_student_and_drops_nothing() -> None:
    """First values are equal; the teacher stays in evaluation mode however often training is turned on."""
    model = SelfDistillation(make_recipe(**SMALL))
    model.init_weights(torch.Generator().manual_seed(0))
    for teacher, student in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
        assert torch.equal(teacher, student)
    model.train()
    assert not any(module.training for module in model.teacher.modules())
    assert model.student["backbone"].training


def test_dropped_paths_follow_the_generator() -> None:
    """The same generator state drops the same paths, another one others."""
    model = make_model(model={"drop_path": 0.5})
    views = to_double(make_views(make_batch(model)[0], device=CPU))
    targets = model.make_targets([views], temperature=TEMPERATURE)[0]
    totals = [
        model(views, targets, generator=torch.Generator().manual_seed(seed)).optimized.item() for seed in (1, 1, 2)
    ]
    assert totals[0] == totals[1] != totals[2]


def test_padding_rows_enter_sinkhorn_as_a_quirk() -> None:
    """With the quirk, targets are those of Sinkhorn over the masked patches and empty rows up to the bound."""
    plain, quirk = make_model(), make_model(quirks={"sinkhorn_padding_rows": True})
    views = to_double(make_views(make_batch(plain)[0], device=CPU))
    assert views.padding > 0
    with torch.no_grad():
        patches = quirk.teacher["backbone"](views.global_crops).patches.flatten(0, 1)[views.masked]
        padded = torch.cat((patches, patches.new_zeros(views.padding, 16)))
        expected = [naive_sinkhorn(level)[: len(patches)] for level in quirk.teacher["ibot_head"](padded)]
    found = quirk.make_targets([views], temperature=TEMPERATURE)[0].ibot()
    without = plain.make_targets([views], temperature=TEMPERATURE)[0].ibot()
    for level, reference, other in zip(found, expected, without, strict=True):
        torch.testing.assert_close(level, reference)
        assert (level - other).abs().max() > 1e-6


def test_softmax_centering_moves_its_centers() -> None:
    """Targets are those of the center before the batch; the center then moves a tenth of the way to the mean logits."""
    model = make_model(losses={"centering": "softmax"})
    views = to_double(make_views(make_batch(model)[0], device=CPU))
    logits = model.teacher["dino_head"](model.teacher["backbone"](views.global_crops).cls)[1]
    first = model.make_targets([views], temperature=TEMPERATURE)[0].dino()[1]
    swapped = torch.cat(tuple(reversed(logits.chunk(2))))
    torch.testing.assert_close(first, (swapped / TEMPERATURE).softmax(1))
    center = model.get_buffer("dino_center_1")
    torch.testing.assert_close(center, 0.1 * logits.mean(0))
    second = model.make_targets([views], temperature=TEMPERATURE)[0].dino()[1]
    torch.testing.assert_close(second, ((swapped - 0.1 * logits.mean(0)) / TEMPERATURE).softmax(1))


@pytest.mark.parametrize("change", [{"losses": {"ibot_weight": 0.0}}, {"masking": {"sample_probability": 0.0}}])
def test_ibot_can_be_off(change: dict[str, dict[str, float]]) -> None:
    """Where iBOT weighs nothing or masks nothing, its term is zero and the others are as they were."""
    _, logged, optimized = compute(make_model(**change))
    assert logged["ibot_loss"] == 0.0
    assert logged["dino_global_crops_loss"] > 0.0
    assert optimized.isfinite()


@pytest.mark.parametrize("on", [False, True])
def test_sinkhorn_without_its_first_division_is_a_quirk_of_dino_alone(on: bool) -> None:
    """Logits that overflow unscaled have no DINO targets under the quirk; iBOT's, and all without it, stay finite."""
    model = make_model(quirks={"sinkhorn_unscaled": on}).float()
    with torch.no_grad():
        for head in ("dino_head", "ibot_head"):
            for last in model.teacher[head].last_layers:
                last.weight_g.mul_(1e3)
    views = make_views(make_batch(model)[0], device=CPU)
    targets = model.make_targets([views], temperature=TEMPERATURE)[0]
    assert any(level.isnan().any() for level in targets.dino()) == on
    assert all(level.isfinite().all() for level in targets.ibot())


@pytest.mark.parametrize("on", [False, True])
def test_koleo_in_half_precision_is_a_quirk(on: bool) -> None:
    """Equal class tokens have an infinite KoLeo under the quirk and a finite one without it."""
    model = make_model(quirks={"koleo_half": on}).float()
    with torch.no_grad():
        model.student["backbone"].norm.weight.zero_()
    views = make_views(make_batch(model)[0], device=CPU)
    losses = model(views, model.make_targets([views], temperature=TEMPERATURE)[0])
    assert losses.logged["koleo_loss"].isinf().item() == on
