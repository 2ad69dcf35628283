"""A run's teachers measured beside its training: a run folder in, `results_eval_*.json` beside each teacher out.

For runs whose `execution.evaluate` is "apart". It can be stopped and started again at any time: what is measured stays.
"""

import json
import logging
import sys
import time
from pathlib import Path

import torch

from franca.config import ConfigError, load_config
from franca.evaluate.measure import Wanted, measure, write_evaluation, write_knn
from franca.evaluate.teacher import file_sha256, list_teachers, load_teacher
from franca.train.run_folder import read_state

LOG = logging.getLogger(__name__)
ENDED = ("finished", "paused")


def follow_run(folder: Path, *, wanted: Wanted, device: str | None, poll_s: float) -> int:
    """Measure every teacher that a run has written or writes, until the run has ended and none is left.

    Returns 0, or 1 where the run failed; an interrupted run is waited for. Raises `ConfigError`, `DataError` and
    `WeightsError` on what cannot be measured.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; a run folder holds one")
    config = load_config(path)
    name = device or config.execution.device
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch finds no CUDA device here; --device cpu computes on the CPU")
    if config.execution.threads:
        torch.set_num_threads(config.execution.threads)
    while True:
        state = read_state(folder).get("state")  # before the teachers: the last one is written before the run ends
        for teacher in list_teachers(folder).values():
            if not is_measured(teacher, wanted=wanted):
                measure_teacher(teacher, folder=folder, wanted=wanted, device=torch.device(name))
        if state in ENDED:
            return 0
        if state == "failed":
            print(f"error: {folder}: the run has failed; start this again when it goes on", file=sys.stderr)
            return 1
        time.sleep(poll_s)


def measure_teacher(path: Path, *, folder: Path, wanted: Wanted, device: torch.device) -> None:
    """Measure one teacher of a run; the results lie beside it, those of k-NN where training would have put them."""
    config = load_config(folder / "config.yaml")
    teacher = load_teacher(path, folder=folder, config=config)
    content = measure(teacher, config=config, wanted=wanted, device=device, folder=path.parent, pixels=False)
    write_evaluation(path.parent / "evaluation.json", content)
    if "knn" in content:
        write_knn(path.parent / "results_eval_knn.json", content)
    LOG.info("%s after %d iterations: %s", folder.name, teacher.iterations, json.dumps(content.get("knn")))


def is_measured(path: Path, *, wanted: Wanted) -> bool:
    """Whether what is wanted of a teacher was measured of the very file that lies there."""
    result = path.with_name("evaluation.json")
    if not result.is_file():
        return False
    content = json.loads(result.read_text())
    whole = "knn" not in wanted.protocols or path.with_name("results_eval_knn.json").is_file()
    return whole and set(wanted.protocols) <= content.keys() and content["checkpoint_sha256"] == file_sha256(path)
