"""Collectives over two processes on the CPU, their identity in one, and who starts how many."""

import dataclasses
import functools
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import make_recipe, make_train_config
from torch import nn

from franca import distributed
from franca.config import ConfigError, Execution
from franca.distributed import parse_place

EXECUTION = make_train_config(make_recipe()).execution


def run_processes(function: Callable[[], Any], *, processes: int, folder: Path) -> list[Any]:
    """What `function` returns in each of several processes that met through torchrun's variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked from a server that has imported torch once: each process would take two seconds for it
    torch.multiprocessing.set_forkserver_preload(["franca.train.loop", "pytest"])
    start = functools.partial(torch.multiprocessing.start_processes, start_method="forkserver")
    start(_process, args=(function, processes, port, folder), nprocs=processes)
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]


def _process(rank: int, function: Callable[[], Any], processes: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()})
    distributed.setup(dataclasses.replace(EXECUTION, processes=processes))
    result = function()
    distributed.teardown()
    torch.save(result, folder / f"{rank}.pt")


def collectives() -> dict[str, Any]:
    """Every collective on values that differ by rank."""
    rank = distributed.rank()
    tensor = torch.tensor([1.0 + rank, 10.0])
    distributed.barrier()
    return {
        "world_size": distributed.world_size(),
        "sum": distributed.all_reduce_sum(tensor),
        "mean": distributed.all_reduce_mean(tensor),
        "max": distributed.all_reduce_max(tensor),
        "unchanged": tensor,
        "any": distributed.any_process(rank == 1),
        "none": distributed.any_process(False),
        "rows": distributed.all_gather_rows(torch.full((1 + 2 * rank, 2), float(rank))),
        "texts": distributed.all_gather_texts([f"{rank}.{i}" for i in range(2 - rank)]),
    }


def test_collectives_over_two_processes(tmp_path: Path) -> None:
    """Sums, means and flags are those of both processes, the inputs stay as they were."""
    for rank, result in enumerate(run_processes(collectives, processes=2, folder=tmp_path)):
        assert result["world_size"] == 2
        assert result["sum"].tolist() == [3.0, 20.0]
        assert result["mean"].tolist() == [1.5, 10.0]
        assert result["max"].tolist() == [2.0, 10.0]
        assert result["unchanged"].tolist() == [1.0 + rank, 10.0]
        assert result["any"] is True
        assert result["none"] is False
        assert result["rows"].tolist() == [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
        assert result["texts"] == ("0.0", "0.1", "1.0")


def test_collectives_are_the_identity_in_one_process() -> None:
    """One process has no group, and gets its own values back."""
    tensor = torch.ones(2)
    assert distributed.setup(EXECUTION) == torch.device("cpu")
    assert not torch.distributed.is_initialized()
    assert distributed.all_reduce_sum(tensor) is tensor
    assert distributed.all_reduce_mean(tensor) is tensor
    assert distributed.all_reduce_max(tensor) is tensor
    assert distributed.any_process(True) is True
    assert distributed.all_gather_rows(tensor) is tensor
    assert distributed.all_gather_texts(["a"]) == ("a",)
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.all_gather(tensor).tolist() == [[1.0, 1.0]]
    assert distributed.all_processes(torch.tensor(True)).item() is True
    assert distributed.Vote().cast(True) is True


@pytest.mark.parametrize("world", [2, 4])
def test_a_vote_is_known_to_all_one_call_later(world: int, tmp_path: Path) -> None:
    """One process raises its flag at the third call: every process hears of it at the fourth."""
    answers = run_processes(vote, processes=world, folder=tmp_path)
    assert answers == [[False, False, False, True, False, False]] * world


def vote() -> list[bool]:
    ballot = distributed.Vote()
    return [*(ballot.cast(distributed.rank() == 1 and call == 2) for call in range(5)), ballot.take()]


def spread_linear() -> dict[str, Any]:
    """A layer of three rows in uneven shards: filled, read back, and stepped on this process's rows of a batch."""
    mesh = distributed.make_mesh(torch.device("cpu"), shard_processes=0)
    with torch.device("meta"):
        layer = nn.Linear(4, 3)
    distributed.shard(layer, mesh=mesh)
    layer.to_empty(device="cpu")
    distributed.fill_all(layer, {"weight": WEIGHT, "bias": BIAS})
    rows = ROWS.chunk(distributed.world_size())[distributed.rank()]
    for part in range(2):
        with distributed.gradient_averaging(layer, enabled=part == 1):
            layer(rows).square().mean().backward()
    return {
        "state": distributed.whole_state(layer),
        "held": distributed.local_part(layer.weight).numel(),
        "gradient": distributed.whole(layer.weight.grad),
    }


WEIGHT, BIAS = torch.arange(12.0).view(3, 4) / 10, torch.ones(3)
ROWS = torch.linspace(-1, 1, 32).view(8, 4)


def test_shards_hold_a_module_together(tmp_path: Path) -> None:
    """No process holds the whole weight, all see the same whole, and gradients of two passes are those of the batch."""
    whole = nn.Linear(4, 3)
    distributed.fill_all(whole, {"weight": WEIGHT, "bias": BIAS})
    (2 * whole(ROWS).square().mean()).backward()
    results = run_processes(spread_linear, processes=2, folder=tmp_path)
    assert sorted(result["held"] for result in results) == [4, 8]
    for result in results:
        assert torch.equal(result["state"]["weight"], WEIGHT)
        assert torch.equal(result["state"]["bias"], BIAS)
        torch.testing.assert_close(result["gradient"], whole.weight.grad)


def mixed_precision() -> dict[str, Any]:
    """A sharded layer that computes and reduces in bfloat16: what its parameters, output and gradient are made of."""
    mesh = distributed.make_mesh(torch.device("cpu"), shard_processes=0)
    layer = nn.Linear(4, 3)
    distributed.fill_all(layer, {"weight": WEIGHT, "bias": BIAS})
    distributed.shard(layer, mesh=mesh, compute=torch.bfloat16, reduce=torch.bfloat16)
    output = layer(ROWS.chunk(distributed.world_size())[distributed.rank()])
    output.square().mean().backward()
    gradient = distributed.whole(layer.weight.grad)
    return {"output": output.dtype, "weight": layer.weight.dtype, "gradient": gradient}


def test_shards_compute_in_half_precision_and_learn_in_single(tmp_path: Path) -> None:
    """Output in bfloat16, weights and gradients in float32; the gradient is the batch's, to bfloat16's rounding."""
    whole = nn.Linear(4, 3)
    distributed.fill_all(whole, {"weight": WEIGHT, "bias": BIAS})
    whole(ROWS).square().mean().backward()
    for result in run_processes(mixed_precision, processes=2, folder=tmp_path):
        assert (result["output"], result["weight"]) == (torch.bfloat16, torch.float32)
        assert result["gradient"].dtype == torch.float32
        torch.testing.assert_close(result["gradient"], whole.weight.grad, rtol=0.02, atol=0.01)
        assert not torch.equal(result["gradient"], whole.weight.grad)


def uneven_rows() -> str:
    try:
        distributed.make_mesh(torch.device("cpu"), shard_processes=3)
    except ConfigError as error:
        return str(error)
    return ""


def test_shards_that_do_not_come_out_even_are_refused(tmp_path: Path) -> None:
    """Two processes cannot make groups of three."""
    for message in run_processes(uneven_rows, processes=2, folder=tmp_path):
        assert "execution.shard_processes: 3 does not divide execution.processes, 2" in message


def test_place_is_read_from_each_launcher() -> None:
    """torchrun's variables come first, then those of srun's step, then those of submitit on one machine."""
    torchrun = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node7", "MASTER_PORT": "1234"}
    assert parse_place(torchrun) == distributed.Place(3, 1, 4, "node7", 1234)
    step = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "MASTER_ADDR": "node0"}
    place = parse_place({**step, "SLURM_JOB_ID": "77"})
    assert place is not None
    assert (place.rank, place.local_rank, place.world_size, place.address) == (9, 1, 16, "node0")
    assert place == parse_place({**step, "SLURM_JOB_ID": "77"})
    assert place.port != parse_place({**step, "SLURM_JOB_ID": "78"}).port
    assert place.port != parse_place({**step, "SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "1"}).port
    assert place.port < 32_768  # where Linux begins to give ports to connections
    local = {"SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_LOCALID": "1"}
    assert parse_place({**local, "SUBMITIT_LOCAL_JOB_ID": "5"}).address == "127.0.0.1"


def test_one_process_in_an_allocation_of_many_is_one_process() -> None:
    """An `sbatch` script sees its job's tasks, but is one process: no group is joined."""
    assert parse_place({"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "WORLD_SIZE": "1"}) is None


def test_wrong_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of two that is started alone, and a run of one that is started twice, say how to start."""
    with pytest.raises(ConfigError, match=r"execution\.processes: 2, but this is one of 1"):
        distributed.setup(dataclasses.replace(EXECUTION, processes=2))
    for key, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ConfigError, match=r"execution\.processes: 1, but this is one of 2"):
        distributed.setup(EXECUTION)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_missing_cuda_device_is_named() -> None:
    """A run on CUDA says at once that there is none."""
    execution: Execution = dataclasses.replace(EXECUTION, device="cuda")
    with pytest.raises(ConfigError, match="no CUDA device"):
        distributed.setup(execution)
