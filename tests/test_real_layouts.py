"""The trainer on small copies of the published data sets and on hostile ones: what it is fed, killed and resumed."""

import functools
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fabricated_data import WRITERS
from hostile_images import readable_images, unreadable_images, write_hostile_archives, write_hostile_files
from recipes import make_recipe, make_train_config

from franca.config import TrainConfig, dump_config
from franca.data.datasets import load_dataset
from franca.data.journal import build_index
from franca.data.layout import find_layout
from franca.data.loader import Batch, make_loader
from franca.train.loop import train

ROOT = Path(__file__).parents[1]
ITERATIONS, BATCH = 50, 12
HEAD = {"prototypes": 16, "hidden": 16, "bottleneck": 8, "layers": 2}


Stream = list[list[tuple[int, str]]]  # for each iteration, each image's index and digest


def make_config(name: str, root: Path, **execution: Any) -> TrainConfig:
    """A tiny run on a data set of this name, evaluated on the digits."""
    recipe = make_recipe(
        iterations=ITERATIONS,
        global_batch=BATCH,
        model={"embed_dim": 16, "depth": 1},
        heads={"dino": HEAD, "ibot": HEAD, "nesting": []},
        crops={"local_number": 2},
        data={"dataset": name, "images": 240, "classes": 5},
        optim={"warmup_iterations": 2, "freeze_last_layer_iterations": 1},
        evaluation={"period_iterations": ITERATIONS},
    )
    periods = {"checkpoint_period_iterations": 10, "log_period_iterations": 1}
    return make_train_config(recipe, data_root=str(root), **{**periods, **execution})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three data sets, indexed."""
    folder = tmp_path_factory.mktemp("data")
    for name, write in WRITERS.items():
        write(folder / name)
        build_index(find_layout(name, root=str(folder / name), split="train"), threads=2)
    return folder


def digest(batch: Batch) -> list[tuple[int, str]]:
    """Which images a batch shows, each with the SHA-256 of its crops and masks."""
    size = len(batch.indices)
    parts = [getattr(batch, name).unflatten(0, (-1, size)) for name in ("global_crops", "local_crops", "masks")]
    return [
        (index, hashlib.sha256(b"".join(part[:, place].numpy().tobytes() for part in parts)).hexdigest())
        for place, index in enumerate(batch.indices.tolist())
    ]


def read_stream(config: TrainConfig, *, start: int, end: int, processes: int = 1) -> Stream:
    """What the trainer is fed from iteration `start` to `end`, one process after another."""
    dataset = load_dataset(config.recipe.data.dataset, root=config.execution.data_root, split="train")
    seen = []
    for rank in range(processes):
        batches = make_loader(config, dataset, start_iteration=start, rank=rank, world_size=processes)
        seen.append([digest(batch) for batch in itertools.islice(batches, end - start)])
        batches.close()
    return [[image for part in parts for image in part] for parts in zip(*seen, strict=True)]


@functools.cache
def whole_stream(name: str, root: Path) -> Stream:
    return read_stream(make_config(name, root), start=0, end=ITERATIONS)


@pytest.mark.parametrize("name", WRITERS)
def test_samples_are_the_same_wherever_and_however_they_are_read(data: Path, name: str) -> None:
    """Taken up at any iteration with 0, 1 or 2 workers or in 2 processes, the stream goes on as the undisturbed one."""
    whole = whole_stream(name, data / name)
    assert {index for step in whole for index, _ in step} == set(range(len_of(name, data)))
    for start, workers in ((0, 1), (17, 2), (31, 0)):
        assert read_stream(make_config(name, data / name, workers=workers), start=start, end=40) == whole[start:40]
    halves = make_config(name, data / name, processes=2, batch_per_process=BATCH // 2, workers=1)
    shared = read_stream(halves, start=23, end=30, processes=2)
    assert shared == whole[23:30]


def len_of(name: str, data: Path) -> int:
    return len(load_dataset(name, root=str(data / name), split="train"))


def start_trainer(config: TrainConfig, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(dump_config(config))
    command = [sys.executable, "-W", "error", "-m", "franca.train", str(folder / "config.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def read_losses(folder: Path) -> dict[int, dict[str, float]]:
    """The raw losses by iteration; of an iteration that was repeated, the last."""
    path = folder / "training_metrics.json"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {line["iteration"]: {key: of for key, of in line.items() if key.startswith("raw_")} for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_killed_run_is_taken_up_with_other_workers(data: Path, tmp_path: Path, name: str) -> None:
    """kill -9 in the midst of an epoch, going on with other workers: all losses are those of an undisturbed run."""
    whole = tmp_path / "whole"
    whole.mkdir()
    assert train(make_config(name, data / name), folder=whole) == "finished"
    killed = tmp_path / "killed"
    process = start_trainer(make_config(name, data / name, workers=1), killed)
    while process.poll() is None and max(read_losses(killed), default=0) < 23:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "eval" / f"training_{ITERATIONS - 1}").exists()
    assert train(make_config(name, data / name, workers=2), folder=killed) == "finished"
    assert read_losses(killed) == read_losses(whole)
    environment = json.loads((killed / "environment.json").read_text())
    assert environment["data"]["manifest"]["dataset"] == name
    images = len_of(name, data)
    said = f"{name}: {images} images here, the recipe says 240" in (killed / "log.txt").read_text()
    assert said == (images != 240)


@pytest.mark.parametrize("name", ["folder", "laion600m"])
def test_hostile_images_are_named_and_replaced(tmp_path: Path, name: str) -> None:
    """Half the images broken: the run trains on, names each broken one once, and never shows one."""
    root = tmp_path / "data"
    if name == "folder":
        write_hostile_files(root)
    else:
        write_hostile_archives(root)
        build_index(find_layout(name, root=str(root), split="train"), threads=1)
    folder = tmp_path / "run"
    folder.mkdir()
    assert train(make_config(name, root), folder=folder) == "finished"
    named = (folder / "unreadable.txt").read_text().splitlines()
    broken = {key for key, (content, _) in unreadable_images().items() if content or name == "folder"}
    assert len(named) == len(broken)
    assert {of for of in broken for line in named if f"/{of}: " in line} == broken
    last = (folder / "training_metrics.json").read_text().splitlines()[-1]
    assert json.loads(last)["unreadable_images"] == len(broken)
    assert "images could not be read so far; their names are in unreadable.txt" in (folder / "log.txt").read_text()
    whole = whole_stream(name, root)
    dataset = load_dataset(name, root=str(root), split="train")
    shown = {index for step in whole for index, _ in step}
    for row in shown:
        dataset.read(row)
    assert len(shown) == len(dataset) - len(broken) >= len(readable_images())
    assert read_stream(make_config(name, root, workers=2), start=5, end=15) == whole[5:15]
    # Begun anew in the same folder, no name is written twice
    assert train(make_config(name, root, workers=1), folder=folder) == "finished"
    assert (folder / "unreadable.txt").read_text().splitlines() == named


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    """Where no image at all can be read the run ends with exit code 2 and the name of one."""
    (tmp_path / "data").mkdir()
    for number in range(9):
        (tmp_path / "data" / f"{number}.jpg").write_bytes(b"no image")
    folder = tmp_path / "run"
    process = start_trainer(make_config("folder", tmp_path / "data", workers=1), folder)
    assert process.wait(timeout=60) == 2
    assert json.loads((folder / "state.json").read_text())["error"]["message"].startswith(
        "100 images of folder in a row could not be read, the last: "
    )


@pytest.mark.slow
def test_two_processes_take_up_what_one_left(tmp_path: Path) -> None:
    """Gone on with by two processes, a run on half-broken images names those that each of them met, and no others."""
    root = tmp_path / "data"
    write_hostile_files(root)
    for name in ("whole", "shared"):
        (tmp_path / name).mkdir()
    train(make_config("folder", root), folder=tmp_path / "whole")
    shared = tmp_path / "shared"
    assert train(make_config("folder", root, until_iteration=2), folder=shared) == "paused"
    before = (shared / "unreadable.txt").read_text().splitlines()
    config = make_config("folder", root, processes=2, batch_per_process=BATCH // 2, workers=1)
    (shared / "config.yaml").write_text(dump_config(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "franca.train", str(shared / "config.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    named = (shared / "unreadable.txt").read_text().splitlines()
    assert len(before) < len(named) == len(set(named))
    assert sorted(named) == sorted((tmp_path / "whole" / "unreadable.txt").read_text().splitlines())
    losses, expected = read_losses(shared), read_losses(tmp_path / "whole")
    assert losses.keys() == expected.keys()
    for key in ("raw_dino_local_crops_loss", "raw_dino_global_crops_loss", "raw_ibot_loss"):
        assert losses[2][key] == pytest.approx(expected[2][key], rel=1e-4)  # KoLeo is the logarithm of tiny distances
