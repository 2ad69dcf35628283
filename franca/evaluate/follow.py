"""A run's teachers measured beside its training: a run folder in, `results_eval_*.json` beside each teacher out.

For runs whose `execution.evaluate` is "apart". It can be stopped and started again at any time: what is measured stays.
"""

import contextlib
import fcntl
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from franca.config import ConfigError, TrainConfig, load_config
from franca.evaluate.knn import write_knn_results
from franca.evaluate.measure import Wanted, measure, write_evaluation, write_knn
from franca.evaluate.protocol import describe_knn, evaluate_knn, make_encoder
from franca.evaluate.teacher import UNTRAINED, file_sha256, list_teachers, load_teacher
from franca.train.loop import INITIAL_WEIGHTS, derive_seed, deterministic
from franca.train.parallel import make_untrained
from franca.train.run_folder import read_state

LOG = logging.getLogger(__name__)
ENDED = ("finished", "paused")


def follow_run(folder: Path, *, wanted: Wanted, device: str | None, poll_s: float) -> int:
    """Measure every teacher that a run has written or writes, until the run has ended and none is left.

    Returns 0, or 1 where the run failed; an interrupted run is waited for. Raises as `measure_all`.
    """
    while True:
        state = read_state(folder).get("state")  # before the teachers: the last one is written before the run ends
        measure_all(folder, wanted=wanted, device=device)
        if state in ENDED:
            return 0
        if state == "failed":
            print(f"error: {folder}: the run has failed; start this again when it goes on", file=sys.stderr)
            return 1
        time.sleep(poll_s)


def measure_all(folder: Path, *, wanted: Wanted, device: str | None) -> None:
    """Measure the untrained network and every teacher that a run has written, but for what is measured already.

    The results lie where training in line puts them. Raises `ConfigError`, `DataError` and `WeightsError` on what
    cannot be measured.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; a run folder holds one")
    config = load_config(path)
    place = torch.device(device or config.execution.device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch finds no CUDA device here; --device cpu computes on the CPU")
    with alone(folder), deterministic(place, threads=config.execution.threads):
        if "knn" in wanted.protocols:
            measure_untrained(folder, config=config, wanted=wanted, device=place)
        while waiting := [file for file in list_teachers(folder).values() if not is_measured(file, wanted=wanted)]:
            measure_teacher(waiting[0], folder=folder, config=config, wanted=wanted, device=place)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process measures the teachers of this run."""
    with (folder / "evaluate.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def measure_untrained(folder: Path, *, config: TrainConfig, wanted: Wanted, device: torch.device) -> None:
    """k-NN of the network before its first iteration, unless it is there; its values are a function of the seed."""
    path = folder / "eval" / UNTRAINED / "results_eval_knn.json"
    if path.is_file():
        return
    generator = torch.Generator().manual_seed(derive_seed(config.seed, INITIAL_WEIGHTS))
    encode = make_encoder(make_untrained(config, generator=generator), config=config, device=device)
    result = evaluate_knn(encode, config=config, device=device, few_shot=wanted.few_shot)
    write_knn_results(path, result.accuracies, few_shot=result.few_shot)
    LOG.info("%s untrained: %s", folder.name, describe_knn(result.accuracies))


def measure_teacher(path: Path, *, folder: Path, config: TrainConfig, wanted: Wanted, device: torch.device) -> None:
    """Measure one teacher of a run; the results lie beside it, those of k-NN where training would have put them.

    Nothing is written of a teacher that the run has replaced meanwhile, having gone back to an older checkpoint.
    """
    teacher = load_teacher(path, folder=folder, config=config)
    content = measure(teacher, config=config, wanted=wanted, device=device, folder=path.parent, pixels=True)
    if file_sha256(path) != teacher.sha256:
        return
    write_evaluation(path.parent / "evaluation.json", content)
    if "knn" in content:
        write_knn(path.parent / "results_eval_knn.json", content)
    said = describe_knn(content["knn"]) if "knn" in content else ", ".join(wanted.protocols)
    LOG.info("%s after %d iterations: %s", folder.name, teacher.iterations, said)


def is_measured(path: Path, *, wanted: Wanted) -> bool:
    """Whether what is wanted of a teacher was measured; who writes another teacher there takes the results away."""
    result = path.with_name("evaluation.json")
    if not result.is_file():
        return False
    content = json.loads(result.read_text())
    whole = "knn" not in wanted.protocols or path.with_name("results_eval_knn.json").is_file()
    return whole and set(wanted.protocols) <= content.keys()
