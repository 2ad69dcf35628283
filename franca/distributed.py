"""Processes of one run: who they are, what they sum, how a module is spread over them. The only file that names
`torch.distributed` (beside `torch.distributed.checkpoint` in `train/checkpoint.py`).

In: the environment of torchrun, srun or submitit. Out: collectives that are the identity in a run of one process,
which makes no process group at all; modules held in shards (FSDP2) or whole (DDP); whole tensors of either.
"""

import contextlib
import os
import random
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from franca.config import ConfigError, Execution

PORTS = 10_000, 32_767  # below those that Linux gives to connections (ip_local_port_range)
TIMEOUT = timedelta(minutes=30)  # a rank may wait for rank 0's evaluation; torch's default for NCCL is 10 minutes
DDP_HOOKS = {torch.bfloat16: default_hooks.bf16_compress_hook, torch.float16: default_hooks.fp16_compress_hook}


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
            f"execution.processes: {execution.processes}, but this is one of {found}; start as many, as in `torchrun "
            f"--nproc-per-node {execution.processes} -m franca.train CONFIG`, or share the batch among {found}: set "
            f"processes, batch_per_process and accumulation there, as a site's processes_per_node does at a launch"
        )
    device = torch.device("cpu")
    if execution.device == "cuda":
        number = place.local_rank if place else 0
        if number >= torch.cuda.device_count():
            raise ConfigError(
                f"{number + 1} processes on this node, but torch finds {torch.cuda.device_count()} devices"
            )
        device = torch.device("cuda", number)
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


def all_gather_rows(rows: Shaped[Tensor, "_ *n"]) -> Shaped[Tensor, "_ *n"]:
    """The rows of every process one below the other, in the order of their ranks; each may have another number."""
    if world_size() == 1:
        return rows
    counts: list[int] = [0] * world_size()
    dist.all_gather_object(counts, len(rows))
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def all_gather_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """The texts of every process one after another, in the order of their ranks."""
    if world_size() == 1:
        return tuple(texts)
    parts: list[tuple[str, ...]] = [()] * world_size()
    dist.all_gather_object(parts, tuple(texts))
    return tuple(text for part in parts for text in part)


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


def all_processes(flag: Bool[Tensor, ""]) -> Bool[Tensor, ""]:
    """Whether `flag` is set in every process. On its device: nothing waits for the answer."""
    return all_reduce_max(flag.logical_not().int()) == 0


def all_gather(tensor: Float[Tensor, "*n"]) -> Float[Tensor, "w *n"]:
    """Every process's `tensor`, in the order of their ranks. No gradient flows through it."""
    if world_size() == 1:
        return tensor.detach().unsqueeze(0)
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.stack(parts)


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in any process. Travels between CPUs, so the device is not waited for."""
    if world_size() == 1:
        return flag
    return bool(all_reduce_sum(torch.tensor(int(flag))))


class Vote:
    """Whether any process has raised a flag, known to all at the same call and, with several, one call later.

    The answer travels between CPUs while the step after it runs: neither device nor process waits for it.
    """

    def __init__(self) -> None:
        self.sent: tuple[dist.Work, Tensor] | None = None

    def cast(self, flag: bool) -> bool:
        """Send this call's flag; the answer to the last one, or to this one in a run of one process."""
        if world_size() == 1:
            return flag
        answer = self.take()
        flags = torch.tensor(int(flag))
        self.sent = dist.all_reduce(flags, async_op=True), flags
        return answer

    def take(self) -> bool:
        """The answer that is still on its way; False without one."""
        if self.sent is None:
            return False
        work, flags = self.sent
        self.sent = None
        work.wait()
        return bool(flags)


def make_mesh(device: torch.device, *, shard_processes: int) -> DeviceMesh:
    """All processes in a row, or rows of `shard_processes`, each of which holds one whole model (HSDP).

    Raises `ConfigError` where the rows do not come out even.
    """
    size = shard_processes or world_size()
    if world_size() % size:
        raise ConfigError(f"execution.shard_processes: {size} does not divide execution.processes, {world_size()}")
    if size == world_size():
        return init_device_mesh(device.type, (size,))
    return init_device_mesh(device.type, (world_size() // size, size), mesh_dim_names=("replicate", "shard"))


def shard(
    module: nn.Module,
    *,
    mesh: DeviceMesh,
    compute: torch.dtype | None = None,
    reduce: torch.dtype | None = None,
    methods: tuple[str, ...] = (),
) -> None:
    """Spread a module's parameters over a mesh, apart from those of submodules that are spread already (FSDP2).

    It computes in `compute`, to which its parameters and floating inputs are cast, and its gradients are averaged in
    `reduce`; None is the parameters' own dtype. `methods` beside `forward` may be called. Parameters are gathered for
    a call and let go after it.
    """
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=reduce)
    fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for method in methods:
        register_fsdp_forward_method(module, method)


def replicate(module: nn.Module, *, reduce: torch.dtype) -> DistributedDataParallel:
    """A module that every process holds whole, as a wrapper that averages its gradients in `reduce` (DDP)."""
    wrapper = DistributedDataParallel(module, gradient_as_bucket_view=True)
    if reduce in DDP_HOOKS:
        wrapper.register_comm_hook(None, DDP_HOOKS[reduce])
    return wrapper


@contextlib.contextmanager
def gradient_averaging(module: nn.Module, *, enabled: bool) -> Iterator[None]:
    """Whether the backward passes in this block average gradients over the processes, or only add them up."""
    if isinstance(module, DistributedDataParallel) and not enabled:
        with module.no_sync():
            yield
        return
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_requires_gradient_sync(enabled, recurse=False)
    yield


@torch.no_grad()
def fill(parameter: Tensor, init: Callable[..., object], **options: Any) -> None:
    """Give a tensor, held whole or in shards, the values that `init(tensor, **options)` gives a whole one on the CPU.

    So the first values do not depend on the device nor on how many processes share them.
    """
    whole = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
    init(whole, **options)
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        whole = distribute_tensor(whole.to(parameter.device), mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(whole)


def fill_all(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give every tensor of a module's state, held whole or in shards, its whole value by name."""
    for name, tensor in module.state_dict(keep_vars=True).items():
        fill(tensor, _copy, values=values[name])


@torch.no_grad()
def whole_state(module: nn.Module, *, kept: bool = True) -> dict[str, Tensor]:
    """A module's state, whole and on the CPU, gathered one tensor after another; nothing where it is not `kept`.

    All processes must ask for it together, whether or not they keep it.
    """
    gathered = ((name, whole(tensor)) for name, tensor in module.state_dict().items())
    return {name: tensor.detach().cpu() for name, tensor in gathered if kept}


def whole(tensor: Tensor) -> Tensor:
    """A tensor as it is without its shards. All processes must ask for it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def make_cpu_group() -> dist.ProcessGroup | None:
    """A group of all processes of its own, for collectives of a thread beside the step's. None in a run of one."""
    return dist.new_group(backend="gloo", timeout=TIMEOUT) if world_size() > 1 else None


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its shard, or all of one that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _copy(tensor: Tensor, *, values: Tensor) -> None:
    tensor.copy_(values)


def _first_host(environment: Mapping[str, str]) -> str:
    """The first node of the SLURM step, where rank 0 runs; this machine outside SLURM."""
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if not nodes:
        return "127.0.0.1"
    command = ["scontrol", "show", "hostnames", nodes]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]


def _port(environment: Mapping[str, str]) -> int:
    """A port that every task of one start of a job derives alike and two jobs on a node seldom share."""
    job = environment.get("SLURM_JOB_ID") or environment.get("SUBMITIT_LOCAL_JOB_ID") or "0"
    return random.Random(f"{job}.{environment.get('SLURM_RESTART_COUNT', 0)}").randint(*PORTS)
