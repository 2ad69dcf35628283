"""A run of the digits row that is small enough to be trained in a test, resolved for this machine."""

import dataclasses
import stat
from functools import cache
from pathlib import Path
from typing import Any

from recipes import make_recipe, make_train_config

from reproduce.resolve import Resolved, Site
from reproduce.spec import Spec, load_spec

ROOT = Path(__file__).parents[1]
LOCAL = Site(
    name="local",
    executor="local",
    device="cpu",
    nodes=1,
    gpus_per_node=0,
    processes_per_node=None,
    batch_per_gpu_max=None,
    workers=0,
    threads=1,
    data_roots={},
    parallel="fsdp",
    attention="auto",
    compile=False,
    activation_checkpointing=False,
    weights={},
    slurm=None,
    paths=(),
)

IMAGE = "/images/franca 1.sif"
RUNTIME = """#!/bin/sh
printf '%s\\n' "$@" >> "$0.called"
shift
while [ "$1" = --nv ] || [ "$1" = --bind ]; do
    [ "$1" = --bind ] && shift
    shift
done
[ "$1" = "{image}" ] || exit 9
shift
exec "$@"
"""


@cache
def digits() -> Spec:
    return load_spec("digits", root=ROOT)


def make_resolved(folder: Path, *, seed: int = 0, recipe: dict[str, Any] | None = None, **execution: Any) -> Resolved:
    """A run in `folder` of the tests' small recipe with some of its keys replaced; it trains in seconds."""
    small = {"iterations": 40, "global_batch": 8, "evaluation": {"period_iterations": 20}, **(recipe or {})}
    period = {"checkpoint_period_iterations": 20, "log_period_iterations": 5}
    config = make_train_config(make_recipe(**small), seed=seed, **{**period, **execution})
    spec = dataclasses.replace(digits(), recipe=config.recipe, fingerprint=config.fingerprint, seed=seed)
    return Resolved(
        spec=spec, site=LOCAL, config=config, run="main", folder=folder, nodes=1, tasks_per_node=1, notes=()
    )


def make_runtime(folder: Path) -> Path:
    """A program that takes apptainer's words, writes them into `apptainer.called`, and runs the command right here."""
    path = folder / "apptainer"
    folder.mkdir()
    path.write_text(RUNTIME.format(image=IMAGE))
    path.chmod(stat.S_IRWXU)
    return path
