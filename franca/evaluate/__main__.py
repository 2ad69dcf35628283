"""`franca evaluate RUN_FOLDER`: a run's newest teacher measured, into its `evaluation.json`; or a weights file's model.

    franca evaluate RUN --protocol knn,linear,logreg     the newest teacher of a run
    franca evaluate FILE.pth --config CONFIG --out DIR   released weights, by the configuration of their recipe
    franca evaluate RUN --follow                         every teacher of a run that trains, beside it
    franca evaluate RUN --all                            every teacher that there is, and the untrained network

Exit codes: 0 written; 1 the run that was followed has failed; 2 a folder, configuration, dataset or weights file that
will not do, said in one line.
"""

import argparse
import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from franca.config import ConfigError, TrainConfig, load_config
from franca.data.datasets import DataError
from franca.distributed import parse_place, rank, setup, teardown
from franca.evaluate.follow import follow_run, measure_all
from franca.evaluate.linear import Probe
from franca.evaluate.measure import (
    PROTOCOLS,
    Wanted,
    measure,
    render_table,
    with_image_size,
    write_evaluation,
    write_knn,
)
from franca.evaluate.protocol import FewShot
from franca.evaluate.teacher import Teacher, grid_px, load_newest_teacher, load_released
from franca.models.weights import WeightsError


def main(arguments: Sequence[str]) -> int:
    """Evaluate what the command line names; returns the exit code."""
    options = make_parser().parse_args(arguments)
    try:
        with progress_lines():
            wanted = make_wanted(options)
            if options.all:
                measure_all(options.subject, wanted=wanted, device=options.device)
                return 0
            if options.follow:
                return follow_run(options.subject, wanted=wanted, device=options.device, poll_s=options.poll_s)
            evaluate_subject(options, wanted=wanted)
    except (ConfigError, DataError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        teardown()
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="franca evaluate", description="what a trained model is worth, frozen")
    parser.add_argument("subject", type=Path, metavar="RUN_OR_WEIGHTS", help="run folder, or a weights file")
    parser.add_argument("--protocol", default="knn", help="knn, linear and logreg, joined by commas (default: knn)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to compute (default: where the run trained)")
    parser.add_argument("--config", type=Path, help="of a weights file: the config.yaml of its recipe")
    parser.add_argument("--out", type=Path, help="folder of the results (default: the run, or beside the weights)")
    parser.add_argument("--size", type=int, help="side of the images in pixels (default: what the model was made for)")
    parser.add_argument("--per-class", default="", help="k-NN with so few train images of each class too, as 1,2,5,10")
    parser.add_argument("--tries", type=int, default=5, help="draws of those images (default: 5)")
    parser.add_argument("--augment", action="store_true", help="train the linear probe on random crops, as published")
    parser.add_argument("--linear-iterations", type=int, default=Probe.iterations, help="(default: 12500)")
    parser.add_argument("--linear-batch", type=int, default=Probe.batch, help="images of all processes (default: 128)")
    parser.add_argument("--follow", action="store_true", help="measure every teacher of a run until it has finished")
    parser.add_argument("--check", action="store_true", help="load the weights and measure nothing")
    parser.add_argument("--all", action="store_true", help="measure every teacher of a run that is not measured yet")
    parser.add_argument("--poll-s", type=float, default=15.0, help="how often --follow looks for one (default: 15)")
    return parser


@contextlib.contextmanager
def progress_lines() -> Iterator[None]:
    """Show what the measurements say of their progress, on stderr, from the first process."""
    log, handler = logging.getLogger("franca"), logging.StreamHandler()
    handler.addFilter(lambda _: rank() == 0)
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def make_wanted(options: argparse.Namespace) -> Wanted:
    """What the options ask for. Raises `ConfigError` on values that make no sense."""
    protocols = tuple(options.protocol.split(","))
    unknown = [name for name in protocols if name not in PROTOCOLS]
    if unknown:
        raise ConfigError(f"--protocol: {', '.join(unknown)} is not among {', '.join(PROTOCOLS)}")
    counts = options.per_class.split(",") if options.per_class else []
    if not all(count.isdecimal() and int(count) for count in counts):
        raise ConfigError(f"--per-class: {options.per_class} is no list of numbers like 1,2,5,10")
    for name in ("tries", "linear_iterations", "linear_batch"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: {getattr(options, name)} is not at least 1")
    return Wanted(
        protocols=protocols,
        few_shot=FewShot(tuple(map(int, counts)), tries=options.tries),
        probe=Probe(
            iterations=options.linear_iterations,
            batch=options.linear_batch,
            evaluation_period=max(options.linear_iterations // 10, 1),
            augment=options.augment,
        ),
    )


def evaluate_subject(options: argparse.Namespace, *, wanted: Wanted) -> None:
    """Measure a run's newest teacher or a weights file, print the numbers and write `evaluation.json`."""
    subject: Path = options.subject
    run = not subject.is_file()
    if run and options.size and options.out is None:
        raise ConfigError(
            "--size: a run's own results are of its own size; name another folder for these: --out FOLDER"
        )
    config_path = subject / "config.yaml" if run else options.config
    if config_path is None:
        raise ConfigError(f"{subject}: a weights file needs --config, the config.yaml of the recipe that trained it")
    if not config_path.is_file():
        raise ConfigError(f"{config_path}: no such file" + ("; a run folder holds one" if run else ""))
    config = load_config(config_path)
    place = join_processes(config, device=options.device)
    teacher = (
        load_newest_teacher(subject, config=config)
        if run
        else load_released(subject, config_path=config_path, config=config)
    )
    if options.check:
        return
    own_px = None if run else grid_px(teacher.model)
    config = with_image_size(config, options.size or own_px)
    out = options.out or (subject if run else subject.with_name(f"{subject.name}.evaluation"))
    results = teacher.path.parent if run and options.out is None else out
    content = measure(teacher, config=config, wanted=wanted, device=place, folder=results, pixels=True)
    write_results(content, out=out, results=results, own=run and options.out is None)
    if rank() == 0:
        print(render_table(content, name=describe(teacher, config)))


def write_results(content: dict, *, out: Path, results: Path, own: bool) -> None:
    """Write `evaluation.json` and, but for a run's k-NN, which the trainer writes, k-NN in DINOv2's form."""
    if rank():
        return
    if "knn" in content and not own:
        write_knn(results / "results_eval_knn.json", content)
    write_evaluation(out / "evaluation.json", content)


def describe(teacher: Teacher, config: TrainConfig) -> str:
    """What was measured, for people."""
    name = f"{config.row}@{config.version}"
    return name if teacher.iterations is not None else f"{teacher.path.name} as {name}"


def join_processes(config: TrainConfig, *, device: str | None) -> torch.device:
    """Join the processes of this launch, however many, and return this one's device. Raises `ConfigError`."""
    name = device or config.execution.device
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "the run trained on CUDA, and torch finds no CUDA device here; --device cpu computes on the CPU"
        )
    if config.execution.threads:
        torch.set_num_threads(config.execution.threads)
    launch = parse_place(os.environ)
    return setup(dataclasses.replace(config.execution, device=name, processes=launch.world_size if launch else 1))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
