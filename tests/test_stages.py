"""Runs that begin with another run's networks, and runs that learn from a frozen teacher."""

from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import make_recipe, make_train_config
from safetensors.torch import load_file, save_file
from test_train import EXECUTION, RECIPE, assert_same_run, make_run, read_weights, records

from franca.config import ConfigError, make_config, to_mapping
from franca.data.datasets import load_dataset
from franca.data.loader import make_loader
from franca.losses.sinkhorn import sinkhorn
from franca.models.layers import interpolate_positions
from franca.train.__main__ import main
from franca.train.loop import check_config, train
from franca.train.parallel import load_frozen_teacher, load_start, make_model
from franca.train.self_distillation import SelfDistillation, make_networks, make_views

CPU = torch.device("cpu")
LARGER = {**to_mapping(make_recipe(**RECIPE).model), "embed_dim": 32, "depth": 3}
DISTILLATION: dict[str, Any] = {
    "model": {**RECIPE["model"], "drop_path": 0.0},
    "masking": {"sample_probability": 0.0},
    "frozen_teacher": {"row": "larger", "model": LARGER},
}
TEACHER_RECIPE = make_recipe(
    **{**RECIPE, "model": LARGER, "heads": {**RECIPE["heads"], "nesting": [16, 32]}, "crops": RECIPE["crops"]}
)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A larger teacher with its heads, in the names of a run's single network."""
    networks = make_networks(TEACHER_RECIPE)
    generator = torch.Generator().manual_seed(7)
    for module in networks.values():
        module.init_weights(generator)
    path = tmp_path_factory.mktemp("teacher") / "larger.safetensors"
    save_file(networks.state_dict(), path)
    return path


def test_distillation_keeps_the_teacher_and_the_students_average(teacher_file: Path, tmp_path: Path) -> None:
    """The student's average moves and is what is kept; a resume changes nothing, and loads the teacher's file again."""
    make_run(tmp_path / "whole", recipe=DISTILLATION, teacher_weights=str(teacher_file))
    assert main([str(tmp_path / "whole" / "config.yaml")]) == 0
    whole = read_weights(tmp_path / "whole", done=12)
    assert not any("frozen" in name for name in whole)
    average, student = (whole[f"model.{who}.backbone.blocks.0.mlp.fc1.weight"] for who in ("teacher", "student"))
    assert not torch.equal(average, student)
    assert (average - student).abs().max() < 0.1
    assert all(line["raw_ibot_loss"] > 0 for line in records(tmp_path / "whole"))

    config = make_run(tmp_path / "parts", recipe=DISTILLATION, teacher_weights=str(teacher_file), until_iteration=5)
    assert train(config, folder=tmp_path / "parts") == "paused"
    other = {name: tensor + 1 for name, tensor in load_file(teacher_file).items()}
    save_file(other, tmp_path / "other.safetensors")
    config = make_run(tmp_path / "parts", recipe=DISTILLATION, teacher_weights=str(tmp_path / "other.safetensors"))
    with pytest.raises(ConfigError, match=r"other\.safetensors: not the teacher that this run began with"):
        train(config, folder=tmp_path / "parts")
    config = make_run(tmp_path / "parts", recipe=DISTILLATION, teacher_weights=str(teacher_file))
    assert train(config, folder=tmp_path / "parts") == "finished"
    assert_same_run(tmp_path / "whole", tmp_path / "parts", done=12)


def test_distillation_compares_every_patch_of_whole_crops(teacher_file: Path) -> None:
    """Both losses against the teacher's own targets, patch by patch; the student sees what the teacher sees."""
    config = make_train_config(
        make_recipe(**{**RECIPE, **DISTILLATION}), **EXECUTION, teacher_weights=str(teacher_file)
    )
    model = make_model(config, device=CPU, generator=torch.Generator().manual_seed(0))
    load_frozen_teacher(model, config=config)
    assert torch.equal(
        model.frozen_teacher["dino_head"].last_layers[0].weight_v,
        load_file(teacher_file)["dino_head.last_layers.0.weight_v"],
    )
    batch = next(make_loader(config, load_dataset("digits", root="", split="train"), start_iteration=0))
    views = make_views(batch, device=CPU, every_patch=True)
    assert not views.masks.any()
    targets = model.make_targets([views], temperature=0.05)[0]
    losses = model(views, targets)
    teacher, student = model.frozen_teacher, model.student
    with torch.no_grad():
        patches = teacher["backbone"](views.global_crops).patches.flatten(0, 1)
        seen = student["backbone"](views.global_crops).patches.flatten(0, 1)
        levels = zip(teacher["ibot_head"](patches), student["ibot_head"](seen), strict=True)
        expected = 0.0
        for wanted, given in levels:
            target = sinkhorn(wanted, temperature=0.05, iterations=3)
            expected -= (target * (given / 0.1).log_softmax(1)).sum(1).mean().item()
    assert losses.logged["ibot_loss"].item() == pytest.approx(expected / 2, rel=1e-5)
    losses.optimized.backward()
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert student["backbone"].mask_token.grad is None or not student["backbone"].mask_token.grad.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masking": {"sample_probability": 0.5}}, "distillation masks no patches and drops no paths"),
        ({"model": {**RECIPE["model"], "drop_path": 0.1}}, "distillation masks no patches and drops no paths"),
    ],
)
def test_distillation_with_masks_or_dropped_paths_is_refused(changes: dict[str, Any], message: str) -> None:
    """A recipe of distillation says that it has neither."""
    recipe = make_recipe(**{**RECIPE, **DISTILLATION, **changes})
    with pytest.raises(ConfigError, match=message):
        check_config(make_train_config(recipe, **EXECUTION))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"patch_px": 8}, "teacher's, have 4"),
        ({"embed_dim": 20, "heads": 2}, r"shares of the teacher's width would be"),
    ],
)
def test_teacher_that_does_not_fit_is_refused(model: dict[str, Any], message: str) -> None:
    """Patches of another size, and nesting widths that are no whole shares of the teacher's."""
    frozen = {"row": "larger", "model": {**LARGER, **model}}
    with pytest.raises(ConfigError, match=message):
        SelfDistillation(
            make_recipe(**{**RECIPE, **DISTILLATION, "frozen_teacher": frozen, "heads": {"nesting": [3, 16]}})
        )


def test_missing_weights_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No path, no file, and a file without heads each say what is missing, with exit code 2."""
    make_run(tmp_path, recipe=DISTILLATION)
    assert main([str(tmp_path / "config.yaml")]) == 2
    assert "execution.teacher_weights: the recipe needs the weights of larger" in capsys.readouterr().err
    make_run(tmp_path, recipe=DISTILLATION, teacher_weights=str(tmp_path / "none.safetensors"))
    assert main([str(tmp_path / "config.yaml")]) == 2
    assert "none.safetensors: no such file" in capsys.readouterr().err
    backbone = make_networks(TEACHER_RECIPE)["backbone"]
    backbone.init_weights()
    save_file(backbone.state_dict(), tmp_path / "backbone.safetensors")
    make_run(tmp_path, recipe=DISTILLATION, teacher_weights=str(tmp_path / "backbone.safetensors"))
    assert main([str(tmp_path / "config.yaml")]) == 2
    assert "backbone.safetensors" in capsys.readouterr().err


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The networks of a short run, student and teacher, in one file."""
    folder = tmp_path_factory.mktemp("first")
    assert train(make_run(folder), folder=folder) == "finished"
    weights = {
        name.removeprefix("model."): tensor
        for name, tensor in read_weights(folder, done=12).items()
        if name.startswith(("model.student.", "model.teacher."))
    }
    save_file(weights, folder / "whole.safetensors")
    return folder / "whole.safetensors"


HIGHER = {"crops": {**RECIPE["crops"], "global_px": 24, "local_px": 12}, "start": "first-stage"}


def test_second_stage_begins_with_the_first_ones_networks(first_stage: Path) -> None:
    """Student from student, teacher from teacher, heads too; the positions are resampled to the larger grid."""
    config = make_train_config(make_recipe(**{**RECIPE, **HIGHER}), **EXECUTION, start_weights=str(first_stage))
    model = make_model(config, device=CPU, generator=torch.Generator().manual_seed(3))
    load_start(model, config=config)
    wanted = load_file(first_stage)
    for name, tensor in model.state_dict().items():
        expected = wanted[name]
        if name.endswith("pos_embed"):
            assert tensor.shape == (1, 37, 16)
            expected = interpolate_positions(expected, rows=6, columns=6, offset=0.1)
        assert torch.equal(tensor, expected), name


def test_second_stage_goes_on_as_if_it_had_not_stopped(first_stage: Path, tmp_path: Path) -> None:
    """Its optimizer starts fresh and is checkpointed: a stage in two launches equals one in one."""
    for name, stops in (("whole", (0,)), ("parts", (5, 0))):
        for stop in stops:
            config = make_run(tmp_path / name, recipe=HIGHER, start_weights=str(first_stage), until_iteration=stop)
            train(config, folder=tmp_path / name)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", done=12)
    steps = [value for name, value in read_weights(tmp_path / "whole", done=12).items() if name.endswith(".step")]
    assert {step.item() for step in steps} == {12.0}


def test_backbone_alone_starts_a_stage_with_random_heads(
    first_stage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Released weights hold no heads: both networks get the backbone, and the log says what is random."""
    prefix = "teacher.backbone."
    backbone = {n.removeprefix(prefix): t for n, t in load_file(first_stage).items() if n.startswith(prefix)}
    save_file(backbone, tmp_path / "released.safetensors")
    recipe = make_recipe(**{**RECIPE, "start": "released"})
    config = make_train_config(recipe, **EXECUTION, start_weights=str(tmp_path / "released.safetensors"))
    model = make_model(config, device=CPU, generator=torch.Generator().manual_seed(3))
    load_start(model, config=config)
    for network in (model.student, model.teacher):
        for name, tensor in network["backbone"].state_dict().items():
            assert torch.equal(tensor, backbone[name])
    assert "holds no dino_head: it starts from random values" in caplog.text


def test_configuration_of_a_stage_is_read_back() -> None:
    """A nested, optional part of the recipe survives its mapping."""
    recipe = make_recipe(**{**RECIPE, **DISTILLATION})
    assert make_config(type(recipe), to_mapping(recipe)) == recipe
    assert recipe.frozen_teacher is not None
    assert recipe.frozen_teacher.model.embed_dim == 32
