"""A run's configuration in, what it would take out: the model is built on the meta device and counted, not trained."""

import torch
from torch import nn

from franca.config import TrainConfig
from franca.flops import peak_tflops, step_flops
from franca.memory import checkpoint_bytes, plan_memory
from franca.train.self_distillation import SelfDistillation


def plan_run(config: TrainConfig) -> dict[str, object]:
    """Parameters as the built modules have them, FLOPs, bytes of memory and of a checkpoint, ready for JSON.

    Memory is that of one process, by part; `peak_tflops` is None where the device here is no GPU that is known.
    """
    recipe, execution = config.recipe, config.execution
    with torch.device("meta"):
        model = SelfDistillation(recipe)
    flops = step_flops(recipe, images=execution.batch_per_process)
    memory = plan_memory(recipe, execution)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "row": config.row,
        "parameters": {
            **{name: count_values(module) for name, module in model.student.items()},
            "trainable": count_values(model.student),
            "total": count_values(model),
        },
        "flops_per_image": {**vars(flops), "total": flops.total},
        "memory": {**vars(memory), "total": memory.total},
        "checkpoint_bytes": checkpoint_bytes(recipe),
        "device": device,
        "peak_tflops": peak_tflops(device, precision=recipe.precision.backbone),
    }


def count_values(module: nn.Module) -> int:
    """The number of a module's parameters' values; a parameter that it holds twice counts once."""
    return sum(parameter.numel() for parameter in module.parameters())
