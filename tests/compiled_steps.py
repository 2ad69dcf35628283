"""Run by test_compile.py without the hook that checks shapes, which torch.compile cannot see through.

Prints, for the same steps eager, compiled, and with activations recomputed, every loss and how far gradients differ.
"""

import json
import sys

import torch
from recipes import make_recipe, make_train_config

from franca.data.datasets import load_dataset
from franca.data.loader import make_loader
from franca.train.loop import accumulate_gradients
from franca.train.optim import make_scaler
from franca.train.parallel import make_model, wrap
from franca.train.self_distillation import make_views

CPU = torch.device("cpu")
RECIPE = make_recipe(global_batch=8, model={"embed_dim": 32, "drop_path": 0.3, "layerscale": 0.5, "ffn": "swiglu"})


def compute(**execution: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Logged terms and the student's gradients of one step."""
    config = make_train_config(RECIPE, **execution)
    model = make_model(config, device=CPU, generator=torch.Generator().manual_seed(0))
    batches = make_loader(config, load_dataset("digits", root="", split="train"), start_iteration=0)
    losses = accumulate_gradients(
        model,
        [make_views(next(batches), device=CPU)],
        caller=wrap(model, config=config),
        temperature=0.05,
        scaler=make_scaler(RECIPE.precision, device=CPU),
        dropped_paths=torch.Generator(),
        seed=(0, 2, 0),
    )
    gradients = {name: parameter.grad for name, parameter in model.student.named_parameters()}
    return [value.item() for value in losses.values()], gradients


def main() -> None:
    """One JSON line: for each way its losses, and the largest difference of a gradient by its largest value."""
    eager, gradients = compute()
    result = {"eager": {"losses": eager, "difference": 0.0}}
    ways = {
        "compiled": {"compile": True},
        "recomputed": {"activation_checkpointing": True},
        "both": {"compile": True, "activation_checkpointing": True},
    }
    for name, execution in ways.items():
        torch._dynamo.reset()
        losses, found = compute(**execution)
        differences = [
            ((found[key] - value).abs().max() / value.abs().max().clamp(min=1e-12)).item()
            for key, value in gradients.items()
        ]
        result[name] = {"losses": losses, "difference": max(differences)}
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
