"""The command as a shell has it, and waiting for what it starts."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
Result = subprocess.CompletedProcess[str]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "reproduce", *arguments]


def reproduce(*arguments: str, project: Path = ROOT) -> Result:
    """What the command came to in a project, with nobody there to be asked; never with a traceback."""
    result = subprocess.run(
        command(*arguments),
        cwd=project,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result


def wait_for(condition: Callable[[], bool], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
