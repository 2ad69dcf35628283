"""Watching runs and taking hold of them from a shell in which nothing else was left running."""

import json
from pathlib import Path

import pytest
from row_copies import copy_rows
from shell import reproduce, wait_for


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with this one's rows and nothing run yet."""
    return copy_rows(tmp_path)


def status(project: Path) -> dict[str, object]:
    (run,) = json.loads(reproduce("status", "digits", "--json", project=project).stdout)["runs"]
    assert isinstance(run, dict)
    return run


def test_run_is_started_watched_stopped_and_resumed(project: Path) -> None:
    """`resume` starts a run and returns, `status` and `logs` tell of it, `cancel` saves it, `resume` goes on."""
    assert reproduce("resume", "digits", "--site", "local", project=project).returncode == 0
    log = project / "runs" / "digits@1" / "main" / "log.txt"
    wait_for(lambda: log.is_file() and "Starting training" in log.read_text())
    assert status(project)["state"] == "running"
    shown = reproduce("logs", "digits", "--lines", "3", project=project).stdout
    assert len(shown.splitlines()) == 3
    again = reproduce("resume", "digits", "--site", "local", project=project)
    assert "already being trained by job" in again.stderr
    stopped = reproduce("cancel", "digits", project=project)
    assert "was asked to stop; go on with: reproduce resume digits" in stopped.stdout
    followed = reproduce("logs", "digits", "--follow", project=project).stdout
    assert "SIGTERM after" in followed
    wait_for(lambda: status(project)["state"] == "interrupted")
    done = status(project)["iteration"]
    assert isinstance(done, int)
    reproduce("resume", "digits", "--site", "local", "--until", str(done + 1), project=project)
    wait_for(lambda: status(project)["state"] == "paused")
    assert status(project)["iteration"] == done + 1
    assert "paused" in reproduce("resume", "digits", "--site", "local", "--until", "1", project=project).stderr
    assert "nothing runs or waits" in reproduce("cancel", "digits", project=project).stdout


def test_log_that_is_not_there_is_said(project: Path) -> None:
    """A run that was never made has no log, and the message says so with the mend."""
    result = reproduce("logs", "digits", project=project)
    assert result.returncode == 2
    assert "there is no log yet" in result.stderr
    assert "reproduce status digits" in result.stderr


def test_status_of_nothing_is_a_sentence(project: Path) -> None:
    """Where nothing was run, status says so and ends well."""
    result = reproduce("status", project=project)
    assert (result.returncode, result.stdout) == (0, "no run was made here yet\n")
