"""A job that ended before its time in, the cause and its mend out: from the accounts of its processes and its logs.

One process's failure makes the others fail of its absence, so the account that counts is the first one that tells of
something else. What is killed leaves no account: then the cluster's words at the end of the logs say who did it.
"""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from reproduce.attempts import KILLED
from reproduce.files import read_tail
from reproduce.launch import Job

Kind = Literal[
    "error",
    "host memory",
    "GPU memory",
    "full disk",
    "time limit",
    "preemption",
    "node failure",
    "hang",
    "cancelled",
    "killed",
]

GOES_ON = "the same command goes on from the last checkpoint"
BEGINS_ANEW = "no checkpoint was written yet: the same command begins anew"
MENDS: dict[Kind, str] = {
    "error": "find the cause in the file above",
    "host memory": f"ask for more memory (slurm.mem_gb_per_node) or for fewer workers; {GOES_ON}",
    "GPU memory": "lower batch_per_gpu_max, or set activation_checkpointing: true; the result stays the same",
    "full disk": f"make room where the run folder lies; {GOES_ON}",
    "time limit": f"raise slurm.signal_delay_s above the time of a step and a checkpoint; {GOES_ON}",
    "preemption": GOES_ON,
    "node failure": GOES_ON,
    "hang": f"see where each process stood in failures/rank_*.stacks; {GOES_ON}",
    "cancelled": GOES_ON,
    "killed": f"{GOES_ON}; if nobody killed it, look for a lack of memory",
}
LOST: frozenset[Kind] = frozenset({"time limit", "preemption", "node failure", "hang"})  # worth another launch as it is

# What SLURM's slurmstepd and srun print, Python and torch say; the last one in the logs counts
Phrases = tuple[tuple[Kind, str], ...]
PHRASES: Phrases = (
    ("host memory", r"exceeded memory limit.*|[Oo]ut [Oo]f [Mm]emory.*|oom[-_ ]kill.*|MemoryError\b.*"),
    ("GPU memory", r"CUDA out of memory.*"),
    ("full disk", r".*No space left on device.*|.*Disk quota exceeded.*"),
    ("time limit", r".*CANCELLED AT .* DUE TO TIME LIMIT.*"),
    ("preemption", r".*CANCELLED AT .* DUE TO PREEMPTION.*"),
    ("node failure", r".*CANCELLED AT .* DUE TO NODE FAILURE.*|.*Node failure on .*"),
)
LESS: Phrases = (  # they say that it ended, not why
    ("killed", rf"{KILLED} SIG\w+"),
    ("cancelled", r".*\bCANCELLED AT \S+ \*\*\*.*"),
)
TRACEBACK = re.compile(  # of an error before the trainer could account for it; torch puts the rank before each line
    r"^(?:\[rank\d+\]: ?)?Traceback \(most recent call last\):\n"
    r"(?:(?:\[rank\d+\]: ?)?[ \t].*\n)*(?:\[rank\d+\]: ?)?(\S.*)",
    re.MULTILINE,
)
AT = re.compile(r"CANCELLED AT (\S+)")  # local time
ABSENCE = re.compile(  # how a process says that another one is gone
    r"Connection (closed|reset|refused)|Broken pipe|recvValue failed|remote process exited|NCCL (error|communicator)"
    r"|store->get|Timed out (after )?waiting|[Ww]atchdog caught collective",
)
STATES: dict[str, Kind] = {  # of a job, as squeue and scontrol name them
    "BOOT_FAIL": "node failure",
    "CANCELLED": "cancelled",
    "NODE_FAIL": "node failure",
    "OUT_OF_MEMORY": "host memory",
    "PREEMPTED": "preemption",
    "TIMEOUT": "time limit",
}
CLOCKS_S = 5.0  # between the clocks of two nodes
TAIL_BYTES = 65536


@dataclass(frozen=True)
class Cause:
    """Why a job ended: what kind of thing, in whose words, whose process (None: not told), and all that it said."""

    kind: Kind
    said: str
    rank: int | None
    traceback: str

    @property
    def mend(self) -> str:
        """What to do about it."""
        return MENDS[self.kind]


def find_cause(folder: Path, *, job: Job) -> Cause | None:
    """Why the newest start of a job of the run in `folder` ended; None where nothing tells."""
    starts = job.starts()
    since = datetime.fromisoformat(starts[-1].time).timestamp() - CLOCKS_S if starts else 0.0
    accounts = sorted(_load_accounts(folder, since=since), key=lambda account: float(account["time"]))
    own = [account for account in accounts if not ABSENCE.search(account["message"])]
    if own:
        return _make_cause(own[0])
    stuck = [path for path in _stacks(folder) if path.stat().st_size and path.stat().st_mtime >= since]
    if stuck:
        ranks = ", ".join(path.stem.removeprefix("rank_") for path in stuck)
        return Cause("hang", f"no step was finished in time; stuck: {ranks}", None, stuck[0].read_text()[-4096:])
    logs = _load_logs(job)
    text = "\n".join(logs.values())
    if job.exit_code():  # it ended by itself: a cancelled step is what srun does to the other tasks then
        return (
            find_phrase(text, since=since, tables=(PHRASES,))
            or find_traceback(logs)
            or find_phrase(text, since=since, tables=(LESS[:1],))
            or (_make_cause(accounts[0]) if accounts else None)
        )
    return find_phrase(text, since=since) or (_make_cause(accounts[0]) if accounts else None)


def ask_cause(job: Job) -> Cause | None:
    """Why a job of a cluster ended, of which nobody was left to tell: its state, while the controller remembers it."""
    if job.executor != "slurm" or shutil.which("scontrol") is None:
        return None
    answer = subprocess.run(["scontrol", "--oneliner", "show", "job", job.job_id], capture_output=True, text=True)
    state = re.search(r"\bJobState=(\w+)", answer.stdout)
    kind = STATES.get(state[1]) if state else None
    return Cause(kind, f"the cluster says {state[1]}", None, "") if state and kind else None


def find_traceback(logs: Mapping[int, str]) -> Cause | None:
    """The last exception that a process printed as it ended, of those that do not tell of another one's absence."""
    for rank, text in sorted(logs.items()):
        found = [match for match in TRACEBACK.finditer(text) if not ABSENCE.search(match[1])]
        if found:
            phrase = find_phrase(found[-1][1], tables=(PHRASES,))
            return Cause(phrase.kind if phrase else "error", found[-1][1].strip(), rank, found[-1][0])
    return None


def find_phrase(text: str, *, since: float = 0.0, tables: Sequence[Phrases] | None = None) -> Cause | None:
    """The last thing in a log by which a cause is known; what befell the job before `since`, it survived.

    tables: what is looked for, that which tells more first; all of it if left out.
    """
    for phrases in tables or (PHRASES, LESS):
        found = [
            (match.start(), kind, match[0].strip())
            for kind, phrase in phrases
            for match in re.finditer(phrase, text)
            if _time(match[0]) >= since
        ]
        if found:
            _, kind, said = max(found)
            return Cause(kind, said, None, "")
    return None


def _time(line: str) -> float:
    """When the cluster wrote a line that says so; infinite for one that does not."""
    at = AT.search(line)
    return datetime.fromisoformat(at[1]).timestamp() if at else math.inf


def _make_cause(account: dict[str, Any]) -> Cause:
    said = f"{account['type']}: {account['message']} ({account['where']})"
    phrase = find_phrase(account["message"])
    kind: Kind = phrase.kind if phrase else "host memory" if account["type"] == "MemoryError" else "error"
    if account["type"] == "OutOfMemoryError":
        kind = "GPU memory"
    return Cause(kind, said, int(account["rank"]), account["traceback"])


def _load_accounts(folder: Path, *, since: float) -> Iterator[dict[str, Any]]:
    """What the processes of this start left; the room of one that did not fail is blank."""
    for path in sorted(folder.glob("failures/rank_*.json")):
        try:
            account = json.loads(path.read_text())
        except ValueError:  # blank, or being written
            continue
        if float(account["time"]) >= since:
            yield account


def _stacks(folder: Path) -> list[Path]:
    paths = folder.glob("failures/rank_*.stacks")
    return sorted(paths, key=lambda path: int(path.stem.removeprefix("rank_")))


def _load_logs(job: Job) -> dict[int, str]:
    """The ends of what each process of a job printed as errors, the first one's last: it has the cluster's words."""
    found = ((_rank_of(path, job), path) for path in job.folder.glob(f"{job.job_id}_*_log.err"))
    return {rank: read_tail(path, size=TAIL_BYTES) for rank, path in sorted(found, reverse=True)}


def _rank_of(path: Path, job: Job) -> int:
    return int(path.name.removeprefix(f"{job.job_id}_").removesuffix("_log.err"))
