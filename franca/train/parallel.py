"""A run's configuration in; its networks out: built, spread over the run's processes, and given their first values."""

from pathlib import Path

import torch
from torch import nn

from franca.config import ConfigError, TrainConfig
from franca.distributed import make_mesh, replicate, shard, world_size
from franca.evaluate.teacher import file_sha256
from franca.models.attention import choose_backend
from franca.models.vit import VisionTransformer
from franca.models.weights import WeightsError, load_backbone, load_head, load_weights
from franca.train.metrics import LOG
from franca.train.self_distillation import DTYPES, HEADS, SelfDistillation


def make_model(config: TrainConfig, *, device: torch.device, generator: torch.Generator) -> SelfDistillation:
    """The networks of a run on `device`, with first values that depend on `generator` alone.

    Made on the meta device, so that no process ever holds more than its share and one whole tensor. A frozen teacher's
    values are not numbers before `load_frozen_teacher` has given them.
    """
    precision = config.recipe.precision.backbone
    dtype = DTYPES[precision] if device.type == "cuda" else torch.float32
    execution = config.execution
    backend = choose_backend(execution.attention, device=device, dtype=dtype, compiled=execution.compile)
    LOG.info("attention: %s", backend)
    with torch.device("meta"):
        model = SelfDistillation(config.recipe, attention=backend, recompute=execution.activation_checkpointing)
    if execution.compile:
        compile_blocks(model)
    if world_size() > 1 and execution.parallel == "fsdp":
        spread(model, config=config, device=device)
    model.to_empty(device=device)
    for tensor in model.state_dict().values():
        tensor.fill_(torch.nan)  # one that is forgotten below shows at the first step
    model.init_weights(generator)
    return model


def wrap(model: SelfDistillation, *, config: TrainConfig) -> nn.Module:
    """What is called in place of the model: itself, or DDP around it where every process holds it whole.

    DDP reduces every gradient as the recipe says of backbones, those of heads too.
    """
    if world_size() == 1 or config.execution.parallel == "fsdp":
        return model
    on_cpu = next(model.parameters()).device.type == "cpu"  # which computes in float32
    return replicate(model, reduce=torch.float32 if on_cpu else DTYPES[config.recipe.precision.reduce])


def spread(model: SelfDistillation, *, config: TrainConfig, device: torch.device) -> None:
    """Shard every network, block by block, in the precision that the recipe gives to its parts (FSDP2).

    Backbones compute and reduce as the recipe says; heads compute as it says, and reduce in float32 (franca/configs
    ssl_default_config.yaml@24f8c60: the student heads' `reduce_dtype`). A CPU computes in float32.
    """
    mesh = make_mesh(device, shard_processes=config.execution.shard_processes)
    precision, mixed = config.recipe.precision, device.type == "cuda"
    backbone = {
        "compute": DTYPES[precision.backbone] if mixed else None,
        "reduce": DTYPES[precision.reduce] if mixed else None,
    }
    head = {"compute": DTYPES[precision.heads] if mixed else None, "reduce": torch.float32 if mixed else None}
    for networks in _networks(model):
        for block in networks["backbone"].blocks:
            shard(block, mesh=mesh, **backbone)
        shard(networks["backbone"], mesh=mesh, methods=("forward_packed",), **backbone)
        for name in HEADS:
            shard(networks[name], mesh=mesh, methods=("bottlenecks", "classify"), **head)
    model.autocast = False


def compile_blocks(model: SelfDistillation) -> None:
    """Have torch compile the blocks of the networks, each for the shapes that it meets."""
    for networks in _networks(model):
        for block in networks["backbone"].blocks:
            block.compile(dynamic=False)


def load_start(model: SelfDistillation, *, config: TrainConfig) -> None:
    """Replace first values by those of the row that the recipe starts from, if it names one.

    A file of a whole run gives its student to the student and its teacher to the teacher; one of a single network is
    given to both. Positions are resampled to the run's grid. Raises `ConfigError` and `WeightsError` on what the recipe
    names and the site lacks.
    """
    if not config.recipe.start:
        return
    path = _weights_path(config.execution.start_weights, key="start_weights", row=config.recipe.start)
    weights = load_weights(path)
    students = {
        name.removeprefix("student."): tensor for name, tensor in weights.items() if name.startswith("student.")
    }
    load_networks(model.teacher, weights, path=path, heads_required=False)
    load_networks(model.student, students or weights, path=path, heads_required=False)
    LOG.info("starting from: %s, SHA-256 %s", path, file_sha256(path))


def make_untrained(config: TrainConfig, *, generator: torch.Generator) -> VisionTransformer:
    """The teacher's backbone before the first iteration, on the CPU: what `make_model` and `load_start` give it.

    Backbones are the first that `make_model` gives values to, so a generator of the same seed gives them these.
    """
    recipe = config.recipe
    backbone = VisionTransformer(recipe.model, grid=recipe.crops.global_px // recipe.model.patch_px)
    backbone.init_weights(generator)
    if recipe.start:
        path = _weights_path(config.execution.start_weights, key="start_weights", row=recipe.start)
        try:
            load_backbone(backbone, load_weights(path), interpolate=True)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error
    return backbone.eval()


def load_frozen_teacher(model: SelfDistillation, *, config: TrainConfig) -> str:
    """Load the teacher of a distillation, at every launch: checkpoints leave it out. Its file's SHA-256, or nothing.

    Raises as `load_start` does.
    """
    if not config.recipe.frozen_teacher:
        return ""
    assert model.frozen_teacher is not None
    row = config.recipe.frozen_teacher.row
    path = _weights_path(config.execution.teacher_weights, key="teacher_weights", row=row)
    load_networks(model.frozen_teacher, load_weights(path), path=path, heads_required=True)
    digest = file_sha256(path)
    LOG.info("frozen teacher: %s, SHA-256 %s", path, digest)
    return digest


def load_networks(
    networks: nn.ModuleDict, weights: dict[str, torch.Tensor], *, path: Path, heads_required: bool
) -> None:
    """Copy a backbone and its heads. A file without heads will do unless they are required: theirs stay random."""
    try:
        load_backbone(networks["backbone"], weights, interpolate=True)
        for name in HEADS:
            if heads_required or any(f"{name}." in key for key in weights):
                load_head(networks[name], weights, name=name)
            else:
                LOG.warning("%s holds no %s: it starts from random values", path, name)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def _networks(model: SelfDistillation) -> list[nn.ModuleDict]:
    return [networks for networks in (model.student, model.teacher, model.frozen_teacher) if networks is not None]


def _weights_path(text: str, *, key: str, row: str) -> Path:
    if not text:
        raise ConfigError(
            f"execution.{key}: the recipe needs the weights of {row}; `franca consolidate` makes the file of a run, "
            f"and the site's `weights` names it"
        )
    return Path(text)
