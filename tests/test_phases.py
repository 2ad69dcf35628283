"""Training and evaluating as a person meets them: real trainers, stopped, killed, broken and taken up again."""

import contextlib
import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest
from shell import wait_for
from small_runs import ROOT, make_resolved

from reproduce.endings import FailedRunError, InterruptedRunError
from reproduce.errors import RunError
from reproduce.phases import TRAINER_NEEDS, evaluate, train
from reproduce.progress import Progress
from reproduce.runs import is_alive, newest_job, open_run, read_evaluation, read_provenance, read_state

COMMAND = ("reproduce", "train", "digits")
LONG = {"iterations": 4000, "evaluation": {"period_iterations": 4000}}


class Notes:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.shown: list[Progress] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def show(self, progress: Progress) -> None:
        self.shown.append(progress)

    def end(self) -> None:
        pass


def start_harness(folder: Path, **changes: object) -> "subprocess.Popen[str]":
    """Another harness, in a process group of its own, that trains the run in `folder`."""
    script = (
        "import sys; from pathlib import Path; from small_runs import make_resolved\n"
        "from reproduce.errors import ReproduceError\n"
        "from reproduce.phases import train; from reproduce.screen import PlainScreen\n"
        "try: train(make_resolved(Path(sys.argv[1]), **eval(sys.argv[2])), command=('reproduce', 'train', 'digits'),"
        " screen=PlainScreen(sys.stdout))\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
        "except ReproduceError as error: print(error); sys.exit(error.exit_code)"
    )
    command = [sys.executable, "-c", script, str(folder), repr(changes)]
    return subprocess.Popen(command, cwd=ROOT / "tests", start_new_session=True, stdout=subprocess.PIPE, text=True)


def iterations_done(folder: Path) -> int:
    state = read_state(folder)
    return state.iteration if state else 0


def test_run_is_trained_evaluated_and_then_left_alone(tmp_path: Path) -> None:
    """A run goes to its end and is evaluated; asked again, nothing is launched and no file changes."""
    resolved = make_resolved(tmp_path / "run")
    screen = Notes()
    state = train(resolved, command=COMMAND, screen=screen)
    assert (state.state, state.iteration, state.of) == ("finished", 40, 40)
    assert screen.shown[-1].done == 40
    assert screen.shown[-1].knn is not None
    result = evaluate(resolved, screen=screen)
    assert result == resolved.folder / "evaluation.json"
    assert read_evaluation(resolved.folder)["iteration"] == 40
    before = {path: path.stat().st_mtime_ns for path in resolved.folder.rglob("*")}
    assert train(resolved, command=COMMAND, screen=screen) == state
    assert evaluate(resolved, screen=screen) == result
    assert {path: path.stat().st_mtime_ns for path in resolved.folder.rglob("*")} == before
    assert len(read_provenance(resolved.folder)["launches"]) == 1


def test_run_is_shared_by_processes_of_this_machine(tmp_path: Path) -> None:
    """Two processes train one run through the local executor, and it is evaluated like any other."""
    resolved = make_resolved(tmp_path / "run", processes=2, batch_per_process=4)
    resolved = dataclasses.replace(resolved, tasks_per_node=2)
    assert train(resolved, command=COMMAND, screen=Notes()).state == "finished"
    assert json.loads((resolved.folder / "environment.json").read_text())["processes"] == 2
    assert evaluate(resolved, screen=Notes()) is not None


def test_log_names_the_commit_of_its_code(tmp_path: Path) -> None:
    """A launch's log tells of the commit that its copy of the code was taken from, wherever the copy lies."""
    resolved = make_resolved(tmp_path / "run", until_iteration=1)
    train(resolved, command=COMMAND, screen=Notes())
    sha = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert f"sha: {sha or 'N/A'}, status: " in (resolved.folder / "log.txt").read_text()


def test_prefix_is_continued_to_the_end(tmp_path: Path) -> None:
    """A run that was paused goes on from there when more is asked for, and is then one run of two launches."""
    prefix = make_resolved(tmp_path / "run", until_iteration=10)
    state = train(prefix, command=COMMAND, screen=Notes())
    assert (state.state, state.iteration) == ("paused", 10)
    assert evaluate(prefix, screen=Notes()) is None
    state = train(make_resolved(tmp_path / "run"), command=COMMAND, screen=Notes())
    assert (state.state, state.iteration) == ("finished", 40)
    assert len(read_provenance(tmp_path / "run")["launches"]) == 2


def test_interrupt_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    """Ctrl-C in the harness stops the trainer at a checkpoint, exits with 130 and names the command that goes on."""
    folder = tmp_path / "run"
    harness = start_harness(folder, recipe=LONG)
    wait_for(lambda: iterations_done(folder) > 0)
    os.killpg(harness.pid, signal.SIGINT)
    output, _ = harness.communicate(timeout=200)
    assert harness.returncode == 130
    assert not is_alive(folder)
    state = read_state(folder)
    assert state is not None
    assert state.state == "interrupted"
    assert (folder / "checkpoints" / f"{state.iteration:06d}").is_dir()
    assert f"stopped at {state.iteration} of 4000 iterations; continue with: {shlex.join(COMMAND)}" in output


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ended_harness_leaves_a_run_that_another_takes_up(number: signal.Signals, tmp_path: Path) -> None:
    """The trainer outlives its harness, which says so if it can; the next one follows it and starts no second."""
    folder = tmp_path / "run"
    changes = {"recipe": {"iterations": 300, "evaluation": {"period_iterations": 300}}}
    harness = start_harness(folder, **changes)
    wait_for(lambda: iterations_done(folder) > 0)
    os.killpg(harness.pid, number)
    said, _ = harness.communicate()
    if number == signal.SIGTERM:
        assert harness.returncode == 143
        assert "goes on without it" in said
        assert f"follow it again with: {shlex.join(COMMAND)}; save and stop it with: kill -TERM" in said
    assert is_alive(folder)
    screen = Notes()
    state = train(make_resolved(folder, **changes), command=COMMAND, screen=screen)
    assert state.state == "finished"
    assert any("already being trained by job" in line for line in screen.said)
    assert len(read_provenance(folder)["launches"]) == 1


def test_killed_trainer_is_reported_and_its_run_goes_on(tmp_path: Path) -> None:
    """A trainer killed outright is a failure that says where the logs lie; the next launch continues its run."""
    folder = tmp_path / "run"
    with start_harness(folder, recipe=LONG) as harness:
        wait_for(lambda: iterations_done(folder) >= 20)
        os.kill(int((folder / "train.lock").read_text()), signal.SIGKILL)
        harness.communicate(timeout=200)
        assert harness.returncode == 1
    assert not is_alive(folder)
    state = train(make_resolved(folder, recipe=LONG, until_iteration=50), command=COMMAND, screen=Notes())
    assert (state.state, state.iteration) == ("paused", 50)
    assert "Starting training from iteration 20" in (folder / "log.txt").read_text()


def test_interruption_from_outside_is_no_failure(tmp_path: Path) -> None:
    """A run that the machine asked to stop is told apart from one that failed, and says how to go on."""
    folder = tmp_path / "run"

    def stop() -> None:
        wait_for(lambda: iterations_done(folder) > 0)
        job = newest_job(folder)
        assert job is not None
        job.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(InterruptedRunError, match=r"was interrupted at \d+ of 4000 .* saved a checkpoint") as error:
        train(make_resolved(folder, recipe=LONG), command=COMMAND, screen=Notes())
    thread.join()
    assert error.value.mend == f"continue it with: {shlex.join(COMMAND)}"


def test_trainer_started_by_hand_is_followed(tmp_path: Path) -> None:
    """A trainer that no harness launched holds the lock; it is followed to its end, not doubled."""
    resolved = make_resolved(tmp_path / "run")
    folder = open_run(resolved, command=COMMAND, root=tmp_path)
    with subprocess.Popen([sys.executable, "-m", "franca.train", str(folder / "config.yaml")]):
        wait_for(lambda: is_alive(folder))
        screen = Notes()
        state = train(resolved, command=COMMAND, screen=screen)
    assert state.state == "finished"
    assert screen.said[0] == f"{folder}: already being trained, following it"
    assert newest_job(folder) is None


def test_diverging_run_fails_with_the_trainers_own_words(tmp_path: Path) -> None:
    """A loss that is not finite ends the command with 1, the trainer's error and the place of the logs."""
    resolved = make_resolved(tmp_path / "run", recipe={"optim": {"base_lr": 1e30, "warmup_iterations": 0}})
    with pytest.raises(FailedRunError, match=r"failed: NonFiniteError: .*finite") as error:
        train(resolved, command=COMMAND, screen=Notes())
    assert error.value.path == resolved.folder / "log.txt"
    assert str(resolved.folder / "submitit" / "0001") in str(error.value)


def test_failure_of_an_earlier_launch_is_not_that_of_this_one(tmp_path: Path) -> None:
    """A trainer that is killed before its first word is not reported with what an earlier one died of."""
    resolved = make_resolved(tmp_path / "run")
    folder = open_run(resolved, command=COMMAND, root=tmp_path)
    error = {"type": "NonFiniteError", "message": "of old", "where": "loop.py:1"}
    state = {"state": "failed", "iteration": 7, "of": 40, "images_per_second": None, "error": error}
    (folder / "state.json").write_text(json.dumps(state))

    def kill() -> None:
        wait_for(lambda: (job := newest_job(folder)) is not None and job.is_running())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(os.getpgid(int(newest_job(folder).job_id)), signal.SIGKILL)  # type: ignore[union-attr]

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(FailedRunError, match="the training was killed") as failure:
        train(resolved, command=COMMAND, screen=Notes())
    thread.join()
    assert "of old" not in str(failure.value)


def test_missing_data_is_the_users_mistake(tmp_path: Path) -> None:
    """Data that is not where the configuration says is one line of the trainer's, not a failure of the run."""
    resolved = make_resolved(tmp_path / "run", recipe={"data": {"dataset": "imagenet21k"}}, data_root="/nowhere")
    with pytest.raises(RunError, match="/nowhere") as error:
        train(resolved, command=COMMAND, screen=Notes())
    assert not isinstance(error.value, FailedRunError)
    assert "Traceback" not in str(error.value)
    assert not error.value.message.startswith("error:")


def test_evaluation_without_a_run_says_what_to_do(tmp_path: Path) -> None:
    """Before anything was trained there is nothing to evaluate, and the message names the command that trains."""
    with pytest.raises(RunError, match="nothing is trained yet") as error:
        evaluate(make_resolved(tmp_path / "run"), screen=Notes())
    assert error.value.mend == "reproduce train digits"


def test_all_that_the_trainer_needs_is_looked_for() -> None:
    """What is asked for before a launch is what the extra `train` installs."""
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
    assert {re.split(r"[<>=]", requirement)[0] for requirement in extra} == set(TRAINER_NEEDS.values())


def test_trainer_that_is_not_installed_is_asked_for(tmp_path: Path) -> None:
    """Without torch the command ends before anything is written, with the line that installs it."""
    script = (
        "import sys; from pathlib import Path; sys.modules['torch'] = None\n"
        "from small_runs import make_resolved; from reproduce.phases import train\n"
        "from reproduce.errors import SiteError\n"
        "try: train(make_resolved(Path(sys.argv[1])), command=(), screen=None)\n"
        "except SiteError as error: print(error)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    output = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, check=True).stdout
    assert output.startswith("the trainer needs torch\nmend: pip install")
    assert not (tmp_path / "run").exists()


def test_follower_that_is_interrupted_leaves_the_run_alone(tmp_path: Path) -> None:
    """Ctrl-C in a harness that only follows a run ends the following, and says how the run itself is stopped."""
    folder = tmp_path / "run"
    with start_harness(folder, recipe=LONG) as first:
        wait_for(lambda: iterations_done(folder) > 0)
        with start_harness(folder, recipe=LONG) as second:
            assert second.stdout is not None
            assert "already being trained by job" in second.stdout.readline()
            os.killpg(second.pid, signal.SIGINT)
            said, _ = second.communicate(timeout=200)
            assert second.returncode == 130
        job = newest_job(folder)
        assert job is not None
        assert is_alive(folder)
        assert f"left running; stop it with: {job.stop_command}; follow it again with: {shlex.join(COMMAND)}" in said
        os.killpg(first.pid, signal.SIGINT)
        first.communicate(timeout=200)
    assert not is_alive(folder)
