"""One small recipe on the digits, and the configuration of a run of it, for the tests of the trainer."""

from typing import Any

from franca.config import Recipe, TrainConfig, make_config, recipe_fingerprint, to_mapping

RECIPE: dict[str, Any] = {
    "iterations": 100,
    "global_batch": 64,
    "model": {
        "patch_px": 4,
        "embed_dim": 48,
        "depth": 2,
        "heads": 2,
        "ffn": "mlp",
        "ffn_ratio": 4.0,
        "registers": 0,
        "layerscale": 1e-5,
        "drop_path": 0.0,
        "interpolate_offset": 0.1,
    },
    "data": {
        "dataset": "digits",
        "images": 1347,
        "classes": 10,
        "evaluation_dataset": "digits",
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
    },
    "crops": {
        "global_px": 16,
        "global_scale": [0.4, 1.0],
        "local_number": 4,
        "local_px": 8,
        "local_scale": [0.1, 0.4],
    },
    "augment": {
        "flip_probability": 0.0,
        "jitter": [0.4, 0.4, 0.2, 0.1],
        "jitter_probability": 0.8,
        "gray_probability": 0.2,
        "blur_probability_global_1": 1.0,
        "blur_probability_global_2": 0.1,
        "blur_probability_local": 0.5,
        "blur_sigma": [0.1, 2.0],
        "solarize_probability_global_2": 0.2,
    },
    "masking": {"kind": "block", "ratio": [0.1, 0.5], "sample_probability": 0.5},
    "heads": {
        "dino": {"prototypes": 64, "hidden": 32, "bottleneck": 16, "layers": 3},
        "ibot": {"prototypes": 64, "hidden": 32, "bottleneck": 16, "layers": 3},
        "nesting": [],
    },
    "losses": {
        "dino_weight": 1.0,
        "ibot_weight": 1.0,
        "koleo_weight": 0.1,
        "student_temperature": 0.1,
        "centering": "sinkhorn",
        "sinkhorn_iterations": 3,
    },
    "teacher": {
        "momentum_start": 0.992,
        "momentum_end": 1.0,
        "temperature_start": 0.04,
        "temperature_end": 0.07,
        "temperature_warmup_iterations": 30,
    },
    "optim": {
        "base_lr": 0.004,
        "scaling": "sqrt_1024",
        "min_lr": 1e-6,
        "warmup_iterations": 10,
        "betas": [0.9, 0.999],
        "weight_decay_start": 0.04,
        "weight_decay_end": 0.4,
        "clip_norm": 3.0,
        "layerwise_decay": 0.9,
        "patch_embed_lr_multiplier": 0.2,
        "freeze_last_layer_iterations": 5,
    },
    "precision": {"backbone": "fp32", "heads": "fp32", "reduce": "fp32", "grad_scaler": False},
    "evaluation": {"period_iterations": 50, "knn_k": [10], "knn_temperature": 0.07},
    "quirks": {},
}


def make_recipe(**changes: Any) -> Recipe:
    """The small recipe with some keys replaced; a group's keys are merged (`optim={"base_lr": 1e-3}`)."""
    mapping = dict(RECIPE)
    for key, value in changes.items():
        mapping[key] = {**RECIPE.get(key, {}), **value} if isinstance(value, dict) else value
    return make_config(Recipe, mapping)


def make_train_config(recipe: Recipe, *, seed: int = 0, **execution: Any) -> TrainConfig:
    """A run of `recipe` in one process on one CPU thread, without loader workers."""
    mapping = {
        "device": "cpu",
        "processes": 1,
        "batch_per_process": recipe.global_batch,
        "accumulation": 1,
        "workers": 0,
        "threads": 1,
        "data_root": "",
        "evaluation_root": "",
        "checkpoint_period_iterations": 50,
        "checkpoints_kept": 2,
        "log_period_iterations": 10,
        "until_iteration": 0,
        **execution,
    }
    return make_config(
        TrainConfig,
        {
            "row": "digits",
            "version": 1,
            "fingerprint": recipe_fingerprint(recipe),
            "seed": seed,
            "recipe": to_mapping(recipe),
            "execution": mapping,
        },
    )
