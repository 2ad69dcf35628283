"""The trainer: self-supervised pretraining of vision transformers, launched from a run folder's `config.yaml`.

`franca.load` gives what was trained, here or upstream.
"""


def __getattr__(name: str) -> object:
    """`franca.load`, which needs torch; importing the package does not, nor does checking its types."""
    import importlib

    if name != "load":
        raise AttributeError(f"module 'franca' has no attribute {name!r}")
    return importlib.import_module("franca.hub").load
