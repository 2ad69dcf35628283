"""Shapes in signatures are checked in tests: jaxtyping and beartype, installed before any module of `franca` loads."""

import signal

from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("franca", "beartype.beartype")

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")

# A shell starts its background jobs with Ctrl-C ignored, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
