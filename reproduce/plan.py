"""A spec and a site in, its `Plan` out: what a run takes, by formula, before any of it is there.

Without the GPUs that a row needs, the plan is of the documented machine. Nothing is built and nothing is measured.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from franca.config import Execution
from franca.flops import count_parameters, peak_tflops, step_flops
from franca.memory import Memory, checkpoint_bytes, plan_memory
from reproduce.errors import SpecError
from reproduce.quantities import render_number
from reproduce.resolve import find_missing, lay_out
from reproduce.sites import Site
from reproduce.spec import Spec
from reproduce.terminal import render_list, render_table

CARDS = {"H100 80GB": "NVIDIA H100 80GB HBM3", "A100 80GB": "NVIDIA A100-SXM4-80GB"}  # a document's name: torch's


@dataclass(frozen=True)
class Layout:
    """Nodes of `processes` in all, each with its images at a time; `documented` where the site's GPUs are not known."""

    documented: bool
    device: str
    parallel: str
    nodes: int
    processes: int
    batch_per_process: int
    accumulation: int


@dataclass(frozen=True)
class Cost:
    """Time at an assumed share of the peak (`mfu`); None where the GPU, or its peak, is not known.

    documented_gpu_hours: what the documents say; they may count later stages too.
    """

    gpu: str | None
    peak_tflops: float | None
    mfu: float
    images_per_second: float | None
    images_per_second_per_gpu: float | None
    hours: float | None
    gpu_hours: float | None
    documented_gpu_hours: float | None


@dataclass(frozen=True)
class Plan:
    """What a run takes. `parameters` and `flops_per_image` by part, `memory` in bytes on one GPU.

    memory_recomputed: with activation checkpointing. epochs: passes over the training set. missing: what the site
    lacks.
    """

    name: str
    site: str
    parameters: dict[str, int]
    flops_per_image: dict[str, float]
    layout: Layout
    memory: dict[str, int]
    memory_recomputed: dict[str, int]
    checkpoint_bytes: int
    checkpoints_bytes: int
    cost: Cost
    iterations: int
    images_seen: int
    images: int
    epochs: float
    missing: tuple[str, ...]


def make_plan(spec: Spec, *, site: Site, gpu: str | None = None, mfu: float = 0.35) -> Plan:
    """The plan of a row on a site, complete or not. `gpu` is a card by torch's name, `mfu` the share of its peak.

    Raises `SpecError` on a card whose peak is not known.
    """
    recipe = spec.recipe
    layout, execution = _layout(spec, site)
    count = count_parameters(recipe)
    flops = step_flops(recipe, images=execution.batch_per_process)
    seen = recipe.iterations * recipe.global_batch
    return Plan(
        name=spec.name,
        site=site.name,
        parameters={**dataclasses.asdict(count), "heads": count.heads, "trainable": count.trainable},
        flops_per_image={**dataclasses.asdict(flops), "total": flops.total},
        layout=layout,
        memory=_bytes(plan_memory(recipe, execution, recompute=False)),
        memory_recomputed=_bytes(plan_memory(recipe, execution, recompute=True)),
        checkpoint_bytes=checkpoint_bytes(recipe),
        checkpoints_bytes=checkpoint_bytes(recipe) * spec.resources.checkpoints_kept,
        cost=_cost(spec, layout, flops=flops.total, gpu=gpu, mfu=mfu),
        iterations=recipe.iterations,
        images_seen=seen,
        images=recipe.data.images,
        epochs=seen / recipe.data.images,
        missing=tuple(said for _, said in find_missing(spec, site=site)),
    )


def render_plan(plan: Plan, *, width: int) -> str:
    """The plan as a table for people, then what is missing."""
    table = render_table(("what", "how much"), list(_rows(plan)), width=width)
    missing = f"Missing on the site {plan.site}, before a run can start:"
    return "\n\n".join([plan.name, table, *([render_list(missing, plan.missing, width=width)] if plan.missing else [])])


def _layout(spec: Spec, site: Site) -> tuple[Layout, Execution]:
    """The site's layout, or the documented one where the row needs GPUs and the site has none."""
    nodes, _, execution = lay_out(spec, site=site)
    resources = spec.resources
    documented = any(keys.keys() & {"gpus_per_node", "device"} for keys, _ in find_missing(spec, site=site))
    if documented:
        nodes = resources.nodes or -(-resources.gpus // 4)
        images = spec.recipe.global_batch // resources.gpus
        execution = dataclasses.replace(
            execution,
            device="cuda",
            processes=resources.gpus,
            batch_per_process=resources.batch_per_gpu,
            accumulation=max(images // resources.batch_per_gpu, 1),
        )
    return (
        Layout(
            documented=documented,
            device=execution.device,
            parallel=execution.parallel,
            nodes=nodes,
            processes=execution.processes,
            batch_per_process=execution.batch_per_process,
            accumulation=execution.accumulation,
        ),
        execution,
    )


def _cost(spec: Spec, layout: Layout, *, flops: float, gpu: str | None, mfu: float) -> Cost:
    card = gpu or (CARDS.get(spec.resources.gpu, spec.resources.gpu) if spec.resources.gpu else None)
    peak = peak_tflops(card, precision=spec.recipe.precision.backbone) if card else None
    if gpu and peak is None:
        raise SpecError(
            f"no peak is known of {gpu!r} in {spec.recipe.precision.backbone}",
            mend="name a card as torch does, such as 'NVIDIA H200' or 'NVIDIA A100-SXM4-80GB'",
        )
    each = peak * mfu * 1e12 / flops if peak else None
    seen = spec.recipe.iterations * spec.recipe.global_batch
    return Cost(
        gpu=card,
        peak_tflops=peak,
        mfu=mfu,
        images_per_second=each * layout.processes if each else None,
        images_per_second_per_gpu=each,
        hours=seen / (each * layout.processes) / 3600 if each else None,
        gpu_hours=seen / each / 3600 if each else None,
        documented_gpu_hours=spec.resources.gpu_hours,
    )


def _bytes(memory: Memory) -> dict[str, int]:
    return {**dataclasses.asdict(memory), "total": memory.total}


def _rows(plan: Plan) -> Iterator[tuple[str, str]]:
    parameters, flops, layout, cost = plan.parameters, plan.flops_per_image, plan.layout, plan.cost
    yield (
        "parameters",
        (f"{parameters['backbone']:,} backbone + {parameters['heads']:,} heads = {parameters['trainable']:,} trained"),
    )
    parts = ("teacher_backbone", "teacher_heads", "student_backbone", "student_heads")
    listed = ", ".join(f"{part.replace('_', ' ')} {render_number(flops[part] / 1e9, digits=3)}" for part in parts)
    yield "GFLOP per image", f"{render_number(flops['total'] / 1e9, digits=3)}: {listed}"
    machine = "GPU" if layout.device == "cuda" else "CPU process"
    nodes = "1 node" if layout.nodes == 1 else f"{layout.nodes} nodes"
    times = f", {layout.accumulation} times per iteration" if layout.accumulation > 1 else ""
    how = f", {layout.parallel}" if layout.processes > 1 else ""
    said = f"{layout.processes} × {machine} on {nodes}{how}, {layout.batch_per_process} images on each"
    yield f"layout{' (documented)' if layout.documented else ''}", f"{said}{times}"
    for label, memory in (("memory", plan.memory), ("with recomputation", plan.memory_recomputed)):
        listed = ", ".join(
            f"{part} {render_number(size / 2**30, digits=3)}"
            for part, size in memory.items()
            if size and part != "total"
        )
        yield f"GiB per {machine}, {label}", f"{render_number(memory['total'] / 2**30, digits=3)}: {listed}"
    kept = f"{render_number(plan.checkpoints_bytes / 1e9, digits=3)} GB for those kept"
    yield "checkpoint", f"{render_number(plan.checkpoint_bytes / 1e9, digits=3)} GB, {kept}"
    passes = f"{plan.epochs:,.1f} passes over {plan.images:,}"
    yield "data", f"{plan.iterations:,} iterations see {plan.images_seen:,} images: {passes}"
    if cost.gpu_hours is not None and cost.hours is not None and cost.images_per_second is not None:
        yield (
            f"time at {cost.mfu:.0%} MFU",
            (
                f"{cost.hours:,.0f} hours, {cost.gpu_hours:,.0f} GPU-hours of {cost.gpu} "
                f"({cost.peak_tflops:g} TFLOP/s): {cost.images_per_second:,.0f} images/s, to be loaded and augmented"
            ),
        )
    documented = "" if cost.documented_gpu_hours is None else f"{cost.documented_gpu_hours:,.0f} GPU-hours"
    yield "documented", documented or "no cost"
