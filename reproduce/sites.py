"""A site's name in, the `Site` out: the shipped file with what the user's own says on top, validated."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from franca.config import Backend
from reproduce.compose import find_root
from reproduce.errors import SiteError, SpecError
from reproduce.places import Document, Place, did_you_mean, load_document
from reproduce.validate import load_schema, validate


@dataclass(frozen=True)
class Evaluation:
    """What differs for a job that evaluates, on one GPU; None is as the training has it, of memory its share."""

    partition: str | None = None
    timeout_min: int | None = None
    cpus: int | None = None
    mem_gb: int | None = None


@dataclass(frozen=True)
class Slurm:
    """What `sbatch` is told beyond nodes, tasks and GPUs.

    `setup` are shell lines that run before the trainer, `environment` are variables that it gets.
    """

    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    timeout_min: int
    signal_delay_s: int
    cpus_per_task: int
    mem_gb_per_node: int | None
    setup: tuple[str, ...]
    environment: Mapping[str, str | int]
    additional_parameters: Mapping[str, str | int | bool]
    evaluation: Evaluation = Evaluation()


@dataclass(frozen=True)
class Container:
    """An image in which processes run: `RUNTIME exec OPTIONS --bind ... IMAGE PYTHON -m franca.train ...`.

    `mounts` are folders that it sees beside the project, the data, the weights and `scratch`.
    """

    image: str
    runtime: str = "apptainer"
    python: str = "python3"
    options: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Site:
    """A machine or cluster. `device` auto is `cuda` for rows that document GPUs and `cpu` for the rest.

    gpus_per_node: None counts those that the driver lists. processes_per_node: those that share a run without GPUs;
    None is one in all. batch_per_gpu_max: images that fit in one GPU's memory; None trusts the row's documented batch.
    paths: the files that a user edits to change the site, most specific first. scratch: the folder that all nodes see
    in which checkpoints lie; None is each run's own. evaluate: inline, while training waits, or apart, by a job beside.
    """

    name: str
    executor: Literal["local", "slurm"]
    device: Literal["auto", "cpu", "cuda"]
    nodes: int
    gpus_per_node: int | None
    processes_per_node: int | None
    batch_per_gpu_max: int | None
    workers: int
    threads: int
    data_roots: Mapping[str, str | None]
    parallel: Literal["fsdp", "hybrid", "ddp"]
    attention: Backend
    compile: bool
    activation_checkpointing: bool
    weights: Mapping[str, str]
    slurm: Slurm | None
    paths: tuple[Path, ...]
    container: Container | None = None
    scratch: str | None = None
    evaluate: Literal["inline", "apart"] = "inline"


def load_site(name: str | None = None, *, root: Path | None = None) -> Site:
    """The site of `experiments/site/<name>.yaml`, with what `site.yaml` at the project's root says under its name.

    Without a name: the one that `site.yaml` names as its `default`, else `local`. Raises `SiteError` with its line.
    """
    root = find_root(root)
    try:
        mine = load_document(root / "site.yaml", may_be_empty=True) if (root / "site.yaml").is_file() else None
        name = _site_name(name, mine=mine, root=root)
        shipped = load_document(root / "experiments" / "site" / f"{name}.yaml")
        return _make_site(name, shipped=shipped, mine=mine, root=root)
    except SpecError as error:
        raise SiteError(error.message, path=error.path, line=error.line, mend=error.mend) from error


def _site_name(name: str | None, *, mine: Document | None, root: Path) -> str:
    """The site to load; `site.yaml` may hold no key but `default` and the names of sites."""
    known = sorted(path.stem for path in (root / "experiments" / "site").glob("*.yaml"))
    for key in mine.content if mine else ():
        if mine and key not in (*known, "default"):
            place = Place(mine.path, mine.lines[str(key)])
            mend = did_you_mean(str(key), [*known, "default"])
            if key in Site.__dataclass_fields__:
                mend = f"it is a key of a site: write it below `local:`, or below another of {', '.join(known)}"
            raise SiteError(f"unknown site {key}", path=place.path, line=place.line, mend=mend)
    chosen = name or (str(mine.content.get("default", "local")) if mine else "local")
    if chosen not in known:
        path, line = (mine.path, mine.lines["default"]) if mine and not name else (root / "experiments" / "site", None)
        raise SiteError(f"unknown site {chosen}", path=path, line=line, mend=did_you_mean(chosen, known))
    return chosen


def _make_site(name: str, *, shipped: Document, mine: Document | None, root: Path) -> Site:
    """Merge the shipped file with the user's, validate, convert."""
    own = mine.content.get(name, {}) if mine else {}
    if mine and not isinstance(own, Mapping):
        mend = f"write keys of experiments/site/{name}.yaml below it"
        raise SiteError(f"{name} is no mapping", path=mine.path, line=mine.lines[name], mend=mend)
    content = merge(shipped.content, own)

    def place_of(key: str) -> Place:
        while key:
            if mine and f"{name}.{key}" in mine.lines:
                return Place(mine.path, mine.lines[f"{name}.{key}"])
            if key in shipped.lines:
                return Place(shipped.path, shipped.lines[key])
            key = key.rpartition("[" if key.endswith("]") else ".")[0]
        return Place(shipped.path, 1)

    definitions = load_schema(root)["$defs"]
    validate(content, schema=definitions["site"], definitions=definitions, place_of=place_of)
    slurm, container = content.pop("slurm", None), content.pop("container")
    return Site(
        name=name,
        **content,
        slurm=_make_slurm(slurm) if slurm else None,
        container=Container(**{key: _frozen(value) for key, value in container.items()}) if container else None,
        paths=(root / "site.yaml", shipped.path),
    )


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _make_slurm(content: Mapping[str, Any]) -> Slurm:
    evaluation = Evaluation(**content["evaluation"])
    return Slurm(**{**content, "setup": tuple(content["setup"]), "evaluation": evaluation})


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the keys of `above`, mapping by mapping."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
