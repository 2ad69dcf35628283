"""`python -m franca.probe FOLDER`: one process of a job that tries a site, in; what it found, as `rank_N.json`, out.

The file is written before the processes meet and again after it, so that one which never comes is known by name.
"""

import argparse
import json
import os
import platform
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from franca.config import ConfigError, Execution
from franca.distributed import all_reduce_sum, barrier, parse_place, setup, teardown
from franca.evaluate.knn import replace_file

WRITE_BYTES = 64_000_000  # enough to be slow on a slow disk, little enough for a full one


def main(arguments: Sequence[str]) -> int:
    """Try what a run needs, and write it down; returns 0 where the processes met."""
    parser = argparse.ArgumentParser(prog="python -m franca.probe", description="try a site")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where every process writes what it found")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--data", nargs="*", default=[], metavar="FOLDER", help="folders that must be there")
    options = parser.parse_args(arguments)
    place = parse_place(os.environ)
    rank = place.rank if place else 0
    found: dict[str, Any] = {
        "rank": rank,
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "meeting": f"{place.address}:{place.port}" if place else None,
        "absent_data": [folder for folder in options.data if not Path(folder).is_dir()],
        "write_mb_s": measure_writing(options.folder / f"rank_{rank}.bytes"),
        "met": None,
    }
    path = options.folder / f"rank_{rank}.json"
    replace_file(path, json.dumps(found))
    try:
        found |= meet(options.device, processes=options.processes, folder=options.folder)
    except (ConfigError, OSError, RuntimeError) as error:
        found |= {"met": False, "error": f"{type(error).__name__}: {error}"}
    replace_file(path, json.dumps(found))
    return 0 if found["met"] else 1


def measure_writing(path: Path) -> float:
    """MB/s at which a file of 64 MB gets onto the disk; it is removed."""
    data = bytes(WRITE_BYTES)
    began = time.perf_counter()
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return len(data) / 1e6 / (time.perf_counter() - began)
    finally:
        path.unlink(missing_ok=True)


def meet(device: str, *, processes: int, folder: Path) -> dict[str, Any]:
    """Join the processes and add up a one of each; then see whose files are in the folder, and what the clock says."""
    execution = Execution(
        device="cuda" if device == "cuda" else "cpu",
        processes=processes,
        batch_per_process=1,
        accumulation=1,
        workers=0,
        threads=1,
        data_root="",
        evaluation_root="",
        checkpoint_period_iterations=0,
        checkpoints_kept=1,
        log_period_iterations=1,
        until_iteration=0,
    )
    began = time.perf_counter()
    place = setup(execution)
    try:
        total = int(all_reduce_sum(torch.ones((), device=place)))
        barrier()
        clock = time.time()
        seen = len(list(folder.glob("rank_*.json")))
        barrier()
        return {
            "met": total == processes,
            "meeting_s": time.perf_counter() - began,
            "clock": clock,
            "seen": seen,
            "error": None if total == processes else f"{processes} ones add up to {total}",
        }
    finally:
        teardown()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
