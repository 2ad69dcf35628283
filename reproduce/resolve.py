"""A spec and a site in, a run that can be launched out: everything that is derived is computed here, once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from franca.config import TrainConfig
from reproduce.spec import Spec


@dataclass(frozen=True)
class Slurm:
    """What `sbatch` is told beyond nodes, tasks and GPUs. `setup` are shell lines that run before the trainer."""

    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    timeout_min: int
    signal_delay_s: int
    cpus_per_task: int
    mem_gb_per_node: int | None
    setup: tuple[str, ...]
    additional_parameters: Mapping[str, str | int | bool]


@dataclass(frozen=True)
class Site:
    """A machine or cluster. `device` auto is `cuda` for rows that document GPUs and `cpu` for the rest.

    gpus_per_node: None counts those that the driver lists. batch_per_gpu_max: images that fit in one GPU's memory;
    None trusts the row's documented batch. paths: the files that a user edits to change the site, most specific first.
    """

    name: str
    executor: Literal["local", "slurm"]
    device: Literal["auto", "cpu", "cuda"]
    nodes: int
    gpus_per_node: int | None
    batch_per_gpu_max: int | None
    workers: int
    threads: int
    data_roots: Mapping[str, str | None]
    slurm: Slurm | None
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Resolved:
    """One run, ready to launch: `nodes` of `tasks_per_node` processes each; `folder` is its run folder."""

    spec: Spec
    site: Site
    config: TrainConfig
    run: str
    folder: Path
    nodes: int
    tasks_per_node: int
    notes: tuple[str, ...]
