"""A spec and a site in, a run that can be launched out: everything that is derived is computed here, once."""

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import yaml

from franca.config import Execution, TrainConfig, koleo_group
from reproduce.errors import SiteError, SpecError
from reproduce.files import unwritable
from reproduce.sites import Site as Site
from reproduce.sites import load_site as load_site
from reproduce.sites import merge
from reproduce.spec import Spec

LOG_PERIOD_ITERATIONS = 10  # the print frequency of DINOv2's trainer, facebookresearch/dinov2 train/train.py@b8931f7
PACKAGED = {"digits"}  # data sets that ship with a package and need no folder
RUN_NAME_LENGTH = 80

Missing = tuple[dict[str, Any], str]  # keys to write into site.yaml, and what is missing


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


def resolve(spec: Spec, *, site: Site, seed: int | None = None, until: str | None = None) -> Resolved:
    """Lay a row out on a site. Raises `SiteError` listing everything that the site lacks, before anything starts.

    seed: in place of the spec's. until: where to stop early, as iterations (`500`) or a share of the run (`5%`).
    """
    _check_site(spec, site)
    seed = spec.seed if seed is None else seed
    nodes, tasks_per_node, execution = lay_out(spec, site=site)
    stop = until_iteration(until, iterations=spec.recipe.iterations)
    execution = dataclasses.replace(execution, until_iteration=stop)
    run = run_name(spec, seed=seed)
    return Resolved(
        spec=spec,
        site=site,
        config=TrainConfig(spec.row, spec.version, spec.fingerprint, seed, spec.recipe, execution),
        run=run,
        folder=spec.root / "runs" / spec.name / run,
        nodes=nodes,
        tasks_per_node=tasks_per_node,
        notes=tuple(_notes(spec, execution)),
    )


def lay_out(spec: Spec, *, site: Site) -> tuple[int, int, Execution]:
    """(nodes, processes on each, what each is told): the run to its end, whether or not the site has all it needs."""
    device = _device(spec, site)
    nodes, tasks = _layout(spec, site, device=device)
    return nodes, tasks, _make_execution(spec, site, device=device, nodes=nodes, tasks_per_node=tasks)


def find_missing(spec: Spec, *, site: Site) -> tuple[Missing, ...]:
    """All that the site lacks for the row: the keys of site.yaml that would mend it, and what is missing."""
    gpus_per_node = _gpus_per_node(site) if _device(spec, site) == "cuda" else 0
    missing = [
        *_missing_data(spec, site),
        *_missing_weights(spec, site),
        *_missing_gpus(spec, site, gpus_per_node=gpus_per_node),
    ]
    wrong = unwritable(spec.root / Path(site.scratch).expanduser()) if site.scratch else None
    if wrong:
        missing.append(({"scratch": None}, f"scratch cannot be written: {site.scratch}: {wrong}"))
    if site.executor == "local" and site.nodes > 1:
        missing.append(({"nodes": 1}, f"nodes: {site.nodes}, but the local executor runs on this machine alone"))
    if site.executor == "slurm" and site.slurm is None:
        missing.append(({"slurm": {}}, "the slurm executor needs a slurm section, as in experiments/site/slurm.yaml"))
    return tuple(missing)


def run_name(spec: Spec, *, seed: int) -> str:
    """`main` for the row as it is, else what differs, sorted: `optim.base_lr=0.006,seed=3`. At most 80 characters."""
    parts = [f"{change.key}={_slug(change.new)}" for change in spec.changes]
    if seed != spec.row_seed:
        parts.append(f"seed={seed}")
    name = ",".join(sorted(parts)) or "main"
    if len(name) <= RUN_NAME_LENGTH:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: RUN_NAME_LENGTH - 9]}-{digest}"


def until_iteration(until: str | None, *, iterations: int) -> int:
    """The iteration to stop at, of `500` or `5%`; 0 for the run's end. Raises `SpecError` on anything else."""
    if until is None:
        return 0
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", until)
    share = match is not None and match[2] == "%"
    wanted = Fraction(match[1]) * iterations / 100 if match and share else Fraction(match[1]) if match else Fraction(0)
    stop = math.ceil(wanted)
    if not 1 <= stop <= iterations or (not share and stop != wanted):
        raise SpecError(
            f"--until {until!r} is no point of a run of {iterations:,} iterations",
            mend=f"write a share like 5%, or a number from 1 to {iterations}",
        )
    return 0 if stop == iterations else stop


def visible_gpus() -> int:
    """GPUs that a process started here can use: those of CUDA_VISIBLE_DEVICES, else all that the driver lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([entry for entry in visible.split(",") if entry.strip() not in ("", "-1")])
    command = shutil.which("nvidia-smi")
    if command is None:
        return 0
    listed = subprocess.run([command, "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def _make_execution(
    spec: Spec, site: Site, *, device: Literal["cpu", "cuda"], nodes: int, tasks_per_node: int
) -> Execution:
    """What each process is told: its share of the batch, its folders, how it computes; the run goes to its end."""
    recipe, resources = spec.recipe, spec.resources
    processes = nodes * tasks_per_node
    batch = _batch_per_process(spec, site, images=recipe.global_batch // processes)
    hybrid = site.parallel == "hybrid" and nodes > 1
    teacher = recipe.frozen_teacher.row if recipe.frozen_teacher else ""
    return Execution(
        device=device,
        processes=processes,
        batch_per_process=batch,
        accumulation=recipe.global_batch // (processes * batch),
        workers=_workers(site, processes=processes),
        threads=site.threads,
        data_root=_data_root(recipe.data.dataset, site=site, root=spec.root),
        evaluation_root=_data_root(recipe.data.evaluation_dataset, site=site, root=spec.root),
        checkpoint_period_iterations=resources.checkpoint_period_iterations,
        checkpoints_kept=resources.checkpoints_kept,
        log_period_iterations=LOG_PERIOD_ITERATIONS,
        until_iteration=0,
        parallel="ddp" if site.parallel == "ddp" else "fsdp",
        shard_processes=tasks_per_node if hybrid else 0,
        attention=site.attention,
        compile=site.compile and device == "cuda",
        activation_checkpointing=site.activation_checkpointing,
        start_weights=_weights(recipe.start, site=site, root=spec.root),
        teacher_weights=_weights(teacher, site=site, root=spec.root),
        evaluate=site.evaluate,
    )


def _check_site(spec: Spec, site: Site) -> None:
    """Raise one `SiteError` with all that is missing and the lines that mend it."""
    missing = find_missing(spec, site=site)
    if missing:
        mend: dict[str, Any] = {}
        for entry, _ in missing:
            mend = merge(mend, entry)
        raise SiteError(
            f"{spec.name} cannot run on the site {site.name}:" + "".join(f"\n  - {said}" for _, said in missing),
            path=site.paths[0],
            mend=f"write into this file, with what is true here:\n{yaml.safe_dump({site.name: mend})}".rstrip(),
        )


def _missing_data(spec: Spec, site: Site) -> Iterator[Missing]:
    names = {spec.recipe.data.dataset: "to train on", spec.recipe.data.evaluation_dataset: "to evaluate on"}
    for name, purpose in names.items():
        if name in PACKAGED:
            continue
        entry = {"data_roots": {name: f"/path/to/{name}"}}
        folder = _data_root(name, site=site, root=spec.root)
        if not folder:
            yield entry, f"data_roots.{name} is not set: the images {purpose}"
        elif not Path(folder).is_dir():
            yield entry, f"data_roots.{name} is no folder: {folder}"
        elif not any(Path(folder).iterdir()):
            yield entry, f"data_roots.{name} is an empty folder: {folder}"
        elif _is_unindexed(Path(folder)):
            command = f"franca data prepare {name} --root {folder}"
            yield {"data_roots": {name: folder}}, f"data_roots.{name} holds archives without an index; run `{command}`"


def _is_unindexed(folder: Path) -> bool:
    """Whether a data root holds archives that `franca data prepare` has not been through (franca/data/layout.py)."""
    places = ("*.tar", "train/*.tar", "winter21_whole/*.tar")
    return not (folder / ".franca-index" / "train.json").is_file() and any(any(folder.glob(of)) for of in places)


def _missing_weights(spec: Spec, site: Site) -> Iterator[Missing]:
    recipe = spec.recipe
    wanted = {
        recipe.start: "this row begins with them",
        recipe.frozen_teacher and recipe.frozen_teacher.row: "its teacher",
    }
    for row, purpose in wanted.items():
        if not row:
            continue
        entry = {"weights": {row: f"/path/to/{row}.safetensors"}}
        file = _weights(row, site=site, root=spec.root)
        if not file:
            yield entry, f"weights.{row} is not set: {purpose}; `franca consolidate` makes this file of a run"
        elif not Path(file).is_file():
            yield entry, f"weights.{row} is no file: {file}"


def _missing_gpus(spec: Spec, site: Site, *, gpus_per_node: int) -> Iterator[Missing]:
    documented = f"the documents have {spec.resources.gpus} × {spec.resources.gpu}" if spec.resources.gpus else ""
    if documented and site.device == "cpu":
        yield {"device": "auto"}, f"device: cpu, but the row needs a GPU; {documented}"
    elif _device(spec, site) == "cuda" and not gpus_per_node:
        yield {"gpus_per_node": 1}, "; ".join(filter(None, ["no GPU is seen", documented]))


def _device(spec: Spec, site: Site) -> Literal["cpu", "cuda"]:
    if site.device == "auto":
        return "cuda" if spec.resources.gpus else "cpu"
    return site.device


def _gpus_per_node(site: Site) -> int:
    if site.gpus_per_node is None:
        return visible_gpus() if site.executor == "local" else 0
    return site.gpus_per_node


def _layout(spec: Spec, site: Site, *, device: Literal["cpu", "cuda"]) -> tuple[int, int]:
    """(nodes, processes on each): the most processes, up to the documented GPUs, that divide the global batch.

    As few nodes as hold them. Without GPUs the site says how many share the run.
    """
    per_node = (_gpus_per_node(site) if device == "cuda" else site.processes_per_node) or 0
    most = 1 if not per_node else site.nodes * per_node if device == "cpu" else max(spec.resources.gpus, 1)
    fitting = [
        (nodes * tasks, -nodes, tasks)
        for nodes in range(1, site.nodes + 1)
        for tasks in range(1, max(per_node, 1) + 1)
        if nodes * tasks <= most and spec.recipe.global_batch % (nodes * tasks) == 0
    ]
    _, nodes, tasks = max(fitting)
    return -nodes, tasks


def _batch_per_process(spec: Spec, site: Site, *, images: int) -> int:
    """The largest divisor of a process's images that is at most the documented batch and fits into the memory.

    It holds whole groups of KoLeo's neighbors, or lies within one.
    """
    most = min(spec.resources.batch_per_gpu, site.batch_per_gpu_max or spec.resources.batch_per_gpu, images)
    group = koleo_group(spec.recipe)
    fitting = (size for size in range(1, most + 1) if images % size == 0 and 0 in (size % group, group % size))
    return max(fitting)


def _workers(site: Site, *, processes: int) -> int:
    """The site's, but on this machine at most the cores that the training processes leave free."""
    if site.executor == "slurm":
        return site.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(site.workers, max(1, cores // processes - 1))


def _data_root(name: str, *, site: Site, root: Path) -> str:
    """The folder of a data set, absolute; empty for one that ships with a package or that the site lacks."""
    folder = site.data_roots.get(name)
    return "" if folder is None or name in PACKAGED else str(root / Path(folder).expanduser())


def _weights(row: str, *, site: Site, root: Path) -> str:
    """The absolute path of a row's weights on the site; empty where no row is meant or the site has none."""
    file = site.weights.get(row)
    return "" if file is None else str(root / Path(file).expanduser())


def _notes(spec: Spec, execution: Execution) -> Iterator[str]:
    """What differs from the documented machine, and what it can change."""
    resources = spec.resources
    if resources.gpus and execution.processes != resources.gpus:
        yield (
            f"{execution.processes} {'GPU' if execution.processes == 1 else 'GPUs'} in place of {resources.gpus}: "
            f"{execution.batch_per_process} images on each, {execution.accumulation} times per iteration"
        )
    group = koleo_group(spec.recipe)
    if execution.accumulation > 1 and execution.batch_per_process < group:
        yield (
            f"KoLeo's {group} images come in parts of {execution.batch_per_process}: the student sees the global crops "
            f"of an iteration twice, so that every neighbor is found"
        )


def _slug(value: Any) -> str:
    """A value as a part of a folder's name; of a mapping its row, if it names one, and a digest of all."""
    if isinstance(value, Mapping):
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
        return "-".join(filter(None, (_slug(value.get("row", "")), digest)))
    if isinstance(value, list):
        return "+".join(_slug(item) for item in value) or "none"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)
