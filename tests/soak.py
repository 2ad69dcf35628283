"""`make soak`: the real trainer killed again and again at random moments; what is left must be an undisturbed run's.

In: a number of kills and a seed. Out: a table with a line for every kill, and what was wrong, of which there must be
nothing: the last checkpoint and the losses of every iteration equal those of a run that was left alone bit for bit, a
launch goes on from the newest checkpoint, none was torn, and a kill costs at most what came after the last whole one.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes import make_recipe, make_train_config

from franca.config import dump_config
from franca.train.checkpoint import list_checkpoints, read_manifest

ROOT = Path(__file__).parents[1]
HEAD = {"prototypes": 16, "hidden": 16, "bottleneck": 8, "layers": 2}
PERIOD = 5  # iterations from one checkpoint to the next
STRIDE = 12  # iterations from one kill to the next, on the average
DEADLINE_S = 300.0
METRICS = "training_metrics.json"
GRACEFUL = (signal.SIGTERM, signal.SIGUSR2)


@dataclass(frozen=True)
class Kill:
    """One planned end of a launch, by `number`: at a moment of its start, amid its steps, or amid a checkpoint.

    Amid steps and checkpoints it waits for `iteration` to be logged, and then, or at the start at once, for `delay_s`.
    """

    number: signal.Signals
    moment: str
    iteration: int
    delay_s: float


@dataclass(frozen=True)
class Death:
    """What a kill left: iterations that were logged, those in the newest whole checkpoint, and whether it tore one."""

    kill: Kill
    exit_code: int
    resumed: int
    logged: int
    kept: int
    torn: bool


def plan_kills(number: int, *, seed: int) -> list[Kill]:
    """The kills of a seed, by rising iteration: four of five are SIGKILL, the others ask to stop."""
    draw = random.Random(seed)
    iterations = sorted(draw.randrange(number * STRIDE) for _ in range(number))
    kills = []
    for iteration in iterations:
        moment = draw.choices(("start", "steps", "writing"), weights=(2, 5, 5))[0]
        longest = {"start": 4.0, "steps": 0.2, "writing": 0.01}[moment]
        asked = draw.random() < 0.2
        kills.append(
            Kill(draw.choice(GRACEFUL) if asked else signal.SIGKILL, moment, iteration, draw.random() * longest)
        )
    return kills


def make_run(folder: Path, *, kills: int, processes: int) -> None:
    """A run folder of a recipe whose step takes hundredths of a second and that outlasts all kills."""
    iterations = (kills + 4) * STRIDE
    recipe = make_recipe(
        iterations=iterations,
        global_batch=8,
        model={"embed_dim": 16, "depth": 2, "drop_path": 0.3, "layerscale": 1.0},
        heads={"dino": HEAD, "ibot": HEAD, "nesting": [8, 16]},
        crops={"local_number": 2},
        optim={"warmup_iterations": 2, "freeze_last_layer_iterations": 1},
        evaluation={"period_iterations": iterations // 3},
    )
    config = make_train_config(
        recipe,
        processes=processes,
        batch_per_process=8 // processes,
        checkpoint_period_iterations=PERIOD,
        log_period_iterations=1,
    )
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config))


def launch(folder: Path, *, processes: int) -> list[subprocess.Popen[bytes]]:
    """The trainer's processes, started as torchrun starts them, without its agent."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    command = [sys.executable, "-W", "error", "-m", "franca.train", str(folder / "config.yaml")]
    started = []
    for rank in range(processes):
        names = {**place, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": 1}
        environment = {**os.environ, **{name: str(value) for name, value in names.items()}}
        with (folder / f"stderr.{rank}.txt").open("ab") as errors:
            started.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors))
    return started


def die(folder: Path, kill: Kill, *, processes: int) -> Death | None:
    """Launch, kill and look at what is left; None where the run ended before its kill."""
    said, written, torn = _size(folder / "log.txt"), _size(folder / METRICS), _torn(folder)
    trainers = launch(folder, processes=processes)
    try:
        if kill.moment != "start":
            _wait(lambda: last_iteration(folder, since=written) >= kill.iteration, trainers)
        if kill.moment == "writing":
            _wait(lambda: bool(_torn(folder) - torn), trainers)
        time.sleep(kill.delay_s)
        if any(trainer.poll() is not None for trainer in trainers):
            return None
        for trainer in trainers:
            trainer.send_signal(kill.number)
        _wait(lambda: False, trainers)
        exit_code = next(code for trainer in trainers if (code := trainer.poll()) is not None)
        if exit_code == 75:
            assert [trainer.wait(DEADLINE_S) for trainer in trainers] == [75] * processes
    finally:
        # As a launcher does: where one has died, the others are ended
        for trainer in trainers:
            trainer.kill()
            trainer.wait()
    kept = list_checkpoints(folder)
    return Death(
        kill=kill,
        exit_code=exit_code,
        resumed=_resumed(folder, said),
        logged=last_iteration(folder) + 1,
        kept=int(kept[0].name) if kept else 0,
        torn=bool(_torn(folder) - torn),
    )


def soak(
    folder: Path, *, kills: int, seed: int, processes: int = 1, report: Callable[[str], None] = print
) -> tuple[list[Death], list[str]]:
    """Kill a run in `folder` again and again, let it end, hold it against one left alone: deaths, what was wrong."""
    deaths: list[Death] = []
    for name in ("whole", "killed"):
        make_run(folder / name, kills=kills, processes=processes)
    if any(trainer.wait(DEADLINE_S * kills) for trainer in launch(folder / "whole", processes=processes)):
        return deaths, ["the run that was left alone failed"]
    report(HEADER)
    for number, kill in enumerate(plan_kills(kills, seed=seed), start=1):
        death = die(folder / "killed", kill, processes=processes)
        if death is None:
            return deaths, [f"launch {number} ended before it was killed: {_last_words(folder / 'killed')}"]
        deaths.append(death)
        report(render_death(number, death))
    if any(trainer.wait(DEADLINE_S * kills) for trainer in launch(folder / "killed", processes=processes)):
        return deaths, [f"the last launch failed: {_last_words(folder / 'killed')}"]
    lines, once = len(_records(folder / "killed")), len(_records(folder / "whole"))
    report(f"{lines} iterations trained for {once}")
    return deaths, [*check_deaths(deaths), *compare_runs(folder / "whole", folder / "killed")]


def check_deaths(deaths: list[Death]) -> Iterator[str]:
    """What each death and the launch after it did that they must not do."""
    for number, death in enumerate(deaths, start=1):
        if death.kill.number in GRACEFUL and death.exit_code == 75 and death.kept < death.logged:
            yield f"kill {number}: asked to stop, it kept {death.kept} of {death.logged} iterations"
        if death.exit_code not in (75, -death.kill.number):
            yield f"kill {number}: exit code {death.exit_code}"
        # One checkpoint may be under way, and the next one waits for it
        if death.logged - death.kept > 2 * PERIOD:
            yield f"kill {number}: {death.logged - death.kept} iterations lost"
    for number, (death, after) in enumerate(itertools.pairwise(deaths), start=2):
        if after.resumed not in (death.kept, -1):  # -1: it died before it came that far
            yield f"launch {number} went on from {after.resumed}, but {death.kept} was there"


def compare_runs(whole: Path, killed: Path) -> Iterator[str]:
    """In what a finished run differs from one that was left alone: last checkpoint, losses, evaluations, its log."""
    for one, two in zip(list_checkpoints(whole), list_checkpoints(killed), strict=True):
        if read_manifest(one) != read_manifest(two):
            yield f"checkpoint {two.name} differs"
    one, two = (_losses(folder) for folder in (whole, killed))
    if one.keys() != two.keys():
        yield f"iterations {sorted(one.keys() ^ two.keys())} are logged in one run only"
    for iteration in sorted(one.keys() & two.keys()):
        if one[iteration] != two[iteration]:
            yield f"iteration {iteration}: {two[iteration]} instead of {one[iteration]}"
    for pattern in ("eval/*/*.json", "eval/*/*.safetensors"):
        for path in sorted(whole.glob(pattern)):
            other = killed / path.relative_to(whole)
            if not other.exists() or other.read_bytes() != path.read_bytes():
                yield f"{other} differs"
    if "passing over a damaged checkpoint" in (killed / "log.txt").read_text():
        yield "a torn checkpoint was taken for a whole one"


HEADER = "kill  signal   moment   exit  resumed from  logged  kept  lost  checkpoint under way"


def render_death(number: int, death: Death) -> str:
    """One line of the table."""
    resumed = "?" if death.resumed < 0 else death.resumed
    return (
        f"{number:4}  {death.kill.number.name:7}  {death.kill.moment:7}  {death.exit_code:4}  {resumed:>12}  "
        f"{death.logged:6}  {death.kept:4}  {max(death.logged - death.kept, 0):4}  {'torn' if death.torn else '-'}"
    )


def last_iteration(folder: Path, *, since: int = 0) -> int:
    """The highest iteration that is logged after byte `since`, -1 before the first."""
    return max((record["iteration"] for record in _records(folder, since=since)), default=-1)


def _losses(folder: Path) -> dict[int, dict[str, float]]:
    """Every iteration's losses, the last line of it winning. Times and medians since a start are no property of it."""
    return {
        record["iteration"]: {key: record[key] for key in record if key.startswith(("raw_", "mean_"))}
        for record in _records(folder)
    }


def _records(folder: Path, *, since: int = 0) -> list[dict[str, Any]]:
    """The lines of the log in JSON; a torn one is none."""
    path = folder / METRICS
    records = []
    for line in path.read_bytes()[since:].splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _wait(condition: Callable[[], bool], trainers: list[subprocess.Popen[bytes]]) -> None:
    """Return when the condition holds, or a trainer has ended."""
    deadline = time.monotonic() + DEADLINE_S
    while all(trainer.poll() is None for trainer in trainers) and not condition():
        assert time.monotonic() < deadline, "the trainer hangs"
        time.sleep(0.001)


def _resumed(folder: Path, said: int) -> int:
    """From which iteration a launch went on whose log begins at byte `said`; -1 where it did not come that far."""
    path = folder / "log.txt"
    text = path.read_bytes()[said:].decode(errors="replace") if path.exists() else ""
    _, found, rest = text.partition("Starting training from iteration ")
    line = rest.partition("\n")
    return int(line[0]) if found and line[1] else -1


def _torn(folder: Path) -> set[tuple[str, int]]:
    """The folders of checkpoints that are not whole, each with what tells it from one of the same name."""
    found = set()
    for path in (folder / "checkpoints").glob(".*.incomplete"):
        with contextlib.suppress(FileNotFoundError):  # whole by now
            found.add((path.name, path.stat().st_ino))
    return found


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _last_words(folder: Path) -> str:
    return "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("stderr.*.txt")))


def main() -> int:
    """Soak as the command line says; the exit code is 1 where something was wrong."""
    parser = argparse.ArgumentParser(description="kill the trainer at random moments and hold its run against another")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        deaths, wrong = soak(Path(folder), kills=options.kills, seed=options.seed, processes=options.processes)
    torn, took_s = sum(death.torn for death in deaths), time.monotonic() - began
    print(f"{len(deaths)} kills, {torn} of them amid a checkpoint; {options.processes} process(es), {took_s:.0f} s")
    for line in wrong:
        print(f"WRONG: {line}")
    print("the run is the one that was left alone, bit for bit" if not wrong else f"{len(wrong)} things are wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
