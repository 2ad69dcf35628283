"""Shapes in signatures are checked in tests: jaxtyping and beartype, installed before any module of `franca` loads."""

import fcntl
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# The workers of a session share the cores: with a thread for each core in each worker, threads wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

install_import_hook("franca", "beartype.beartype")

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")

# A shell starts its background jobs with Ctrl-C ignored, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on the cluster come first, in one piece: one worker gets them and waits, the others have the processor."""
    items.sort(key=lambda item: item.get_closest_marker("slurm") is None)


@pytest.fixture(autouse=True)
def alone_on_the_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where several workers share the tests, one at a time has the cluster: some tests crash its nodes."""
    if request.node.get_closest_marker("slurm") is None:
        yield
        return
    with (Path(tempfile.gettempdir()) / "franca-slurm-tests.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # not xdist's groups: its release 3.8 does not keep them together
        yield
