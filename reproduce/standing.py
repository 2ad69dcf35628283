"""Run folders in, how each run stands out: from their files, and from the cluster's queue in one question for all.

A queue that does not answer changes nothing but what can be known: a run of the cluster then stands as its folder last
said, marked so.
"""

import getpass
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduce.attempts import waiting_teachers
from reproduce.causes import find_cause
from reproduce.errors import RunError
from reproduce.files import is_locked, read_tail, short_path
from reproduce.launch import Job
from reproduce.quantities import render_duration
from reproduce.runs import newest_evaluator, newest_job, read_state
from reproduce.terminal import render_table

QUEUE_S = 20.0  # after which a controller counts as away
LINE_BYTES = 4096
UNTIL = re.compile(r"^  until_iteration: (\d+)$", re.MULTILINE)
WAITING = {"PENDING": "waiting", "CONFIGURING": "waiting", "REQUEUED": "requeued", "SUSPENDED": "suspended"}


@dataclass(frozen=True)
class Queue:
    """The user's jobs by id, each with its state and the reason of its waiting. `problem`: why there is no answer."""

    jobs: Mapping[str, tuple[str, str]]
    problem: str | None


@dataclass(frozen=True)
class Standing:
    """One run. `state`: new, waiting, requeued, suspended, running, lost, or the trainer's last word.

    `certain` is False where the cluster was not there to ask. `restarts` is of the newest job; `checked` the verdict.
    Of a run that is evaluated apart, `unevaluated` teachers wait, and `evaluator` is the job beside it, while it lives.
    """

    row: str
    run: str
    state: str
    certain: bool
    job: str | None
    iteration: int
    of: int
    images_per_second: float | None
    seconds_left: float | None
    checked: str | None
    restarts: int
    reason: str | None
    folder: Path
    evaluator: str | None
    unevaluated: int


def load_standings(root: Path, *, pattern: str = "*") -> tuple[tuple[Standing, ...], str | None]:
    """Every run of the rows whose name matches, and what kept the queue from answering. A broken folder says so."""
    folders = sorted(path.parent for path in root.glob(f"runs/{pattern}@*/*/config.yaml"))
    jobs = [_job(folder) for folder in folders]
    queue = load_queue() if any(job is not None and job.executor == "slurm" for job in jobs) else Queue({}, None)
    runs = zip(folders, jobs, strict=True)
    return tuple(_make_standing(folder, job=job, queue=queue, root=root) for folder, job in runs), queue.problem


def load_queue() -> Queue:
    """All jobs of this user on the cluster, in one question."""
    if shutil.which("squeue") is None:
        return Queue({}, "squeue is not on the PATH")
    command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i|%T|%r"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=QUEUE_S, check=False)
    except subprocess.TimeoutExpired:
        return Queue({}, f"squeue did not answer within {QUEUE_S:.0f} s")
    if answer.returncode:
        return Queue({}, (answer.stderr.strip().splitlines() or ["squeue failed"])[-1])
    return Queue(dict(_parse_queue(answer.stdout)), None)


def render_standings(standings: Sequence[Standing], problem: str | None, *, width: int) -> str:
    """The runs as a table, below it what could not be asked."""
    header = ("row", "run", "state", "iteration", "images/s", "left", "verdict", "restarts", "job", "why")
    table = render_table(header, [_cells(standing) for standing in standings], width=width) if standings else ""
    notes = [] if standings else ["no run was made here yet"]
    if problem:
        notes.append(f"the cluster's queue is not known ({problem}): states marked ? are what the runs last said")
    return "\n".join(filter(None, [table, *notes]))


def _parse_queue(text: str) -> Iterator[tuple[str, tuple[str, str]]]:
    for line in text.splitlines():
        job_id, _, rest = line.partition("|")
        state, _, reason = rest.partition("|")
        yield job_id, (state, reason)


def _job(folder: Path) -> Job | None:
    try:
        return newest_job(folder)
    except RunError:  # told with its run's standing
        return None


def _make_standing(folder: Path, *, job: Job | None, queue: Queue, root: Path) -> Standing:
    reason: str | None
    try:
        newest_job(folder) if job is None else None
        last = read_state(folder)
    except RunError as error:
        last, state, certain, reason = None, "broken", True, str(error)
    else:
        state, certain, reason = _find_state(folder, job=job, last=last.state if last else "new", queue=queue)
        reason = reason or (last.error if last and state == "failed" else None)
    done, of = (last.iteration, last.of) if last else (0, 0)
    line = _newest_line(folder)
    evaluator, unevaluated = _find_evaluation(folder, queue=queue)
    row, at_it = folder.parent.name.partition("@")[0], state == "running"
    until = _until_iteration(folder) if at_it else 0
    return Standing(
        row=row,
        run=folder.name,
        state=state,
        certain=certain,
        job=job.job_id if job else None,
        iteration=done,
        of=of,
        images_per_second=line.get("images_per_second"),
        seconds_left=max(0, (until or of) - done) * line["iter_time"] if "iter_time" in line and at_it else None,
        checked=_read_verdict(root / "reports", row=row, run=folder.name),
        restarts=max(0, len(job.starts()) - 1) if job else 0,
        reason=reason,
        folder=folder,
        evaluator=evaluator,
        unevaluated=unevaluated,
    )


def _find_state(folder: Path, *, job: Job | None, last: str, queue: Queue) -> tuple[str, bool, str | None]:
    """(state, whether that is certain, why it is so)."""
    if job is not None and job.executor == "slurm" and job.exit_code() is None:
        if queue.problem:
            return last, False, None
        if job.job_id in queue.jobs:
            state, reason = queue.jobs[job.job_id]
            return WAITING.get(state, "running"), True, reason if state in WAITING and reason != "None" else None
    if is_locked(folder / "train.lock") or (job is not None and job.executor == "local" and job.is_running()):
        return "running", True, None
    if last not in ("running", "new", "failed") or job is None:
        return last, True, None
    cause = find_cause(folder, job=job)
    return ("failed" if last == "failed" else "lost"), True, f"{cause.kind}: {cause.said}" if cause else None


def _find_evaluation(folder: Path, *, queue: Queue) -> tuple[str | None, int]:
    """(the job beside the run, if it waits or runs, how many teachers wait); neither of a run that was never apart."""
    try:
        job = newest_evaluator(folder)
    except RunError:
        job = None
    if job is None:
        return None, 0
    known = queue.problem is None
    alive = (job.job_id in queue.jobs or not known) if job.executor == "slurm" else job.is_running()
    return job.job_id if alive else None, len(waiting_teachers(folder))


def _until_iteration(folder: Path) -> int:
    """Where the run's newest launch stops, 0 for the recipe's end; its config.yaml is not composed for one number."""
    found = UNTIL.search((folder / "config.yaml").read_text())
    return int(found[1]) if found else 0


def _newest_line(folder: Path) -> dict[str, Any]:
    """The newest whole line of a run's metrics; empty without one."""
    path = folder / "training_metrics.json"
    for line in reversed(read_tail(path, size=LINE_BYTES).splitlines() if path.is_file() else []):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}


def _read_verdict(reports: Path, *, row: str, run: str) -> str | None:
    path = reports / (f"{row}.json" if run == "main" else f"{row}.{run}.json")
    try:
        return str(json.loads(path.read_text())["outcome"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _cells(standing: Standing) -> tuple[str, ...]:
    return (
        standing.row,
        standing.run,
        standing.state + ("" if standing.certain else "?"),
        f"{standing.iteration}/{standing.of}" if standing.of else "–",
        "" if standing.images_per_second is None else f"{standing.images_per_second:,.0f}",
        "" if standing.seconds_left is None else render_duration(round(standing.seconds_left)),
        standing.checked or "–",
        str(standing.restarts or ""),
        standing.job or "",
        (standing.reason or _evaluation_note(standing) or short_path(standing.folder)).splitlines()[0],
    )


def _evaluation_note(standing: Standing) -> str:
    if not standing.unevaluated:
        return ""
    by = f"by job {standing.evaluator}" if standing.evaluator else f"by nobody: reproduce evaluate {standing.row}"
    return f"{standing.unevaluated} not evaluated yet, {by}"
