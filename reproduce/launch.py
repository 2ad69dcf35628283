"""A command in, a job out: submitit starts it on this machine or on a SLURM cluster, and it outlives who started it.

A job is a handle to files: everything asked of it is answered by its folder, its lock or the cluster's queue, so any
later process can take it up again. On this machine the job lives in a session of its own, out of reach of the
terminal's Ctrl-C and hang-up.
"""

import fcntl
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reproduce.attempts import Command, Start, exit_file, load_starts, pid_file
from reproduce.errors import RunError, SiteError
from reproduce.files import is_locked, read_tail, write_whole
from reproduce.snapshot import snapshot_environment

if TYPE_CHECKING:
    from reproduce.resolve import Resolved
    from reproduce.sites import Site

Executor = Literal["local", "slurm"]

MAX_REQUEUES = 10_000  # submitit gives a job up after 3 time limits; a run of months passes one every day
ONE_YEAR_MIN = 366 * 24 * 60  # submitit's local executor would end a job after 2 minutes
NOISE = re.compile(
    r"srun: (error: .* Exited with exit code|launch/slurm: |Terminating StepId|Job step aborted)|submitit WARNING "
)
CONTROLLER_LOG = "controller.log"
REQUEST_FILE = "request.json"
JOB_FILE = "job.json"


@dataclass(frozen=True)
class Job:
    """A job that was submitted. `folder` holds submitit's files of this job alone."""

    executor: Executor
    job_id: str
    folder: Path

    def is_running(self) -> bool:
        """True while it waits or runs. A cluster that does not answer leaves it as it was: running.

        On this machine also while its command lives on, where everything around that was killed.
        """
        if self.executor == "slurm":
            answer = subprocess.run(
                ["squeue", "--noheader", "--format=%T", f"--jobs={self.job_id}"], capture_output=True, text=True
            )
            return bool(answer.stdout.strip()) if answer.returncode == 0 else "Invalid job id" not in answer.stderr
        return is_locked(self.folder / CONTROLLER_LOG) or is_locked(self.stderr)

    def stop(self) -> None:
        """Ask the command to save its work and end; it returns at once. Does nothing where the job has ended."""
        if not self.is_running():
            return
        if self.executor == "slurm":  # a job that still waits has nothing to save, and no process to tell
            subprocess.run(["scancel", "--quiet", "--state=PENDING", self.job_id], check=False)
            subprocess.run(["scancel", "--quiet", "--signal=TERM", self.job_id], check=False)
        else:  # the controller hands it to the task, the task to the command
            os.kill(int(self.process), signal.SIGTERM)

    @property
    def process(self) -> str:
        """The id of the process of this machine that is told to stop: the controller, or the command that is left."""
        command = pid_file(self.folder, self.job_id)
        left = command.is_file() and not is_locked(self.folder / CONTROLLER_LOG)
        return command.read_text().strip() if left else self.job_id

    @property
    def title(self) -> str:
        """`job 17`, or what is left of it."""
        left = self.executor == "local" and self.process != self.job_id
        return f"process {self.process} (all that is left of job {self.job_id})" if left else f"job {self.job_id}"

    @property
    def stop_command(self) -> str:
        """What a person types to stop it."""
        return f"scancel --signal=TERM {self.job_id}" if self.executor == "slurm" else f"kill -TERM {self.process}"

    def exit_code(self) -> int | None:
        """The command's exit code (that of rank 0), or None where the job was cut off before it could tell."""
        path = exit_file(self.folder, self.job_id)
        return int(path.read_text()) if path.is_file() else None

    def starts(self) -> tuple[Start, ...]:
        """When and from where the job was started, each time."""
        return load_starts(self.folder, self.job_id)

    def wrote(self, path: Path) -> bool:
        """Whether a file is not older than this job."""
        return path.stat().st_mtime_ns >= (self.folder / REQUEST_FILE).stat().st_mtime_ns

    @property
    def stderr(self) -> Path:
        """What rank 0 printed as errors."""
        return self.folder / f"{self.job_id}_0_log.err"

    def last_words(self, *, lines: int = 1) -> str:
        """The last non-empty lines that rank 0 (or, before it came to be, the controller) printed as errors."""
        for path in (self.stderr, self.folder / CONTROLLER_LOG):
            text = read_tail(path, size=65536) if path.is_file() else ""
            said = [line for line in text.splitlines() if line.strip() and not NOISE.match(line)]
            if said:
                return "\n".join(said[-lines:])
        return ""


def make_parameters(resolved: "Resolved", *, nodes: int, tasks_per_node: int) -> dict[str, Any]:
    """submitit's parameters for a job of a resolved run on its site."""
    device = resolved.config.execution.device
    return site_parameters(
        resolved.site, name=resolved.spec.row, device=device, nodes=nodes, tasks_per_node=tasks_per_node
    )


def evaluation_parameters(resolved: "Resolved", *, after: str | None = None) -> dict[str, Any]:
    """submitit's parameters for the one task that evaluates a run, on a cluster once the job `after` has started."""
    parameters = make_parameters(resolved, nodes=1, tasks_per_node=1)
    slurm = resolved.site.slurm
    if resolved.site.executor != "slurm" or slurm is None:
        return parameters
    own = slurm.evaluation
    share = slurm.mem_gb_per_node and math.ceil(slurm.mem_gb_per_node / resolved.tasks_per_node)
    further = {} if after is None else {"dependency": f"after:{after}"}
    parameters |= {
        "name": f"{resolved.spec.row}-evaluate",
        "timeout_min": own.timeout_min or slurm.timeout_min,
        "cpus_per_task": own.cpus or slurm.cpus_per_task,
        "mem_gb": own.mem_gb or share,
        "slurm_partition": own.partition or slurm.partition,
        "slurm_additional_parameters": {**slurm.additional_parameters, **further},
    }
    return {key: value for key, value in parameters.items() if value is not None}


def site_parameters(site: "Site", *, name: str, device: str, nodes: int, tasks_per_node: int) -> dict[str, Any]:
    """submitit's parameters for a job on a site; one GPU to a task where the device is `cuda`."""
    parameters: dict[str, Any] = {
        "name": name,
        "nodes": nodes,
        "tasks_per_node": tasks_per_node,
        "gpus_per_node": tasks_per_node if device == "cuda" else 0,
    }
    slurm = site.slurm
    if site.executor == "slurm" and slurm is not None:
        parameters |= {
            "timeout_min": slurm.timeout_min,
            "cpus_per_task": slurm.cpus_per_task,
            "mem_gb": slurm.mem_gb_per_node,
            "slurm_partition": slurm.partition,
            "slurm_account": slurm.account,
            "slurm_qos": slurm.qos,
            "slurm_constraint": slurm.constraint,
            "slurm_signal_delay_s": slurm.signal_delay_s,
            "slurm_setup": [
                *slurm.setup,
                *(f"export {shlex.join([f'{k}={v}'])}" for k, v in slurm.environment.items()),
            ],
            "slurm_srun_args": ["--kill-on-bad-exit=1"],
            "slurm_additional_parameters": dict(slurm.additional_parameters),
        }
    return {key: value for key, value in parameters.items() if value is not None}


def submit(
    arguments: Sequence[str],
    *,
    folder: Path,
    executor: Executor,
    parameters: Mapping[str, Any],
    run: Path | None = None,
    evaluates: Path | None = None,
    snapshot: Path | None = None,
) -> Job:
    """Start a command as a job whose files go to a new folder inside `folder`.

    `parameters` are submitit's (`nodes`, `tasks_per_node`, `gpus_per_node`, `slurm_partition`, ...). `run` is the run
    folder whose checkpoints are the job's progress, `evaluates` one whose teachers it measures, `snapshot` the copy of
    the code that it runs. Raises `SiteError` where the cluster is absent or refuses the job, `RunError` where this
    machine cannot start it.
    """
    if executor == "slurm":
        _require_cluster()
    fresh = _make_job_folder(folder)
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES") if executor == "local" and parameters.get("gpus_per_node") else None
    request = {
        "command": {
            "arguments": list(arguments),
            "visible_gpus": gpus,
            "run": None if run is None else str(run.resolve()),
            "evaluates": None if evaluates is None else str(evaluates.resolve()),
        },
        "executor": executor,
        "parameters": with_snapshot(parameters, snapshot=snapshot) if executor == "slurm" else dict(parameters),
    }
    (fresh / REQUEST_FILE).write_text(json.dumps(request, indent=1) + "\n")
    if executor == "slurm":
        return _submit_request(fresh)
    return _submit_detached(fresh, snapshot=snapshot)


def submit_array(
    commands: Sequence[tuple[Sequence[str], Path]],
    *,
    folder: Path,
    parameters: Mapping[str, Any],
    parallel: int,
    snapshot: Path,
) -> tuple[Job, ...]:
    """Start commands, each with its run folder, as one array of a cluster's jobs of which `parallel` run at a time.

    Raises `SiteError` where the cluster is absent or refuses it; then none of them was started.
    """
    _require_cluster()
    fresh = _make_job_folder(folder)
    full = {**with_snapshot(parameters, snapshot=snapshot), "slurm_array_parallelism": parallel}
    request = {"commands": [list(arguments) for arguments, _ in commands], "parameters": full}
    (fresh / REQUEST_FILE).write_text(json.dumps(request, indent=1) + "\n")
    executor = _make_executor(fresh, cluster="slurm", parameters=full)
    with _refusals(fresh), executor.batch():
        jobs = [executor.submit(Command(tuple(arguments), run=str(run.resolve()))) for arguments, run in commands]
    return tuple(Job("slurm", job.job_id, fresh) for job in jobs)


def with_snapshot(parameters: Mapping[str, Any], *, snapshot: Path | None) -> dict[str, Any]:
    """Parameters of a cluster's job whose script makes Python import a copy of the code."""
    if snapshot is None:
        return dict(parameters)
    lines = [
        "export PYTHONSAFEPATH=1",
        f'export PYTHONPATH={shlex.quote(str(snapshot))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
    ]
    return {**parameters, "slurm_setup": [*parameters.get("slurm_setup", ()), *lines]}


def render_script(folder: Path, *, parameters: Mapping[str, Any], ahead: int = 0) -> str:
    """The text that `sbatch` would be given for the next job inside `folder`, after so many that are still `ahead`.

    Asks no cluster and writes nothing.
    """
    from submitit.slurm.slurm import SlurmExecutor

    class Elsewhere(SlurmExecutor):
        """submitit's executor on a machine that need not have SLURM."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    executor = Elsewhere(next_job_folder(folder, ahead=ahead), max_num_timeout=MAX_REQUEUES)
    own = {key.removeprefix("slurm_"): value for key, value in parameters.items()}
    executor.update_parameters(**executor._convert_parameters(own))
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def load_job(folder: Path) -> Job:
    """The job whose files are in `folder`. Raises `RunError` where it was never submitted."""
    path = folder / JOB_FILE
    try:
        record = json.loads(path.read_text())
        return Job(executor=record["executor"], job_id=record["job_id"], folder=folder)
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"no job was recorded here ({error})", path=path) from error


def _submit_detached(folder: Path, *, snapshot: Path | None) -> Job:
    """Submit from a session of its own. The job's controller inherits the lock on its log, and frees it by dying.

    The lock says what a process id cannot: ids are used again, and an orphan that nobody reaps stays in the table.
    """
    log = folder / CONTROLLER_LOG
    copy = snapshot_environment(snapshot, os.environ) if snapshot else {}
    with log.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        submitter = subprocess.run(
            [sys.executable, "-m", "reproduce.launch", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env={**os.environ, **copy},
            check=False,
        )
    if submitter.returncode != 0:
        said = read_tail(log, size=4096).strip().splitlines() or ["no reason given"]
        raise RunError(f"the job could not be started: {said[-1]}", path=log)
    return load_job(folder)


def _submit_request(folder: Path) -> Job:
    """Submit what the request in `folder` asks for, and record the job beside it."""
    request = json.loads((folder / REQUEST_FILE).read_text())
    command, cluster = request["command"], request["executor"]
    executor = _make_executor(folder, cluster=cluster, parameters=request["parameters"])
    with _refusals(folder):
        job_id = executor.submit(Command(**{**command, "arguments": tuple(command["arguments"])})).job_id
    write_whole(folder / JOB_FILE, json.dumps({"executor": cluster, "job_id": job_id}) + "\n")
    return load_job(folder)


def _make_executor(folder: Path, *, cluster: Executor, parameters: Mapping[str, Any]) -> Any:
    """submitit's, always of a named cluster: it would take SLURM as soon as srun is on the PATH."""
    import submitit

    executor = submitit.AutoExecutor(folder=folder, cluster=cluster, slurm_max_num_timeout=MAX_REQUEUES)
    executor.update_parameters(**{"timeout_min": ONE_YEAR_MIN, **parameters})
    return executor


@contextmanager
def _refusals(folder: Path) -> Iterator[None]:
    """A cluster's refusal as the site's mistake, in the words of sbatch, which submitit would print as well."""
    from submitit.core.utils import FailedJobError

    try:
        with redirect_stderr(io.StringIO()):
            yield
    except FailedJobError as error:
        mend = "what it objects to is below slurm: in site.yaml; where no cluster answers (`sinfo`), use --site local"
        raise SiteError(f"the cluster refused the job: {str(error).strip()}", path=folder, mend=mend) from error


def next_job_folder(folder: Path, *, ahead: int = 0) -> Path:
    """The next numbered folder: job ids come again, and submitit would take an old job's result for the new one's."""
    numbers = (int(path.name) for path in folder.glob("*") if path.name.isdigit())
    return folder.resolve() / f"{1 + ahead + max(numbers, default=0):04d}"


def _make_job_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = next_job_folder(folder)
        fresh.mkdir()
    except OSError as error:
        raise RunError(f"cannot write here: {error.strerror}", path=folder) from error
    return fresh


def _require_cluster() -> None:
    if shutil.which("sbatch") is None:
        raise SiteError(
            "sbatch is not on the PATH", mend="run this on a login node of the cluster, or use --site local"
        )


if __name__ == "__main__":
    from reproduce import launch  # so that the job's pickle names this module, not __main__

    launch._submit_request(Path(sys.argv[1]))
