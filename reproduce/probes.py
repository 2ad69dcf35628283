"""A site in, what is wrong with it out: a job of two nodes tries what a run needs, before a run has to find out."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from reproduce.compose import find_root
from reproduce.containers import python_command
from reproduce.launch import Job, site_parameters, submit
from reproduce.resolve import visible_gpus
from reproduce.sites import Site
from reproduce.terminal import render_table

POLL_S = 1.0
MEETING_S = 120.0  # from the first process's first word to the last one's
LIMIT_MIN = 10  # short jobs start soon
SKEW_S = 5.0
SLOW_MB_S = 50.0  # a checkpoint of 20 GB then takes seven minutes

Outcome = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Trial:
    """One thing that was tried: how it went, what was found, and what to do about it."""

    outcome: Outcome
    what: str
    found: str
    mend: str | None = None


def check_site(site: Site, *, wait_s: float) -> tuple[Trial, ...]:
    """Submit the probe, wait for it as long as is allowed, and say what it found. Raises `SiteError` where refused."""
    device = "cuda" if site.device == "cuda" else "cpu"
    nodes = min(site.nodes, 2) if site.executor == "slurm" else 1
    gpus = visible_gpus() if site.gpus_per_node is None and site.executor == "local" else site.gpus_per_node
    tasks = max(1, (gpus if device == "cuda" else site.processes_per_node) or 1)
    root = find_root()
    folder = root / "runs" / "probes" / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    folder.mkdir(parents=True)
    roots = sorted(root for root in site.data_roots.values() if root)
    command = [*python_command(site, root=root), "-m", "franca.probe", str(folder), "--device", device]
    command += ["--processes", str(nodes * tasks), *(["--data", *roots] if roots else [])]
    parameters = site_parameters(site, name="probe", device=device, nodes=nodes, tasks_per_node=tasks)
    parameters |= {"timeout_min": LIMIT_MIN}
    job = submit(command, folder=folder / "submitit", executor=site.executor, parameters=parameters)
    try:
        reason = _await(job, folder=folder, processes=nodes * tasks, wait_s=wait_s)
    finally:
        job.stop()
    unset = [name for name, folder in site.data_roots.items() if not folder]
    said = reason or job.last_words()
    return tuple(judge_probe(load_findings(folder), processes=nodes * tasks, said=said, unset=unset))


def load_findings(folder: Path) -> tuple[dict[str, Any], ...]:
    """What each process wrote, in the order of their ranks."""
    found = [json.loads(path.read_text()) for path in folder.glob("rank_*.json")]
    return tuple(sorted(found, key=lambda finding: int(finding["rank"])))


def judge_probe(
    findings: Sequence[dict[str, Any]], *, processes: int, said: str, unset: Sequence[str] = ()
) -> Iterator[Trial]:
    """What the findings of a probe mean. `said`: the job's last words, for where it found nothing.

    unset: the data sets of which the site does not say where they lie.
    """
    if not findings:
        mend = "see that slurm.setup and this folder's Python environment are there on the nodes"
        yield Trial("fail", "start", said or "no process started", mend)
        return
    hosts = sorted({str(finding["host"]) for finding in findings})
    yield Trial("pass", "start", f"{len(findings)} of {processes} processes on {', '.join(hosts)}")
    yield _judge_meeting(findings, processes=processes)
    yield _judge_environment(findings)
    yield _judge_data(findings, unset=unset)
    slowest = min(findings, key=lambda finding: float(finding["write_mb_s"]))
    text = f"{slowest['write_mb_s']:,.0f} MB/s at the slowest ({slowest['host']})"
    slow: Outcome = "warn" if slowest["write_mb_s"] < SLOW_MB_S else "pass"
    yield Trial(slow, "write speed", text, "put runs/ on faster disks")
    met = [finding for finding in findings if finding["met"]]
    if len(met) < processes:
        return
    blind = [f"{finding['host']} sees {finding['seen']}" for finding in met if finding["seen"] != processes]
    mend = "put the project on a folder that all nodes share"
    yield Trial("fail" if blind else "pass", "shared folder", ", ".join(blind) or f"all see {processes} files", mend)
    clocks = [float(finding["clock"]) for finding in met]
    skew = max(clocks) - min(clocks)
    yield Trial("warn" if skew > SKEW_S else "pass", "clock", f"{skew:.1f} s apart", "let the nodes keep network time")


def render_trials(trials: Sequence[Trial], *, width: int) -> str:
    """The trials as a table, with the mend of what failed."""
    rows = [
        (t.outcome, t.what, t.found if t.outcome == "pass" or not t.mend else f"{t.found}; mend: {t.mend}")
        for t in trials
    ]
    return render_table(("outcome", "tried", "found"), rows, width=width)


def _judge_meeting(findings: Sequence[dict[str, Any]], *, processes: int) -> Trial:
    errors = [f"{finding['host']}: {finding['error']}" for finding in findings if finding["met"] is False]
    waiting = [str(finding["host"]) for finding in findings if finding["met"] is None]
    mend = "open the port between the nodes, let their names resolve, or set NCCL_SOCKET_IFNAME in slurm.environment"
    if errors:
        return Trial("fail", "rendezvous", errors[0], mend)
    if waiting or len(findings) < processes:
        text = f"{len(findings)} of {processes} processes came; at {findings[0]['meeting']} wait: {', '.join(waiting)}"
        return Trial("fail", "rendezvous", text, mend)
    longest = max(float(finding["meeting_s"]) for finding in findings)
    return Trial("pass", "rendezvous", f"{processes} processes added up their ones within {longest:.1f} s")


def _judge_data(findings: Sequence[dict[str, Any]], *, unset: Sequence[str]) -> Trial:
    absent = sorted({f"{folder} on {finding['host']}" for finding in findings for folder in finding["absent_data"]})
    if absent:
        return Trial("fail", "data", f"not there: {', '.join(absent)}", "mend data_roots in site.yaml, or mount them")
    if unset:
        said = f"no folder is named for {', '.join(unset)}: rows of theirs cannot run here"
        return Trial("warn", "data", said, "write data_roots in site.yaml; `reproduce plan ROW` says what a row lacks")
    return Trial("pass", "data", "all there")


def _judge_environment(findings: Sequence[dict[str, Any]]) -> Trial:
    versions = sorted({f"Python {finding['python']}, torch {finding['torch']}" for finding in findings})
    outcome: Outcome = "pass" if len(versions) == 1 else "fail"
    return Trial(outcome, "environment", " and ".join(versions), "give all nodes one environment")


def _await(job: Job, *, folder: Path, processes: int, wait_s: float) -> str:
    """Wait for the probe's end; why it was not waited for any longer, or the empty string."""
    end, first = time.monotonic() + wait_s, None
    while job.is_running():
        now = time.monotonic()
        findings = load_findings(folder)
        first = first or (now if findings else None)
        if first is not None and now - first > MEETING_S:
            return "the processes did not meet"
        if not findings and now > end:
            return f"the job did not start within {wait_s:.0f} s"
        if sum(finding["met"] is not None for finding in findings) == processes:
            return ""
        time.sleep(POLL_S)
    return ""
