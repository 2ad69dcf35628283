"""A run that is being trained in, each check as it turns out: said, and told to a command or a web address.

Nothing here depends on having been there from the start: a run that waits is waited for, one that was resumed is read
as one run, and one that has ended is judged once. What a log says reaches no shell: notices are JSON, given to a
command on its standard input and to an address as the body of a request.
"""

import json
import shlex
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduce.checks import Check
from reproduce.errors import RunError
from reproduce.files import short_path
from reproduce.judging import RunFiles
from reproduce.lineage import FOLDER_LOGS, load_history
from reproduce.references import load_references
from reproduce.runs import is_alive, newest_job, read_state
from reproduce.verdict import Verdict, judge

PERIOD_S = 5.0
PATIENCE = 10  # times as long as a judgment takes is waited before the next: a long log is no load
NOTICE_S = 30.0


@dataclass(frozen=True)
class Notify:
    """Where notices go, each may be None. command: a program and its arguments, run without a shell."""

    command: str | None
    url: str | None


def follow_run(
    files: RunFiles,
    *,
    stop_on_failed: bool,
    notify: Notify,
    say: Callable[[str], None],
    period_s: float = PERIOD_S,
) -> Verdict | None:
    """Judge a run again whenever its log has grown, until it has ended; the last verdict, None without a line.

    Each check is said as it turns while the run is being trained.

    With `stop_on_failed` a run that a check proves off is asked to stop, as Ctrl-C would: it saves a checkpoint and can
    be resumed. Raises `RunError` where there is no such run, or none that was ever started.
    """
    _check_url(notify)
    if not files.folder.is_dir():
        raise RunError("no run here", path=files.folder, mend=files.command)
    references = load_references(files.spec.published_log, root=files.spec.root)
    verdict: Verdict | None = None
    seen, stopped, waited = _log_state(files.folder)[:0], False, False
    while True:
        running = is_alive(files.folder)
        now, took = _log_state(files.folder), 0.0
        if now and now != seen:
            began, before, seen = time.monotonic(), verdict, now
            verdict = judge(load_history(files.folder), references, spec=files.spec)
            for event in _turns(before, verdict):
                if running:  # of one that has ended, all are in the verdict
                    say(_render(event))
                send(event, verdict=verdict, notify=notify, say=say)
            took = time.monotonic() - began
        elif not now and running and not waited:
            say(f"{short_path(files.folder)}: nothing is logged yet, waiting")
            waited = True
        if stop_on_failed and not stopped and running and verdict is not None and verdict.outcome == "failed":
            stopped = _stop(files, verdict, notify=notify, say=say)
        if not running and _log_state(files.folder) == seen:
            return _ended(files, verdict, notify=notify, say=say)
        time.sleep(max(period_s, PATIENCE * took) if running else 0.0)


def send(event: Mapping[str, Any], *, verdict: Verdict, notify: Notify, say: Callable[[str], None]) -> None:
    """Give a notice to the command and the address. One that cannot be given is said, and stops nothing."""
    notice = {
        "row": verdict.row,
        "version": verdict.version,
        "run": verdict.run,
        "done": verdict.done,
        "total": verdict.total,
        "outcome": verdict.outcome,
        **event,
    }
    body = json.dumps(notice, allow_nan=False).encode()
    if notify.command is not None:
        try:
            subprocess.run(
                shlex.split(notify.command), input=body, check=True, timeout=NOTICE_S, stdout=subprocess.DEVNULL
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            say(f"the notice could not be given to the command: {error}")
    if notify.url is not None:
        request = urllib.request.Request(notify.url, data=body, headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=NOTICE_S):
                pass
        except (OSError, ValueError) as error:
            say(f"the notice could not be given to the address: {error}")


def _check_url(notify: Notify) -> None:
    if notify.url is not None and not notify.url.startswith(("https://", "http://")):
        raise RunError(f"--notify-url {notify.url}: no web address", mend="give one that begins with https://")
    if notify.command is not None and not notify.command.strip():
        raise RunError("--notify-command is empty", mend="name a program, with its arguments")


def _log_state(folder: Path) -> tuple[tuple[str, int], ...]:
    """The sizes of what a verdict rests on; empty where no line was logged."""
    logs = [folder / name for name in FOLDER_LOGS if (folder / name).is_file()]
    if not any(path.stat().st_size for path in logs):
        return ()
    paths = [*logs, *sorted(folder.glob("eval/*/results_eval_*.json"))]
    return tuple((str(path), path.stat().st_size) for path in paths)


def _turns(before: Verdict | None, after: Verdict) -> list[dict[str, Any]]:
    """An event for each check whose state is not what it was, and one for an outcome that is not."""
    known = {check.id: check.state for check in before.checks} if before else {}
    events = [
        {"event": "check", "check": _describe(check)}
        for check in after.checks
        if known.get(check.id, "unknown") != check.state
    ]
    if before is None or before.outcome != after.outcome:
        events.append({"event": "outcome", "sentence": after.sentence, "text": after.outcome})
    return events


def _describe(check: Check) -> dict[str, Any]:
    return {
        "id": check.id,
        "layer": check.layer,
        "title": check.title,
        "state": check.state,
        "finding": check.finding,
        "iteration": check.iteration,
    }


def _render(event: Mapping[str, Any]) -> str:
    if event["event"] == "check":
        check = event["check"]
        return f"{check['state']:<7}  {check['layer']}  {check['title']}: {check['finding']}"
    return f"{event['text'].upper()}  {event['sentence']}"


def _stop(files: RunFiles, verdict: Verdict, *, notify: Notify, say: Callable[[str], None]) -> bool:
    """Ask the job to save its work and end; False where the run was started by hand, and no job can be asked."""
    job = newest_job(files.folder)
    if job is None or not job.is_running():
        say("the run is proven off, but no job of reproduce trains it: stop it where it was started")
        return True
    job.stop()
    resume = shlex.join(("reproduce", "resume", files.spec.row, *files.spec.overrides))
    sentence = f"proven off: job {job.job_id} was asked to save its work and end; go on all the same with: {resume}"
    say(sentence)
    send({"event": "stopped", "sentence": sentence}, verdict=verdict, notify=notify, say=say)
    return True


def _ended(files: RunFiles, verdict: Verdict | None, *, notify: Notify, say: Callable[[str], None]) -> Verdict | None:
    state = read_state(files.folder)
    if verdict is None and state is None:
        raise RunError("nothing was trained here, and nothing is on its way", path=files.folder, mend=files.command)
    how = f"{state.state} at {state.iteration} of {state.of} iterations" if state else "ended without a word"
    say(f"{short_path(files.folder)}: {how}")
    if verdict is not None:
        event = {"event": "ended", "state": state.state if state else None, "sentence": verdict.sentence}
        send(event, verdict=verdict, notify=notify, say=say)
    return verdict
