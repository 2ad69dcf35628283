"""Dense features come from the weights that are named, with their own normalization, or there is an error."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from recipes import RECIPE, make_recipe, make_train_config
from safetensors.torch import save_file
from test_evaluate import CONFIG, make_run, make_teacher
from test_rasa import make_head

from franca.config import ConfigError
from franca.evaluate.subject import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    choose_px,
    load_subject,
    make_device,
    make_patch_encoder,
    square_view,
)
from franca.evaluate.teacher import FILE, file_sha256
from franca.models.weights import WeightsError

CPU = torch.device("cpu")
DESCRIPTION = RECIPE["model"]


def make_weights(folder: Path, **changes: object) -> tuple[Path, Path]:
    """A weights file without a run, and the YAML of its model with some keys changed."""
    save_file(make_teacher(CONFIG).state_dict(), folder / "weights.safetensors")
    (folder / "model.yaml").write_text(yaml.safe_dump({**DESCRIPTION, **changes}))
    return folder / "weights.safetensors", folder / "model.yaml"


def test_run_folder_gives_its_newest_teacher(tmp_path: Path) -> None:
    """The last evaluation's teacher, with the run's own normalization, crops and the hash of its file."""
    subject = load_subject(make_run(tmp_path))
    assert subject.path == tmp_path / "eval" / "training_99" / FILE
    assert subject.sha256 == file_sha256(subject.path)
    assert (subject.mean, subject.std, subject.px) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 16)
    expected = make_teacher(CONFIG, seed=1).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in subject.model.state_dict().items())


def test_weights_file_is_what_its_description_says(tmp_path: Path) -> None:
    """The grid is read from the positions; images are normalized as every released model's."""
    weights, model = make_weights(tmp_path)
    subject = load_subject(weights, model=model)
    assert (subject.mean, subject.std, subject.px) == (IMAGENET_MEAN, IMAGENET_STD, 16)
    assert subject.model.model == make_recipe().model
    assert not subject.model.training


def test_weights_file_of_a_recipe_is_normalized_as_it_says(tmp_path: Path) -> None:
    """With the configuration of its recipe a weights file is seen as in its run; another recipe's is refused."""
    run, other = make_run(tmp_path / "run"), make_run(tmp_path / "other", config=make_train_config(make_recipe()))
    weights = run / "eval" / "training_49" / FILE
    subject = load_subject(weights, config=run / "config.yaml")
    assert (subject.mean, subject.std, subject.px) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 16)
    assert subject.sha256 == file_sha256(weights)
    with pytest.raises(WeightsError, match="was trained by recipe"):
        load_subject(weights, config=other / "config.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        load_subject(weights, config=tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"depth": 3}, "missing: blocks.2"),
        ({"embed_dim": 32}, "of another shape"),
        ({"registers": 1}, "register_tokens"),
    ],
)
def test_description_of_another_model_is_refused(changes: dict, said: str, tmp_path: Path) -> None:
    """Weights load whole or not at all; the message names both files."""
    weights, model = make_weights(tmp_path, **changes)
    with pytest.raises(WeightsError, match=re.escape(said)) as caught:
        load_subject(weights, model=model)
    assert str(weights) in str(caught.value)
    assert str(model) in str(caught.value)


def test_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    """A weights file without a description, with a wrong one, or without a backbone is told what it lacks."""
    weights, model = make_weights(tmp_path, dept=4)
    with pytest.raises(ConfigError, match="needs --config"):
        load_subject(weights)
    with pytest.raises(ConfigError, match=r"model\.yaml: unknown key dept \(did you mean depth"):
        load_subject(weights, model=model)
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        load_subject(weights, model=tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match=r"config\.yaml: no such file"):
        load_subject(tmp_path)
    save_file({"dino_head.weight": torch.ones(2)}, tmp_path / "head.safetensors")
    with pytest.raises(WeightsError, match="holds no backbone"):
        load_subject(tmp_path / "head.safetensors", model=model)


def test_encoder_normalizes_bytes(tmp_path: Path) -> None:
    """Patch tokens are the model's, of pixels in 0..1 less the mean and over the deviation, channels in front."""
    weights, model = make_weights(tmp_path)
    subject = load_subject(weights, model=model)
    images = torch.randint(256, (2, 16, 24, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    normalized = (images.numpy() / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    with torch.no_grad():
        expected = subject.model(torch.from_numpy(normalized.transpose(0, 3, 1, 2)).float()).patches
    torch.testing.assert_close(make_patch_encoder(subject, device=CPU)(images), expected, atol=1e-5, rtol=1e-4)


def test_encoder_takes_planes_out(tmp_path: Path) -> None:
    """With a head's file, tokens are those that the head leaves."""
    weights, model = make_weights(tmp_path)
    head = make_head(dim=DESCRIPTION["embed_dim"])
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    subject = load_subject(weights, model=model)
    images = torch.randint(256, (2, 16, 16, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    plain = make_patch_encoder(subject, device=CPU)(images)
    left = make_patch_encoder(subject, device=CPU, rasa=tmp_path / "head.safetensors")(images)
    torch.testing.assert_close(left, head(plain).detach(), atol=1e-5, rtol=1e-4)
    assert not left.requires_grad


def test_size_holds_whole_patches(tmp_path: Path) -> None:
    """The crops' size by default, any multiple of the patch if asked for, nothing else."""
    subject = load_subject(make_run(tmp_path))
    assert [choose_px(subject, px) for px in (None, 4, 48)] == [16, 4, 48]
    for px in (0, 3, 18, -4):
        with pytest.raises(ConfigError, match=f"--size: {px}"):
            choose_px(subject, px)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_device_that_is_not_here_is_named() -> None:
    """Asking for CUDA without one says what would work; asking for nothing takes what there is."""
    with pytest.raises(ConfigError, match="--device cpu"):
        make_device("cuda")
    assert make_device(None) == CPU


def test_square_view_shows_the_whole_image() -> None:
    """Nothing is cut off: each side of the square is a side of the image."""
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :30] = 200
    view = square_view(Image.fromarray(pixels), px=12)
    assert view.shape == (12, 12, 3)
    assert (view[:, :5] == 200).all()
    assert (view[:, 7:] == 0).all()


def test_subject_is_frozen(tmp_path: Path) -> None:
    """What was evaluated cannot be changed under its hash."""
    subject = load_subject(make_run(tmp_path))
    with pytest.raises(dataclasses.FrozenInstanceError):
        subject.sha256 = ""
