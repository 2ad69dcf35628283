"""A run's teacher is evaluated by the published protocol, and only what belongs to its configuration."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from recipes import make_recipe, make_train_config
from test_distributed import run_processes
from test_knn import naive_accuracies
from torch import Tensor

from franca.config import ConfigError, TrainConfig, dump_config
from franca.data.datasets import DataError, load_dataset
from franca.evaluate.features import FEW, center_view, extract_features
from franca.evaluate.probe_features import make_probe_encoder
from franca.evaluate.protocol import FewShot, encode_pixels, evaluate_knn, load_evaluation_sets, make_encoder
from franca.evaluate.teacher import FILE, load_newest_teacher, save_teacher
from franca.models.vit import VisionTransformer

CPU = torch.device("cpu")
DIGITS = load_dataset("digits", root="", split="test")
CONFIG = make_train_config(make_recipe(evaluation={"knn_k": [1, 10, 20]}))


@dataclasses.dataclass(frozen=True)
class Repeated:
    """The test digits, over and over."""

    name: str = "digits"
    class_names: tuple[str, ...] = ()
    fingerprint: str = ""

    def __len__(self) -> int:
        return FEW + 300

    def read(self, index: int) -> tuple[Image.Image, int]:
        return DIGITS.read(index % len(DIGITS))


def make_teacher(config: TrainConfig, *, seed: int = 0) -> VisionTransformer:
    model = VisionTransformer(config.recipe.model, grid=4)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def make_run(folder: Path, *, config: TrainConfig = CONFIG, trained_by: TrainConfig | None = None) -> Path:
    """A run folder after its evaluations at 50 and 100 iterations."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_config(config))
    for seed, index in enumerate((49, 99)):
        path = folder / "eval" / f"training_{index}" / FILE
        save_teacher(make_teacher(trained_by or config, seed=seed), path=path, config=trained_by or config)
    return folder


def make_imagenet(root: Path, *, broken: tuple[str, ...] = ()) -> TrainConfig:
    """A folder in ImageNet's layout whose two classes differ in color, and a configuration that evaluates on it."""
    generator = np.random.default_rng(0)
    for split, images in (("train", 6), ("val", 3)):
        for label in ("dark", "light"):
            (root / split / label).mkdir(parents=True)
            for number in range(images):
                pixels = generator.integers(0, 100, (30, 40, 3), dtype=np.uint8) + np.uint8(155 * (label == "light"))
                path = root / split / label / f"{number}.png"
                Image.fromarray(pixels).save(path)
                if f"{split}/{label}/{number}" in broken:
                    path.write_bytes(b"no image")
    recipe = make_recipe(
        data={"evaluation_dataset": "imagenet1k", "mean": [0.5] * 3},
        evaluation={"knn_k": [1, 3], "knn_temperature": 0.07},
    )
    return make_train_config(recipe, evaluation_root=str(root))


@given(st.integers(8, 60), st.integers(8, 60), st.integers(4, 20), st.integers(0, 6))
def test_center_view_is_the_resized_center(width: int, height: int, px: int, more: int) -> None:
    """The shorter side becomes `resize_px`, the aspect stays to the pixel, equal borders are cut off (within one)."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    resize_px = px + more
    view = center_view(image, px=px, resize_px=resize_px)
    scaled = (
        (resize_px, int(resize_px * height / width))
        if width <= height
        else (int(resize_px * width / height), resize_px)
    )
    whole = np.asarray(image.resize(scaled, Image.Resampling.BICUBIC))
    left, top = round((scaled[0] - px) / 2.0), round((scaled[1] - px) / 2.0)
    assert np.array_equal(view, whole[top : top + px, left : left + px])


def test_digits_are_evaluated_whole() -> None:
    """A digit is only resized to the size of a global crop: none of its strokes are cut off."""
    dataset = load_dataset("digits", root="", split="test")
    data = dataclasses.replace(CONFIG.recipe.data, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    found = extract_features(encode_pixels, dataset, data=data, px=16, workers=0, device=CPU)
    assert found.features.shape == (360, 3 * 16 * 16)
    for index in (0, 255, 256, 359):
        image, label = dataset.read(index)
        resized = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC), np.float32).transpose(2, 0, 1) / 255
        assert int(found.labels[index]) == label
        np.testing.assert_allclose(found.features[index].view(3, 16, 16), resized, atol=1e-6)


def test_imagenet_is_cropped_as_published(tmp_path: Path) -> None:
    """The shorter side is 256/224 of the crop: 18 pixels for one of 16."""
    config = make_imagenet(tmp_path)
    dataset = load_dataset("imagenet1k", root=str(tmp_path), split="test")
    found = extract_features(encode_pixels, dataset, data=config.recipe.data, px=16, workers=0, device=CPU)
    view = center_view(dataset.read(4)[0], px=16, resize_px=18)
    np.testing.assert_allclose(found.features[4].view(3, 16, 16), view.transpose(2, 0, 1) / 255 - 0.5, atol=1e-6)


def test_workers_do_not_change_the_features() -> None:
    """On a set that is large enough to start workers, one extracts the features that none does."""
    dataset = Repeated()
    options = {"data": CONFIG.recipe.data, "px": 16, "device": CPU}
    alone = extract_features(encode_pixels, dataset, workers=0, **options)
    helped = extract_features(encode_pixels, dataset, workers=1, **options)
    assert torch.equal(alone.features, helped.features)
    assert torch.equal(alone.labels, helped.labels)


def test_pixels_of_the_digits_are_classified_as_by_a_naive_vote() -> None:
    """The whole protocol on the baseline equals one written down without any of its parts."""
    found = evaluate_knn(encode_pixels, config=CONFIG, device=CPU)
    pixels, labels = {}, {}
    for split in ("train", "test"):
        dataset = load_dataset("digits", root="", split=split)
        images, labels[split] = zip(*(dataset.read(index) for index in range(len(dataset))), strict=True)
        resized = [np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC)).ravel() for image in images]
        pixels[split] = np.array(resized) / 255
    expected = naive_accuracies(
        pixels["train"], labels["train"], pixels["test"], labels["test"], k=(1, 10, 20), temperature=0.07
    )
    assert found.accuracies == expected
    assert (found.train_images, found.test_images, found.unreadable) == (1437, 360, ())


def shared_evaluation() -> tuple[dict[str, object], int]:
    """The evaluation of the pixels, and how often this process encoded."""
    calls = []

    def encode(images: Tensor) -> Tensor:
        calls.append(len(images))
        return encode_pixels(images)

    found = evaluate_knn(encode, config=CONFIG, device=CPU, few_shot=FewShot((1, 2), tries=2))
    return dataclasses.asdict(found), len(calls)


def test_two_processes_measure_what_one_measures(tmp_path: Path) -> None:
    """Each encodes a part of the images, all as often as the others, and the result is that of one process."""
    expected, calls = shared_evaluation()
    assert calls == 6 + 2  # batches of 256
    assert run_processes(shared_evaluation, processes=2, folder=tmp_path) == [(expected, 3 + 1)] * 2
    assert run_processes(shared_evaluation, processes=3, folder=tmp_path) == [(expected, 2 + 1)] * 3


def test_datasets_are_opened_once(tmp_path: Path) -> None:
    """The second evaluation of a run sees the files that the first one saw, and lists no folder again."""
    config = make_imagenet(tmp_path)
    first = load_evaluation_sets(config)
    (tmp_path / "val" / "dark" / "0.png").unlink()
    assert load_evaluation_sets(config)[1] is first[1]
    assert evaluate_knn(encode_pixels, config=config, device=CPU).test_images == 5


def test_encoder_gives_the_normalized_class_token() -> None:
    """Features are the teacher's class token after the final norm, with dropping of paths switched off."""
    model = make_teacher(CONFIG).train()
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = make_encoder(model, config=CONFIG, device=CPU)(images)
        assert not model.training
        assert torch.equal(features, model(images).cls)


def test_cpu_computes_in_float32_whatever_the_recipe_says() -> None:
    """Half precision is for GPUs: on a CPU training computes in float32, and so does every evaluation."""
    model, images = make_teacher(CONFIG), torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    half = make_train_config(make_recipe(precision={"backbone": "bf16"}))
    with torch.inference_mode():
        for make in (make_encoder, make_probe_encoder):
            found, expected = (make(model, config=config, device=CPU)(images) for config in (half, CONFIG))
            assert torch.equal(found, expected)


def test_unreadable_images_are_left_out_and_named(tmp_path: Path) -> None:
    """A broken image neither votes nor counts as a mistake; it is named in the result."""
    config = make_imagenet(tmp_path, broken=("train/dark/2", "val/light/0"))
    found = evaluate_knn(encode_pixels, config=config, device=CPU)
    assert (found.train_images, found.test_images) == (11, 5)
    assert found.accuracies == {1: 100.0, 3: 100.0}
    assert [Path(line.split(":")[0]).relative_to(tmp_path).as_posix() for line in found.unreadable] == [
        "train/dark/2.png",
        "val/light/0.png",
    ]


def test_set_without_a_readable_image_is_an_error(tmp_path: Path) -> None:
    """Where no test image can be read there is no accuracy, and one line says so."""
    config = make_imagenet(tmp_path, broken=tuple(f"val/{label}/{i}" for label in ("dark", "light") for i in range(3)))
    with pytest.raises(DataError, match="none of the 6 images of imagenet1k can be read"):
        evaluate_knn(encode_pixels, config=config, device=CPU)


def test_splits_with_different_classes_are_refused(tmp_path: Path) -> None:
    """Class numbers of the two splits must mean the same."""
    config = make_imagenet(tmp_path)
    (tmp_path / "val" / "dark").rename(tmp_path / "val" / "dusky")
    with pytest.raises(DataError, match="different classes"):
        evaluate_knn(encode_pixels, config=config, device=CPU)


def test_more_neighbors_than_images_are_refused(tmp_path: Path) -> None:
    """The configuration is named, not an index that is out of range."""
    config = make_imagenet(tmp_path)
    recipe = dataclasses.replace(
        config.recipe, evaluation=dataclasses.replace(config.recipe.evaluation, knn_k=(10, 20))
    )
    with pytest.raises(ConfigError, match=r"recipe\.evaluation\.knn_k: 20, but imagenet1k has 12 images"):
        evaluate_knn(encode_pixels, config=dataclasses.replace(config, recipe=recipe), device=CPU)


def test_newest_teacher_is_loaded_unchanged(tmp_path: Path) -> None:
    """Of several evaluations the last one's teacher is taken, with its weights to the bit and its file's hash."""
    teacher = load_newest_teacher(make_run(tmp_path), config=CONFIG)
    assert teacher.iterations == 100
    assert teacher.sha256 == hashlib.sha256((tmp_path / "eval" / "training_99" / FILE).read_bytes()).hexdigest()
    expected: dict[str, Tensor] = make_teacher(CONFIG, seed=1).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in teacher.model.state_dict().items())


def test_equal_teachers_make_equal_files(tmp_path: Path) -> None:
    """A teacher's file is a function of its weights and recipe, so that the hash of two equal runs is one."""
    contents = set()
    for number in range(8):
        save_teacher(make_teacher(CONFIG), path=tmp_path / str(number) / FILE, config=CONFIG)
        contents.add((tmp_path / str(number) / FILE).read_bytes())
    assert len(contents) == 1
