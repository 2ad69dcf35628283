"""The trainer: self-supervised pretraining of vision transformers, launched from a run folder's `config.yaml`.

`franca.load` gives what was trained, here or upstream.
"""


def __getattr__(name: str) -> object:
    """`franca.load`, which needs torch; importing the package does not."""
    if name != "load":
        raise AttributeError(f"module 'franca' has no attribute {name!r}")
    from franca.hub import load

    return load
