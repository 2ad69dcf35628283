"""Processes of one run: who they are, what they sum, how a model is spread over them. The only file that names
`torch.distributed` (beside `torch.distributed.checkpoint` in `train/checkpoint.py`).

In: the environment of torchrun, srun or submitit. Out: collectives that are the identity in a run of one process,
which makes no process group at all.
"""

import os
import random
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from franca.config import ConfigError, Execution

TIMEOUT = timedelta(minutes=30)  # a rank may wait for rank 0's evaluation; torch's default for NCCL is 10 minutes
BUCKET_VALUES = 2**24  # gradients are summed 64 MB at a time, as DDP does with 25: fewer, larger messages


@dataclass(frozen=True)
class Place:
    """One process among those of its run, and the address at which they meet."""

    rank: int
    local_rank: int
    world_size: int
    address: str
    port: int


def setup(execution: Execution) -> torch.device:
    """Join the run's processes and return this one's device. Raises `ConfigError` where they are not those asked for.

    Errors: a launch of another number of processes than `execution.processes`, no CUDA device where one is asked for.
    """
    if execution.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("execution.device: cuda, but torch finds no CUDA device here")
    place = parse_place(os.environ)
    found = place.world_size if place else 1
    if found != execution.processes:
        raise ConfigError(
            f"execution.processes: {execution.processes}, but this is one of {found}; start them together, as in "
            f"`torchrun --nproc-per-node {execution.processes} -m franca.train CONFIG`"
        )
    device = torch.device("cpu")
    if execution.device == "cuda":
        device = torch.device("cuda", place.local_rank if place else 0)
        torch.cuda.set_device(device)
    if place and place.world_size > 1:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        meeting = f"tcp://{place.address}:{place.port}"
        dist.init_process_group(
            backend, init_method=meeting, rank=place.rank, world_size=place.world_size, timeout=TIMEOUT
        )
    return device


def teardown() -> None:
    """Leave the run's processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def parse_place(environment: Mapping[str, str]) -> Place | None:
    """This process's place from torchrun's variables, else from those of srun, else from submitit's local executor.

    None where none of them started several processes: an `sbatch` script or `salloc` shell is one process.
    """
    for size, rank, local_rank in (
        ("WORLD_SIZE", "RANK", "LOCAL_RANK"),
        ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"),
        ("SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_LOCALID"),
    ):
        if int(environment.get(size, 1)) > 1:
            return Place(
                rank=int(environment[rank]),
                local_rank=int(environment[local_rank]),
                world_size=int(environment[size]),
                address=environment.get("MASTER_ADDR") or _first_host(environment),
                port=int(environment.get("MASTER_PORT") or _port(environment)),
            )
    return None


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of every process's `tensor`. No gradient flows through it."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def all_reduce_max(tensor: Tensor) -> Tensor:
    """The elementwise maximum of every process's `tensor`. No gradient flows through it."""
    if world_size() == 1:
        return tensor
    highest = tensor.detach().clone()
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return highest


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """The mean of every process's `tensor`. No gradient flows through it."""
    return tensor if world_size() == 1 else all_reduce_sum(tensor) / world_size()


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in any process. Travels between CPUs, so the device is not waited for."""
    if world_size() == 1:
        return flag
    return bool(all_reduce_sum(torch.tensor(int(flag))))


def shard(module: nn.Module) -> nn.Module:
    """Spread a freshly made model over the processes; in a run of one, the model itself.

    Every process keeps the whole model (data parallel) and takes rank 0's values.
    """
    if world_size() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)
    return module


def average_gradients(parameters: Iterable[nn.Parameter], *, dtype: torch.dtype = torch.float32) -> None:
    """Replace every gradient by its mean over the processes, added up in `dtype` (the recipe's reduce precision)."""
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        bucket.append(parameter.grad)
        if sum(gradient.numel() for gradient in bucket) >= BUCKET_VALUES:
            _average(bucket, dtype=dtype)
            bucket = []
    if bucket:
        _average(bucket, dtype=dtype)


def _average(gradients: list[Tensor], *, dtype: torch.dtype) -> None:
    """One message: divided first, so that a half-precision sum does not overflow."""
    flat = torch.cat([gradient.flatten().to(dtype) for gradient in gradients]) / world_size()
    dist.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)])


def _first_host(environment: Mapping[str, str]) -> str:
    """The first node of the SLURM step, where rank 0 runs; this machine outside SLURM."""
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if not nodes:
        return "127.0.0.1"
    command = ["scontrol", "show", "hostnames", nodes]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]


def _port(environment: Mapping[str, str]) -> int:
    """A port that every task of one job derives alike and two jobs on a node seldom share."""
    job = environment.get("SLURM_JOB_ID") or environment.get("SUBMITIT_LOCAL_JOB_ID") or "0"
    return random.Random(job).randint(20_000, 60_000)
