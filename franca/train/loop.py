"""The training loop: a configuration and its run folder in; log, checkpoints and evaluations in that folder out."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from franca.config import ConfigError, TrainConfig, koleo_group, recipe_fingerprint
from franca.data.datasets import load_dataset
from franca.data.loader import make_loader
from franca.distributed import (
    Vote,
    any_process,
    barrier,
    gradient_averaging,
    rank,
    setup,
    teardown,
    whole_state,
    world_size,
)
from franca.evaluate.knn import write_knn_results
from franca.evaluate.protocol import describe_knn, evaluate_knn, make_encoder
from franca.evaluate.teacher import FILE, UNTRAINED, save_teacher
from franca.models.vit import VisionTransformer
from franca.schedules import make_schedules
from franca.train.checkpoint import load_newest_checkpoint, make_checkpoints
from franca.train.failures import report_failure
from franca.train.metrics import LOG, LOSSES, Metrics, open_log
from franca.train.optim import apply_schedules, clip_gradients, guarded_step, make_optimizer, make_scaler
from franca.train.parallel import load_frozen_teacher, load_start, make_model, wrap
from franca.train.run_folder import catch_signals, lock_folder, log_head, write_environment, write_state
from franca.train.self_distillation import SelfDistillation, Views, gather_parts, make_views
from franca.train.unreadable import UnreadableImages

Outcome = Literal["finished", "paused", "interrupted"]

# What a stream of random numbers is for: the second word of its seed. 0, 1 and 3 are the loader's.
DROPPED_PATHS, INITIAL_WEIGHTS = 2, 4


def train(config: TrainConfig, *, folder: Path) -> Outcome:
    """Train from the newest checkpoint in `folder`, or from the start, to the recipe's end or `until_iteration`.

    Raises `ConfigError`, `DataError` and `WeightsError` on what the user can mend, `NonFiniteError` where the losses
    diverge.
    """
    recipe, execution = config.recipe, config.execution
    check_config(config)
    schedules = make_schedules(recipe)
    with contextlib.ExitStack() as stack:
        # Where it runs
        device = setup(execution)
        stack.callback(teardown)
        stack.enter_context(deterministic(device, threads=execution.threads))
        stack.enter_context(lock_folder(folder))
        stack.enter_context(open_log(folder))
        watchdog = stack.enter_context(report_failure(folder, of=recipe.iterations, hang_s=execution.hang_s))
        stop = stack.enter_context(catch_signals())
        log_head(config)

        # What is trained, and from where
        dataset = load_dataset(recipe.data.dataset, root=execution.data_root, split="train")
        write_environment(folder, config=config, device=device, dataset=dataset)
        initial = torch.Generator().manual_seed(derive_seed(config.seed, INITIAL_WEIGHTS))
        model = make_model(config, device=device, generator=initial)
        teacher_sha256 = load_frozen_teacher(model, config=config)
        caller = wrap(model, config=config)
        optimizer = make_optimizer(model.student, optim=recipe.optim)
        scaler = make_scaler(recipe.precision, device=device)
        metrics = Metrics(config, folder=folder, device=device, scaled=scaler.is_enabled())
        unreadable = UnreadableImages(folder)
        LOG.info("Model:\n%s", model)
        checkpoint = load_newest_checkpoint(folder, config=config, model=model, optimizer=optimizer)
        done = 0
        if checkpoint:
            done = checkpoint["iteration"]
            metrics.load_state(checkpoint)
            if checkpoint.get("frozen_teacher", "") != teacher_sha256:
                raise ConfigError(f"{execution.teacher_weights}: not the teacher that this run began with")
            # Empty where the run began on a CPU, which scales nothing
            scaler.load_state_dict(checkpoint["scaler"] or scaler.state_dict())
        else:
            load_start(model, config=config)
        checkpoints = stack.enter_context(make_checkpoints(folder, config=config))
        batches = make_loader(config, dataset, start_iteration=done, rank=rank(), world_size=world_size())
        stack.callback(batches.close)
        if done == 0:
            evaluate(model, config=config, folder=folder, done=done, device=device)

        # One iteration after another
        LOG.info("Starting training from iteration %d", done)
        write_state(folder, state="running", iteration=done, of=recipe.iterations, images_per_second=None)
        began, start, speed = time.perf_counter(), done, None
        dropped_paths = torch.Generator(device)
        end = min(execution.until_iteration or recipe.iterations, recipe.iterations)
        vote, stopping = Vote(), any_process(bool(stop.asked))
        while done < end and not stopping:
            watchdog.beat()
            iteration, started = done, time.perf_counter()
            parts = [next(batches) for _ in range(execution.accumulation)]
            data_s = time.perf_counter() - started
            unreadable.add(line for part in parts for line in part.unreadable)

            now = {
                "lr": float(schedules.lr[iteration]),
                "wd": float(schedules.weight_decay[iteration]),
                "mom": float(schedules.momentum[iteration]),
                "last_layer_lr": float(schedules.last_layer_lr[iteration]),
                "teacher_temp": float(schedules.teacher_temperature[iteration]),
                "current_batch_size": float(execution.batch_per_process),
            }
            apply_schedules(optimizer, lr=now["lr"], weight_decay=now["wd"], last_layer_lr=now["last_layer_lr"])
            losses = accumulate_gradients(
                model,
                [make_views(part, device=device, every_patch=bool(recipe.frozen_teacher)) for part in parts],
                caller=caller,
                temperature=now["teacher_temp"],
                scaler=scaler,
                dropped_paths=dropped_paths,
                seed=(config.seed, DROPPED_PATHS, iteration),
            )
            scaler.unscale_(optimizer)
            grad_norm = clip_gradients(model.student.values(), clip_norm=recipe.optim.clip_norm)
            metrics.add(iteration, settings=now, losses=losses, grad_norm=grad_norm, draws=[p.draws for p in parts])
            # Before the step; on another device a bad step is withheld there, until the next line's check says so
            if device.type == "cpu" or metrics.skips or metrics.is_due(iteration):
                metrics.check()
            guarded_step(optimizer, scaler=scaler, healthy=metrics.healthy)
            if not metrics.left_out:
                model.update_teacher(momentum=now["mom"])
            optimizer.zero_grad(set_to_none=True)
            done += 1
            metrics.add_times(iteration_s=time.perf_counter() - started, data_s=data_s)

            if metrics.is_due(iteration):
                metrics.unreadable = unreadable.write()
                speed = metrics.write(iteration)
                write_state(folder, state="running", iteration=done, of=recipe.iterations, images_per_second=speed)
            stopping = vote.cast(bool(stop.asked))
            watchdog.rest()
            if is_multiple(done, recipe.evaluation.period_iterations) or done == recipe.iterations:
                metrics.check()
                evaluate(model, config=config, folder=folder, done=done, device=device)
            if is_multiple(done, execution.checkpoint_period_iterations) or done == end or stopping:
                metrics.check()
                unreadable.write()
                progress = {**metrics.state(), "scaler": scaler.state_dict(), "frozen_teacher": teacher_sha256}
                checkpoints.save(done, model=model, optimizer=optimizer, progress=progress)

        # How it ended
        stopping = vote.take() or stopping
        checkpoints.wait()
        outcome: Outcome = "finished" if done == recipe.iterations else "interrupted" if stopping else "paused"
        write_state(folder, state=outcome, iteration=done, of=recipe.iterations, images_per_second=speed)
        total_s = time.perf_counter() - began
        LOG.info(
            "Training Total time: %s (%.6f s / it)", timedelta(seconds=int(total_s)), total_s / max(done - start, 1)
        )
        LOG.info("%s after %d of %d iterations", stop.asked or outcome, done, recipe.iterations)
    return outcome


def check_config(config: TrainConfig) -> None:
    """Raise `ConfigError` on a configuration that cannot be run as it stands."""
    recipe, execution = config.recipe, config.execution
    actual = recipe_fingerprint(recipe)
    if config.fingerprint != actual:
        raise ConfigError(
            f"fingerprint: {config.fingerprint}, but the recipe's is {actual}: it was edited; launch anew"
        )
    for key in ("log_period_iterations", "checkpoints_kept", "batch_per_process", "accumulation"):
        if getattr(execution, key) < 1:
            raise ConfigError(f"execution.{key}: {getattr(execution, key)} is not at least 1")
    if recipe.crops.local_number < 1:
        raise ConfigError(f"recipe.crops.local_number: {recipe.crops.local_number} is not at least 1")
    batch, group = execution.batch_per_process, koleo_group(recipe)
    if recipe.global_batch % batch == 0 and (recipe.global_batch % group or (batch % group and group % batch)):
        raise ConfigError(
            f"recipe.losses.koleo_images: groups of {group} do not fit into {recipe.global_batch} images of which a "
            f"process takes {batch} at a time"
        )
    if recipe.frozen_teacher and (recipe.masking.sample_probability or recipe.model.drop_path):
        raise ConfigError(
            "recipe.frozen_teacher: distillation masks no patches and drops no paths; set "
            "recipe.masking.sample_probability and recipe.model.drop_path to 0"
        )
    for key in ("global_px", "local_px"):
        px, patch_px = getattr(recipe.crops, key), recipe.model.patch_px
        if px % patch_px:
            raise ConfigError(f"recipe.crops.{key}: {px} is not a multiple of recipe.model.patch_px, {patch_px}")


@contextlib.contextmanager
def deterministic(device: torch.device, *, threads: int) -> Iterator[None]:
    """Make equal runs equal, bit for bit on the CPU. `threads` 0 leaves their number to torch."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # dinov2 `train.py` allows TF32; it speeds up fp32 heads
        yield
        return
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads or before[0])
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a check for debugging that costs time
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def derive_seed(*stream: int) -> int:
    """One 64-bit seed of a stream of random numbers that is named by integers."""
    return int(np.random.SeedSequence(stream).generate_state(1, np.uint64)[0])


def accumulate_gradients(
    model: SelfDistillation,
    views: Sequence[Views],
    *,
    caller: nn.Module,
    temperature: float,
    scaler: torch.amp.GradScaler,
    dropped_paths: torch.Generator,
    seed: tuple[int, ...],
) -> dict[str, Tensor]:
    """Leave the gradient of a batch's mean loss in the student, and return the terms that are logged.

    The batch comes in parts, here and in other processes: part j of process r is part r * len(views) + j of all, and
    what it trains on and drops does not depend on how many processes share them. `caller` is what `wrap` made.
    """
    first_part, images = rank() * len(views), len(views[0].global_crops) // 2

    def drawing(step: int) -> torch.Generator:
        return dropped_paths.manual_seed(derive_seed(*seed, first_part + step))

    logged = dict.fromkeys(LOSSES, torch.zeros((), device=views[0].masks.device))
    targets = model.make_targets(views, temperature=temperature)
    neighbors = None
    if len(views) > 1 and model.koleo_spans(images):
        neighbors = gather_parts([model.koleo_tokens(view, generator=drawing(i)) for i, view in enumerate(views)])
    for step, (view, target) in enumerate(zip(views, targets, strict=True)):
        with gradient_averaging(caller, enabled=step == len(views) - 1):
            losses = caller(
                view,
                target,
                first_image=(first_part + step) * images,
                neighbors=neighbors,
                generator=drawing(step),
            )
            scaler.scale(losses.optimized / len(views)).backward()
        logged = {name: total + losses.logged[name] / len(views) for name, total in logged.items()}
    return logged


def evaluate(model: SelfDistillation, *, config: TrainConfig, folder: Path, done: int, device: torch.device) -> None:
    """Write the teacher's backbone after `done` iterations, once it has been trained, and its k-NN accuracy.

    All processes encode images and search among them, the first one writes. Evaluated apart, the first one alone keeps
    the backbone and writes it without results; `franca evaluate --follow` measures it beside the run.
    """
    recipe, inline = config.recipe, config.execution.evaluate == "inline"
    if not (done or inline):
        return
    state = whole_state(model.teacher["backbone"], kept=inline or rank() == 0)
    place = folder / "eval" / (f"training_{done - 1}" if done else UNTRAINED)
    if state:
        with torch.device("meta"):
            backbone = VisionTransformer(recipe.model, grid=recipe.crops.global_px // recipe.model.patch_px)
        backbone.load_state_dict(state, assign=True)
    if done and rank() == 0:
        for stale in place.glob("*.json"):  # of another teacher, where a run came here twice
            stale.unlink()
        save_teacher(backbone, path=place / FILE, config=config)
    if inline:
        result = evaluate_knn(make_encoder(backbone, config=config, device=device), config=config, device=device)
        if rank() == 0:
            write_knn_results(place / "results_eval_knn.json", result.accuracies)
            LOG.info("k-NN top-1 of the teacher after %d iterations: %s", done, describe_knn(result.accuracies))
            for line in result.unreadable:
                LOG.warning("an image that could not be read was left out: %s", line)
    barrier()


def is_multiple(done: int, period: int) -> bool:
    """Whether something is due that happens every `period` iterations; never where that is 0."""
    return period > 0 and done % period == 0
