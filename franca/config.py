"""The configuration that trainer and harness share: frozen dataclasses in, plain mappings out. Pure: no torch.

A `Recipe` is the part of an experiment that determines its result; `Execution` is the part that must not. A
`TrainConfig` is what a run folder's `config.yaml` holds. Every length of time is in iterations, every size in pixels.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar

import yaml

T = TypeVar("T")

Precision = Literal["fp32", "bf16", "fp16"]
Backend = Literal["auto", "sdpa", "xformers", "varlen"]

# Marks a key that recipes got after rows were locked. At its default the recipe is what it was, and so is its
# fingerprint; a default, once given, is never changed.
LATER = {"later": True}


class ConfigError(ValueError):
    """A mapping that is not a configuration; the message names the dotted key and, where one is near, the right one."""


@dataclass(frozen=True)
class Model:
    """A vision transformer. `ffn_ratio` is hidden / embed_dim before SwiGLU's two-thirds rule (rounded up to 8).

    `interpolate_antialias` is how positions are resampled to another grid: on in DINOv2's models with registers.
    """

    patch_px: int
    embed_dim: int
    depth: int
    heads: int
    ffn: Literal["mlp", "swiglu"]
    ffn_ratio: float
    registers: int
    layerscale: float
    drop_path: float
    interpolate_offset: float
    interpolate_antialias: bool = field(default=False, metadata=LATER)


@dataclass(frozen=True)
class Data:
    """The training set and the one k-NN is evaluated on. Where the files lie is the site's business."""

    dataset: Literal["digits", "imagenet1k", "imagenet21k", "laion600m", "folder"]
    images: int
    classes: int
    evaluation_dataset: Literal["digits", "imagenet1k"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Crops:
    """Multi-crop: two global crops and `local_number` local ones. Scales are shares of the image's area."""

    global_px: int
    global_scale: tuple[float, float]
    local_number: int
    local_px: int
    local_scale: tuple[float, float]


@dataclass(frozen=True)
class Augment:
    """Photometric augmentation. `jitter` is brightness, contrast, saturation, hue; blur is listed per kind of crop."""

    flip_probability: float
    jitter: tuple[float, float, float, float]
    jitter_probability: float
    gray_probability: float
    blur_probability_global_1: float
    blur_probability_global_2: float
    blur_probability_local: float
    blur_sigma: tuple[float, float]
    solarize_probability_global_2: float


@dataclass(frozen=True)
class Masking:
    """Patch masks of iBOT. `cyclic` is an inverse block rolled by a random offset (Franca's CyclicMask)."""

    kind: Literal["block", "inverse_block", "cyclic"]
    ratio: tuple[float, float]
    sample_probability: float


@dataclass(frozen=True)
class Head:
    """A projection head: an MLP of `layers` layers to `bottleneck`, then a weight-normed layer to `prototypes`."""

    prototypes: int
    hidden: int
    bottleneck: int
    layers: int


@dataclass(frozen=True)
class Heads:
    """Untied heads. `nesting` lists the Matryoshka widths, narrowest first; empty means one plain head."""

    dino: Head
    ibot: Head
    nesting: tuple[int, ...]


@dataclass(frozen=True)
class Losses:
    """Weights and temperatures. `koleo_images` is among how many images of the batch KoLeo seeks neighbors.

    0 is the whole global batch; the published code takes the images of one GPU.
    """

    dino_weight: float
    ibot_weight: float
    koleo_weight: float
    student_temperature: float
    centering: Literal["sinkhorn", "softmax"]
    sinkhorn_iterations: int
    koleo_images: int = field(default=0, metadata=LATER)


@dataclass(frozen=True)
class Teacher:
    """EMA momentum (cosine from start to end) and temperature (linear warm-up, then constant)."""

    momentum_start: float
    momentum_end: float
    temperature_start: float
    temperature_end: float
    temperature_warmup_iterations: int


@dataclass(frozen=True)
class Optim:
    """AdamW. The peak learning rate is `base_lr`, or `base_lr * sqrt(global_batch / 1024)` under `sqrt_1024`.

    `nonfinite_skips` steps with a loss or gradient that is not finite are left out before the next one ends the run.
    """

    base_lr: float
    scaling: Literal["sqrt_1024", "none"]
    min_lr: float
    warmup_iterations: int
    betas: tuple[float, float]
    weight_decay_start: float
    weight_decay_end: float
    clip_norm: float
    layerwise_decay: float
    patch_embed_lr_multiplier: float
    freeze_last_layer_iterations: int
    nonfinite_skips: int = field(default=0, metadata=LATER)


@dataclass(frozen=True)
class Precisions:
    """Computing dtype per module and the dtype in which gradients are reduced across processes."""

    backbone: Precision
    heads: Precision
    reduce: Precision
    grad_scaler: bool


@dataclass(frozen=True)
class Evaluation:
    """The k-NN evaluation of the teacher inside the run."""

    period_iterations: int
    knn_k: tuple[int, ...]
    knn_temperature: float


@dataclass(frozen=True)
class Quirks:
    """What upstream's code did and its paper does not say. Off by default, on in rows that must match a published log.

    blur_inverted: blur is applied with probability 1 - p (dinov2, dinov3 and Franca).
    matryoshka_full_input: every level projects the full feature instead of its first m dims (valeoai/Franca@24f8c60).
    head_unnormalized: no L2 norm before the prototypes and one more GELU after the bottleneck (valeoai/Franca@24f8c60).
    sinkhorn_padding_rows: zero-padded iBOT rows enter Sinkhorn-Knopp (valeoai/Franca ssl_meta_arch.py@24f8c60).
    sinkhorn_unscaled: the DINO Sinkhorn omits its first division by the global sum (valeoai/Franca@24f8c60).
    koleo_half: KoLeo is computed in half precision (dinov2, Franca).
    data_replayed_on_resume: a resumed run starts again with the first sample (valeoai/Franca, `sampler_advance=0`).
    """

    blur_inverted: bool = False
    matryoshka_full_input: bool = False
    head_unnormalized: bool = False
    sinkhorn_padding_rows: bool = False
    sinkhorn_unscaled: bool = False
    koleo_half: bool = False
    data_replayed_on_resume: bool = False


@dataclass(frozen=True)
class FrozenTeacher:
    """Distillation: the row whose trained teacher gives the targets, and that teacher's model."""

    row: str
    model: Model


@dataclass(frozen=True)
class Recipe:
    """What determines the result of a run, up to its seed.

    `start` is the row whose trained networks this one begins with, as the high-resolution stage does; empty for random
    first values. With a `frozen_teacher` the student sees whole crops, is compared on all their patches, and its
    average is what is kept.
    """

    iterations: int
    global_batch: int
    model: Model
    data: Data
    crops: Crops
    augment: Augment
    masking: Masking
    heads: Heads
    losses: Losses
    teacher: Teacher
    optim: Optim
    precision: Precisions
    evaluation: Evaluation
    quirks: Quirks
    start: str = field(default="", metadata=LATER)
    frozen_teacher: FrozenTeacher | None = field(default=None, metadata=LATER)


@dataclass(frozen=True)
class Execution:
    """What must not change the result: where and how the recipe is run.

    `until_iteration` ends the process early, schedules unchanged; 0 means the recipe's end. `data_root` is a folder,
    or empty for a dataset that ships with a package. Several processes hold the model in shards (`fsdp`) or whole
    (`ddp`); `shard_processes` of them share one sharded copy, 0 is all. `start_weights` and `teacher_weights` are the
    files of the recipe's `start` and `frozen_teacher`. Evaluated `apart`, training only writes its teachers, and
    `franca evaluate RUN --follow` measures them beside it. A step that takes more than `hang_s` seconds is given up,
    with the stacks of all processes; 0 waits for ever.
    """

    device: Literal["cpu", "cuda"]
    processes: int
    batch_per_process: int
    accumulation: int
    workers: int
    threads: int
    data_root: str
    evaluation_root: str
    checkpoint_period_iterations: int
    checkpoints_kept: int
    log_period_iterations: int
    until_iteration: int
    parallel: Literal["fsdp", "ddp"] = "fsdp"
    shard_processes: int = 0
    attention: Backend = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    start_weights: str = ""
    teacher_weights: str = ""
    evaluate: Literal["inline", "apart"] = "inline"
    hang_s: int = 1500  # less than the 30 minutes after which a collective gives up (franca/distributed.py)


@dataclass(frozen=True)
class TrainConfig:
    """One run: `config.yaml` of a run folder. `fingerprint` is that of the recipe."""

    row: str
    version: int
    fingerprint: str
    seed: int
    recipe: Recipe
    execution: Execution


def peak_lr(recipe: Recipe) -> float:
    """The learning rate after warm-up (dinov2 `apply_scaling_rules_to_cfg`, rule `sqrt_wrt_1024`)."""
    if recipe.optim.scaling == "none":
        return recipe.optim.base_lr
    return recipe.optim.base_lr * math.sqrt(recipe.global_batch / 1024)


def koleo_group(recipe: Recipe) -> int:
    """Among how many images KoLeo seeks neighbors."""
    return recipe.losses.koleo_images or recipe.global_batch


def prototypes_per_level(head: Head, nesting: tuple[int, ...]) -> tuple[int, ...]:
    """Prototypes of each nesting level, narrowest first: in proportion to its width; one level where none is nested."""
    if not nesting:
        return (head.prototypes,)
    return tuple(head.prototypes * width // nesting[-1] for width in nesting)


def recipe_fingerprint(recipe: Recipe) -> str:
    """The first 16 hex digits of the SHA-256 of the recipe as canonical JSON: equal recipes, equal fingerprints."""
    text = json.dumps(to_mapping(recipe, omit_later=True), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def to_mapping(config: Any, *, omit_later: bool = False) -> Any:
    """A dataclass as nested dicts and lists that YAML and JSON can hold.

    `omit_later` leaves out the keys that recipes got later (`LATER`) where they have their default.
    """
    if dataclasses.is_dataclass(config):
        return {
            item.name: to_mapping(getattr(config, item.name), omit_later=omit_later)
            for item in dataclasses.fields(config)
            if not (omit_later and item.metadata == LATER and getattr(config, item.name) == item.default)
        }
    if isinstance(config, tuple):
        return [to_mapping(item) for item in config]
    return config


def make_config(kind: type[T], mapping: Any, *, key: str = "") -> T:
    """Build dataclass `kind` from a nested mapping. Raises `ConfigError` on an unknown, missing or mistyped key."""
    return typing.cast(T, _convert(kind, mapping, key))


def load_config(path: Path) -> TrainConfig:
    """Read a run's `config.yaml`. Raises `ConfigError` naming the file and the key."""
    try:
        return make_config(TrainConfig, yaml.safe_load(path.read_text()))
    except (ConfigError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def dump_config(config: TrainConfig) -> str:
    """The text of `config.yaml`; `load_config` of it gives an equal configuration."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False)


def _convert(kind: Any, value: Any, key: str) -> Any:
    """One value checked against its annotation and converted; lists become tuples, ints are taken for floats."""
    origin = typing.get_origin(kind)
    if origin is UnionType:  # `X | None` is the only union here
        (kind,) = (part for part in typing.get_args(kind) if part is not NoneType)
        return None if value is None else _convert(kind, value, key)
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(kind, value, key)
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise ConfigError(f"{key}: {value!r} is not one of {', '.join(map(repr, typing.get_args(kind)))}")
        return value
    if origin is tuple:
        return _convert_tuple(typing.get_args(kind), value, key)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{key}: {value!r} is not of type {kind.__name__}")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{key}: {value!r} is not finite")
    return value


def _convert_tuple(kinds: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{key}: {value!r} is not a list")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ConfigError(f"{key}: {len(value)} values where {len(kinds)} belong")
    return tuple(_convert(kind, item, f"{key}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _convert_dataclass(kind: Any, value: Any, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key or 'the file'}: a mapping belongs here, not {type(value).__name__}")
    hints = typing.get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            raise ConfigError(f"unknown key {prefix}{name}" + (f" (did you mean {prefix}{near[0]}?)" if near else ""))
    for name, item in fields.items():
        if name not in value and item.default is dataclasses.MISSING:
            raise ConfigError(f"missing key {prefix}{name}")
    return kind(**{name: _convert(hints[name], item, f"{prefix}{name}") for name, item in value.items()})
