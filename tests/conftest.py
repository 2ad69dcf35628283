"""Shapes in signatures are checked in tests: jaxtyping and beartype, installed before any module of `franca` loads."""

import fcntl
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("franca", "beartype.beartype")

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")

# A shell starts its background jobs with Ctrl-C ignored, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def alone_on_the_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where several workers share the tests, one at a time has the cluster: some tests crash its nodes."""
    if request.node.get_closest_marker("slurm") is None:
        yield
        return
    with (Path(tempfile.gettempdir()) / "franca-slurm-tests.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # not xdist's groups: its release 3.8 does not keep them together
        yield
