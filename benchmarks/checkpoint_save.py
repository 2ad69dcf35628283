"""How long a checkpoint holds the training up: `PYTHONPATH=tests python benchmarks/checkpoint_save.py --device cpu`.

One model with AdamW's moments, one process, saved in three ways in turn: as this project does, by torch's synchronous
save of the same format followed by the hashes that a manifest needs, and by torch's asynchronous one with its defaults.
Printed: how long the call holds the step up (the first one, and the median of the others), and until all is on disk.
"""

import argparse
import contextlib
import hashlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from recipes import make_recipe, make_train_config
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.optim import Optimizer

from franca.train.checkpoint import make_checkpoints
from franca.train.optim import make_optimizer

Save = Callable[[int], Callable[[], object]]
"""Saves under a number, and returns what waits until that is on disk."""


@contextlib.contextmanager
def save_here(model: nn.Module, optimizer: Optimizer, folder: Path) -> Iterator[Save]:
    config = make_train_config(make_recipe())
    with make_checkpoints(folder, config=config) as checkpoints:

        def save(number: int) -> Callable[[], object]:
            checkpoints.save(number, model=model, optimizer=optimizer, progress={})
            return checkpoints.wait

        yield save


@contextlib.contextmanager
def save_torch(model: nn.Module, optimizer: Optimizer, folder: Path) -> Iterator[Save]:
    def save(number: int) -> Callable[[], object]:
        path = folder / str(number)
        writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
        dcp.save(list_tensors(model, optimizer), storage_writer=writer, no_dist=True)
        for file in path.iterdir():
            with file.open("rb") as opened:
                hashlib.file_digest(opened, "sha256")
        return lambda: None

    yield save


@contextlib.contextmanager
def save_torch_async(model: nn.Module, optimizer: Optimizer, folder: Path) -> Iterator[Save]:
    def save(number: int) -> Callable[[], object]:
        writer = HuggingFaceStorageWriter(str(folder / str(number)), save_distributed=True)
        tensors = list_tensors(model, optimizer)
        return dcp.async_save(tensors, storage_writer=writer, no_dist=True).result

    yield save


WAYS = {"this project": save_here, "torch, synchronous": save_torch, "torch, asynchronous": save_torch_async}


def list_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    moments = {
        f"optimizer.{name}.{key}": tensor
        for name, parameter in model.named_parameters()
        for key, tensor in optimizer.state[parameter].items()
    }
    return {**{f"model.{name}": tensor for name, tensor in model.state_dict().items()}, **moments}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parameters", type=float, default=50e6)
    parser.add_argument("--saves", type=int, default=5)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    layers = max(1, round(options.parameters / 1024**2))
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(1024, 1024) for _ in range(layers))}).to(options.device)
    optimizer = make_optimizer(model, optim=make_recipe().optim)
    held = sum(tensor.nbytes for tensor in list_tensors(model, optimizer).values())
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count / 1e6:.0f} M parameters, {held / 1e6:.0f} MB with their moments, {options.device}")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
        ways = {
            name: stack.enter_context(way(model, optimizer, Path(folder) / name.replace(" ", "-")))
            for name, way in WAYS.items()
        }
        for number in range(1, options.saves + 1):
            for name, save in ways.items():
                _settle(options.device)
                began = time.perf_counter()
                wait = save(number)
                blocked_s = time.perf_counter() - began
                wait()
                times[name].append((blocked_s, time.perf_counter() - began))
    for name, pairs in times.items():
        blocked, whole = zip(*pairs, strict=True)
        later = statistics.median(blocked[1:])
        print(
            f"{name:20}  holds up {blocked[0] * 1e3:7.1f} ms, then {later * 1e3:7.1f} ms; "
            f"on disk after {statistics.median(whole) * 1e3:7.1f} ms"
        )


def _settle(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


if __name__ == "__main__":
    main()
