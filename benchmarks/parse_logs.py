"""How fast logs are parsed and in how much memory: `python benchmarks/parse_logs.py --megabytes 100 2000`.

Writes a log of each dialect and size, parses it in a process of its own, and prints CPU seconds, MB/s and that
process's peak of memory. Lines are a run's, one every ten iterations, as far as the size takes them: more than any
run has.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

STAMP = "I20260308 08:02:33 116690 dinov2 helpers.py:102] "
COLUMNS = ("lr", "wd", "mom", "last_layer_lr", "current_batch_size", "total_loss", "dino_local_crops_loss")
LOSSES = ("dino_global_crops_loss", "koleo_loss", "ibot_loss")


def text_line(place: int) -> str:
    meters = "  ".join(f"{name}: {(place % 997) / 100:.4f} ({(place % 991) / 100:.4f})" for name in COLUMNS + LOSSES)
    return (
        f"{STAMP}Training  [{10 * place}/900000000]  eta: 1 day, 2:03:04  {meters}  time: 0.4  data: 0.1  max mem: 8193"
    )


def json_line(place: int) -> str:
    columns = dict.fromkeys((*COLUMNS, *LOSSES), place % 997 / 101)
    return json.dumps({"iteration": 10 * place, "iter_time": 0.4, "data_time": 0.1, **columns})


def timm_line(place: int) -> str:
    epoch, batch = divmod(place * 50, 1_000_000)
    return (
        f"Train: {epoch} [{batch:>4d}/1000000 ({batch // 10000:>3d}%)]  Loss: {(place % 997) / 100:.3f} (6.93)  "
        f"Time: 0.696s, 1471.12/s  (0.696s, 1471.12/s)  LR: 1.000e-04  Data: 0.383 (0.383)"
    )


def noise_line(place: int) -> str:
    return "  key: value" if place % 3 else f"{STAMP}message {place}:"


LINES: dict[str, Callable[[int], str]] = {
    "dinov2-text": text_line,
    "dinov2-json": json_line,
    "timm-text": timm_line,
    "no iterations": noise_line,
}


def write_log(path: Path, *, line: Callable[[int], str], size: int) -> None:
    """Lines until `size` bytes are written; blocks of lines repeat but for their numbers."""
    with path.open("w") as file:
        written, place = 0, 0
        while written < size:
            written += file.write("".join(line(at) + "\n" for at in range(place, place + 1000)))
            place += 1000


def parse_once(path: Path) -> None:
    """Parse a log and print its record count, CPU seconds and the process's peak of memory in MB, as JSON."""
    from reproduce.lineage import make_lineage
    from reproduce.logs import parse_log

    start = time.process_time()
    parsed = parse_log(path)
    make_lineage(parsed.records, path=str(path))
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"dialect": parsed.dialect, "records": len(parsed.records), "seconds": seconds, "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--dialects", nargs="+", choices=list(LINES), default=list(LINES))
    parser.add_argument("--parse", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.parse:
        parse_once(options.parse)
        return
    print("| lines | size | records kept | CPU seconds | MB/s | peak memory |\n|---|---|---|---|---|---|")
    for name in options.dialects:
        for megabytes in options.megabytes:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "log"
                write_log(path, line=LINES[name], size=megabytes << 20)
                command = [sys.executable, __file__, "--parse", str(path)]
                answer = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(answer.stdout)
            speed = megabytes / found["seconds"]
            row = (name, f"{megabytes:,} MB", f"{found['records']:,}", f"{found['seconds']:.1f}", f"{speed:.0f}")
            print(f"| {' | '.join(row)} | {found['peak']:.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
