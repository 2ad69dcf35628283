"""The stream of batches is a function of the seed and the iteration: not of workers, processes, steps or restarts."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from recipes import make_recipe, make_train_config

from franca.config import ConfigError, TrainConfig
from franca.data.augment import draw_views, multi_crop, normalize
from franca.data.datasets import DataError, Dataset, UnreadableImageError, load_dataset
from franca.data.loader import AUGMENTATION, MASKS, Batch, make_loader
from franca.data.order import ORDER, SHARDS, WINDOWS
from franca.laws import DRAWS

BATCH = 12
DIGITS = load_dataset("digits", root="", split="train")


@dataclasses.dataclass(frozen=True)
class Damaged:
    """Digits of which some cannot be read."""

    broken: frozenset[int]
    name: str = "damaged"
    class_names: tuple[str, ...] = ()
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(DIGITS)

    def read(self, index: int) -> tuple[Image.Image, int]:
        if index in self.broken:
            raise UnreadableImageError(f"digit {index}: broken")
        return DIGITS.read(index)


def make_config(*, seed: int = 0, quirks: dict[str, bool] | None = None, **execution: int) -> TrainConfig:
    recipe = make_recipe(global_batch=BATCH, quirks=quirks or {}, masking={"kind": "cyclic", "ratio": [0.1, 0.65]})
    return make_train_config(recipe, seed=seed, **execution)


def take(
    config: TrainConfig, number: int, *, start: int = 0, dataset: Dataset = DIGITS, rank: int = 0, world_size: int = 1
) -> list[Batch]:
    loader = make_loader(config, dataset, start_iteration=start, rank=rank, world_size=world_size)
    batches = list(itertools.islice(loader, number))
    loader.close()
    return batches


def assert_equal(batches: list[Batch], others: list[Batch], *, iterations: bool = True) -> None:
    for batch, other in zip(batches, others, strict=True):
        assert batch.iteration == other.iteration or not iterations
        assert batch.mask_bound == other.mask_bound
        assert batch.unreadable == other.unreadable
        for name in ("global_crops", "local_crops", "masks", "indices"):
            assert torch.equal(getattr(batch, name), getattr(other, name)), name


def by_image(crops: torch.Tensor, images: int) -> torch.Tensor:
    """Crop-major [crops x images, ...] as [images, crops, ...]."""
    return crops.unflatten(0, (-1, images)).transpose(0, 1)


def test_batch_holds_every_images_crops_crop_by_crop() -> None:
    """Row j of each crop is image j's: all first global crops, then all second ones; likewise the local ones."""
    config = make_config(seed=5)
    recipe = config.recipe
    batch = take(config, 3)[2]
    assert batch.iteration == 2
    assert batch.global_crops.shape == (2 * BATCH, 3, 16, 16)
    assert batch.local_crops.shape == (4 * BATCH, 3, 8, 8)
    assert batch.masks.shape == (2 * BATCH, 16)
    for position, index in enumerate(batch.indices.tolist()):
        expected_global, expected_local = multi_crop(
            DIGITS.read(index)[0],
            crops=recipe.crops,
            augment=recipe.augment,
            quirks=recipe.quirks,
            generator=np.random.default_rng([5, AUGMENTATION, 2 * BATCH + position]),
        )
        assert np.array_equal(by_image(batch.global_crops, BATCH)[position], np.stack(expected_global))
        assert np.array_equal(by_image(batch.local_crops, BATCH)[position], np.stack(expected_local))


def test_batch_tells_what_was_drawn_for_it() -> None:
    """The means over its images' views and over its masks, as the log names them."""
    config = make_config(seed=5)
    recipe, batch = config.recipe, take(config, 1)[0]
    draws = dict(zip(DRAWS, batch.draws, strict=True))
    views = [
        draw_views(
            (8, 8),
            crops=recipe.crops,
            augment=recipe.augment,
            quirks=recipe.quirks,
            generator=np.random.default_rng([5, AUGMENTATION, position]),
        )
        for position in range(BATCH)
    ]
    local = [view for image in views for view in image[2:]]
    areas = [(view.box[2] - view.box[0]) * (view.box[3] - view.box[1]) / 64 for view in local]
    assert draws["local_area"] == pytest.approx(np.mean(areas))
    assert draws["blurred_local"] == pytest.approx(np.mean([view.sigma is not None for view in local]))
    assert draws["solarized"] == pytest.approx(np.mean([image[1].solarize for image in views]))
    hues = [abs(dict(view.jitter).get("hue", 0.0)) for image in views for view in image]
    assert draws["hue"] == pytest.approx(np.mean(hues))
    assert draws["masked_crops"] == batch.masks.any(1).numpy().mean()
    assert draws["masked_patches"] == batch.masks.numpy().mean()


def test_crops_travel_as_bytes_and_are_normalized_on_the_device() -> None:
    """What `to` gives are the evaluation's normalized pixels, bit for bit; the batch itself holds a quarter of that."""
    recipe = make_recipe(global_batch=BATCH, data={"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]})
    (batch,) = take(make_train_config(recipe), 1)
    moved = batch.to(torch.device("cpu"))
    for name in ("global_crops", "local_crops"):
        crops, found = getattr(batch, name), getattr(moved, name)
        assert (crops.dtype, found.dtype) == (torch.uint8, torch.float32)
        assert found.is_contiguous()
        expected = np.stack([normalize(crop.permute(1, 2, 0).numpy(), data=recipe.data) for crop in crops])
        assert np.array_equal(found.numpy(), expected)


def test_masks_follow_the_recipe() -> None:
    """Half the global crops of a batch are masked, by shares spread over the recipe's range, other ones each time."""
    batches = take(make_config(), 20)
    for batch in batches:
        hidden = batch.masks.sum(1)
        assert int((hidden > 0).sum()) == BATCH
        assert (
            int(hidden.sum()) <= batch.mask_bound == sum(int(16 * x) for x in torch.linspace(0.1, 0.65, BATCH + 1)[1:])
        )
    assert len({batch.masks.numpy().tobytes() for batch in batches}) == 20


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_do_not_change_the_batches(workers: int) -> None:
    """Any number of workers gives the batches that none gives, in the same order."""
    dataset = Damaged(frozenset(range(0, 1437, 7)))
    alone = take(make_config(), 7, dataset=dataset)
    assert_equal(take(make_config(workers=workers), 7, dataset=dataset), alone)
    assert any(batch.unreadable for batch in alone)


@pytest.mark.parametrize("start", [1, 130])
def test_stream_continues_where_it_is_started(start: int) -> None:
    """A loader started at iteration n gives what an uninterrupted one gives from there on, across epochs too."""
    assert_equal(take(make_config(), 4, start=start), take(make_config(), start + 4)[start:])


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (1, 3), (2, 2), (3, 2)])
def test_processes_and_steps_partition_the_batch(world_size: int, accumulation: int) -> None:
    """The parts that processes and accumulation steps take make the batch of one process, image by image."""
    execution = {"batch_per_process": BATCH // world_size // accumulation, "accumulation": accumulation}
    config = make_config(processes=world_size, **execution)
    parts = [take(config, 3 * accumulation, rank=rank, world_size=world_size) for rank in range(world_size)]
    for iteration, whole in enumerate(take(make_config(), 3)):
        mine = [part for rank in parts for part in rank[iteration * accumulation : (iteration + 1) * accumulation]]
        assert {part.iteration for part in mine} == {iteration}
        assert sum(part.mask_bound for part in mine) == whole.mask_bound
        assert torch.equal(torch.cat([part.indices for part in mine]), whole.indices)
        for name in ("global_crops", "local_crops", "masks"):
            found = torch.cat([by_image(getattr(part, name), len(part.indices)) for part in mine])
            assert torch.equal(found, by_image(getattr(whole, name), BATCH)), name


def test_seed_changes_everything() -> None:
    """Two seeds share neither images nor crops nor masks."""
    (one,), (other,) = (take(make_config(seed=seed), 1) for seed in (1, 2))
    for name in ("global_crops", "local_crops", "masks", "indices"):
        assert not torch.equal(getattr(one, name), getattr(other, name))


def test_streams_of_random_numbers_do_not_meet() -> None:
    """No augmentation shares its seed with masks or an epoch's order, although numpy pads seeds with zeros."""
    states = {
        np.random.SeedSequence([3, stream, number]).generate_state(2, np.uint64).tobytes()
        for stream in (AUGMENTATION, MASKS, ORDER, SHARDS, WINDOWS)
        for number in range(50)
    }
    assert len(states) == 250


def test_replay_starts_the_data_again_on_resume() -> None:
    """The quirk gives a resumed run the first batches again, under its own iteration numbers."""
    config = make_config(quirks={"data_replayed_on_resume": True})
    resumed = take(config, 3, start=40)
    assert [batch.iteration for batch in resumed] == [40, 41, 42]
    assert_equal(resumed, take(config, 3), iterations=False)
    assert_equal(take(config, 3), take(make_config(), 3))


def test_unreadable_image_is_replaced_and_reported() -> None:
    """A broken image gives way to another, drawn by the sample's own generator; the others of its batch stay."""
    whole = take(make_config(), 8)
    broken = frozenset(int(batch.indices[3]) for batch in whole)
    damaged = take(make_config(), 8, dataset=Damaged(broken))
    for iteration, (batch, intact) in enumerate(zip(damaged, whole, strict=True)):
        generator = np.random.default_rng([0, AUGMENTATION, iteration * BATCH + 3])
        drawn = itertools.dropwhile(lambda index: index in broken, iter(lambda g=generator: g.integers(1437), None))
        assert int(batch.indices[3]) == next(drawn)
        assert f"digit {int(intact.indices[3])}: broken" in batch.unreadable
        others = [position for position in range(BATCH) if position != 3]
        assert torch.equal(batch.indices[others], intact.indices[others])
        assert torch.equal(by_image(batch.global_crops, BATCH)[others], by_image(intact.global_crops, BATCH)[others])


@pytest.mark.parametrize("workers", [0, 1])
def test_dataset_of_broken_images_is_an_error(workers: int) -> None:
    """Where nothing can be read the run ends with one line that names the dataset and an image."""
    with pytest.raises(
        DataError, match=r"^100 images of damaged in a row could not be read, the last: digit \d+: broken"
    ):
        take(make_config(workers=workers), 1, dataset=Damaged(frozenset(range(len(DIGITS)))))


def test_parts_that_do_not_make_the_batch_are_refused() -> None:
    """Processes x images x steps must be the recipe's global batch."""
    config = make_config(batch_per_process=5)
    with pytest.raises(ConfigError, match=r"recipe\.global_batch: 12, but 2 processes x 5 images x 1 .* make 10"):
        make_loader(config, DIGITS, start_iteration=0, world_size=2)


def test_batch_moves_to_a_device() -> None:
    """Crops and masks move, what only the log needs stays."""
    (batch,) = take(make_config(), 1)
    moved = batch.to(torch.device("meta"))
    assert {moved.global_crops.device.type, moved.local_crops.device.type, moved.masks.device.type} == {"meta"}
    assert torch.equal(moved.indices, batch.indices)
