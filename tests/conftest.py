"""Shapes in signatures are checked in tests: jaxtyping and beartype, installed before any module of `franca` loads."""

import signal

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("franca", "beartype.beartype")

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")

# A shell starts its background jobs with Ctrl-C ignored, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several workers share the tests, one of them has the cluster: some tests crash its nodes."""
    for item in items:
        if item.get_closest_marker("slurm"):
            item.add_marker(pytest.mark.xdist_group("slurm"))
