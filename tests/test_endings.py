"""How a launch that ended before its time is told: what happened, and what the same command does next."""

import signal
from pathlib import Path

import pytest

from reproduce.attempts import exit_file
from reproduce.endings import FailedRunError, raise_if_cut_short, raise_if_failed
from reproduce.launch import Job

COMMAND = ("reproduce", "train", "digits")


def end(run: Path, *, code: int, printed: str = "") -> FailedRunError:
    """The error of a run whose job ended with an exit code and these words of the cluster's."""
    job = Job("local", "7", run / "submitit" / "0001")
    job.folder.mkdir(parents=True)
    exit_file(job.folder, job.job_id).write_text(str(code))
    job.stderr.write_text(printed)
    with pytest.raises(FailedRunError) as error:
        raise_if_cut_short(run, job=job, command=COMMAND)
    return error.value


@pytest.mark.parametrize(
    ("code", "printed"), [(-signal.SIGKILL, ""), (1, "slurmstepd: error: Detected 1 oom-kill event(s)\n")]
)
def test_killed_run_goes_on_from_a_checkpoint_if_there_is_one(tmp_path: Path, code: int, printed: str) -> None:
    """What the same command does after a kill is said as it is: it goes on, or it begins anew."""
    mend = end(tmp_path / "young", code=code, printed=printed).mend or ""
    assert "no checkpoint was written yet: the same command begins anew" in mend
    assert "goes on" not in mend
    (tmp_path / "old" / "checkpoints" / "000020").mkdir(parents=True)
    mend = end(tmp_path / "old", code=code, printed=printed).mend or ""
    assert "the same command goes on from the last checkpoint" in mend


def test_killed_evaluation_is_promised_no_checkpoint(tmp_path: Path) -> None:
    """An evaluation that is killed is made again as a whole."""
    with pytest.raises(FailedRunError, match="the evaluation was killed by SIGKILL") as error:
        raise_if_failed("the evaluation", -signal.SIGKILL, job=None, said="", log=tmp_path / "log.err")
    assert "tries again" in (error.value.mend or "")
