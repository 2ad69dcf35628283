"""Runs that are evaluated apart: real trainers and evaluation jobs, which are killed, stopped and taken up again."""

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest
from small_runs import make_resolved
from test_phases import COMMAND, LONG, Notes, iterations_done, start_harness, wait_for

from reproduce.attempts import IDLE_STARTS, INTERRUPTED, MISTAKE, waiting_teachers
from reproduce.beside import Beside, stop_evaluator
from reproduce.endings import FailedRunError
from reproduce.evaluator import attend
from reproduce.launch import Job
from reproduce.phases import evaluate, start, train
from reproduce.runs import is_alive, newest_evaluator, newest_job, read_provenance


def knn_files(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("eval/*/results_eval_knn.json")}


def kill_job(job: Job) -> None:
    """What a dead machine does: the job's controller, its task and its command end at once."""
    run = job.folder.parents[1]
    ours = (str(job.folder), f"reproduce.evaluator {run}", f"franca.evaluate {run}")
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if any(text in words for text in ours):
                os.kill(int(path.parent.name), signal.SIGKILL)


def running_evaluator(folder: Path) -> Job | None:
    job = newest_evaluator(folder)
    return job if job is not None and job.is_running() else None


def test_curve_of_a_run_evaluated_apart_is_that_of_one_in_line(tmp_path: Path) -> None:
    """Every point of k-NN, the untrained network's first, and the final evaluation are equal; nothing is left over."""
    inline, apart = make_resolved(tmp_path / "inline"), make_resolved(tmp_path / "apart", evaluate="apart")
    for resolved in (inline, apart):
        assert train(resolved, command=COMMAND, screen=Notes()).state == "finished"
    assert knn_files(apart.folder) == knn_files(inline.folder)
    assert knn_files(apart.folder).keys() == {"untrained", "training_19", "training_39"}
    assert running_evaluator(apart.folder) is None
    jobs = len(list((apart.folder / "submitit").iterdir()))
    for resolved in (inline, apart):
        assert evaluate(resolved, screen=Notes()) is not None
    assert len(list((apart.folder / "submitit").iterdir())) == jobs
    assert (apart.folder / "evaluation.json").read_bytes() == (inline.folder / "evaluation.json").read_bytes()
    assert len(read_provenance(apart.folder)["launches"]) == 1


def test_killed_evaluator_is_launched_again_and_killed_harness_replaced(tmp_path: Path) -> None:
    """The training notices neither death; the next harness takes up both jobs and leaves nothing unmeasured."""
    folder = tmp_path / "run"
    changes = {"recipe": {"iterations": 300, "evaluation": {"period_iterations": 100}}, "evaluate": "apart"}
    harness = start_harness(folder, **changes)
    wait_for(lambda: running_evaluator(folder) is not None and iterations_done(folder) > 0)
    first = newest_evaluator(folder)
    assert first is not None
    kill_job(first)
    wait_for(lambda: running_evaluator(folder) not in (None, first))
    os.killpg(harness.pid, signal.SIGKILL)
    said, _ = harness.communicate()
    assert f"the evaluation (job {first.job_id}) was killed" in said
    second = newest_evaluator(folder)
    screen = Notes()
    assert train(make_resolved(folder, **changes), command=COMMAND, screen=screen).state == "finished"
    assert newest_evaluator(folder) == second
    assert f"{folder}: every teacher is evaluated, the last after 300 iterations" in screen.said
    assert len(knn_files(folder)) == 4
    assert len(read_provenance(folder)["launches"]) == 1


def test_evaluation_that_cannot_be_fails_no_training(tmp_path: Path) -> None:
    """What is wrong is said once, the run is finished all the same, and `evaluate` is what fails."""
    changes = {"recipe": {"evaluation": {"period_iterations": 20, "knn_k": [5000]}}, "evaluate": "apart"}
    resolved, screen = make_resolved(tmp_path / "run", **changes), Notes()
    assert train(resolved, command=COMMAND, screen=screen).state == "finished"
    assert sum("knn_k: 5000" in line for line in screen.said) in (1, 2)
    with pytest.raises(FailedRunError, match=r"the evaluation failed: .*knn_k: 5000") as error:
        evaluate(resolved, screen=Notes())
    assert error.value.mend == "reproduce evaluate digits"
    assert waiting_teachers(resolved.folder) == (0, 20, 40)


def test_interrupt_ends_both_and_both_go_on(tmp_path: Path) -> None:
    """Ctrl-C ends trainer and evaluator; `resume` starts both, `stop` ends the one without the other."""
    folder = tmp_path / "run"
    with start_harness(folder, recipe=LONG, evaluate="apart") as harness:
        wait_for(lambda: running_evaluator(folder) is not None and iterations_done(folder) > 0)
        os.killpg(harness.pid, signal.SIGINT)
        harness.communicate(timeout=200)
    wait_for(lambda: running_evaluator(folder) is None)
    assert not is_alive(folder)
    resolved, screen = make_resolved(folder, recipe=LONG, evaluate="apart"), Notes()
    start(resolved, command=COMMAND, screen=screen)
    assert is_alive(folder)
    wait_for(lambda: (job := newest_evaluator(folder)) is not None and job.starts() != ())
    job = stop_evaluator(folder)
    assert job is not None
    wait_for(lambda: running_evaluator(folder) is None)
    assert job.exit_code() == INTERRUPTED
    beside = Beside(resolved, say=screen.say)
    beside.keep()
    assert running_evaluator(folder) not in (None, job)
    training = newest_job(folder)
    assert training is not None
    training.stop()
    wait_for(lambda: running_evaluator(folder) is None)
    beside.finish()
    assert waiting_teachers(folder) == ()


def make_teacher(folder: Path, *, done: int) -> None:
    place = folder / "eval" / f"training_{done - 1}"
    place.mkdir(parents=True)
    (place / "teacher_checkpoint.safetensors").touch()


def test_teachers_wait_until_they_have_results(tmp_path: Path) -> None:
    """The untrained network and every teacher wait, in their order, until their k-NN is there; drafts are none."""
    assert waiting_teachers(tmp_path) == (0,)
    for done in (200, 100):
        make_teacher(tmp_path, done=done)
    (tmp_path / "eval" / "training_299").mkdir()
    (tmp_path / "eval" / "training_299" / ".teacher_checkpoint.safetensors.tmp").touch()
    assert waiting_teachers(tmp_path) == (0, 100, 200)
    (tmp_path / "eval" / "training_99" / "results_eval_knn.json").touch()
    assert waiting_teachers(tmp_path) == (0, 200)


@pytest.mark.parametrize(
    ("script", "code", "calls"),
    [
        ("sys.exit(3)", 3, IDLE_STARTS),
        ("pass", 1, IDLE_STARTS),
        (f"sys.exit({MISTAKE})", MISTAKE, 1),
        ("os.kill(os.getpid(), signal.SIGTERM)", INTERRUPTED, 1),
        ("(place := run / 'eval/untrained').mkdir(parents=True); (place / 'results_eval_knn.json').touch()", 0, 1),
    ],
)
def test_evaluator_tries_again_but_not_for_ever(script: str, code: int, calls: int, tmp_path: Path) -> None:
    """A command that fails or measures nothing is tried some times, a mistake and a signal end it at once."""
    head = "import os, signal, sys; from pathlib import Path; run = Path(sys.argv[1])"
    head += "; (run / 'calls').open('a').write('x')"
    command = (sys.executable, "-c", f"{head}\n{script}", str(tmp_path))
    assert attend(tmp_path, command, poll_s=0.01) == code
    assert len((tmp_path / "calls").read_text()) == calls
