"""Runs followed live: real jobs write logs, real programs and a real server take the notices."""

import dataclasses
import http.server
import json
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from simulated_runs import RECIPE, Truth, simulate, write_run
from synthetic_runs import make_spec
from test_launch import start, wait_for_end

from reproduce.errors import RunError
from reproduce.files import write_whole
from reproduce.judging import RunFiles
from reproduce.launch import Job
from reproduce.live import Notify, follow_run
from reproduce.runs import record_launch
from reproduce.spec import PublishedLog

NOBODY = Notify(None, None)
TRAINS = """
import json, signal, sys, time
from pathlib import Path
folder, wait = Path(sys.argv[1]), float(sys.argv[2])
def save(number, frame):
    state = {"state": "interrupted", "iteration": 300, "of": 600, "images_per_second": None, "error": None}
    (folder / "state.json").write_text(json.dumps(state))
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
time.sleep(wait)
lines = (folder / "lines").read_text().splitlines(keepends=True)
for part in (lines[:31], lines[31:]):
    with (folder / "training_metrics.json").open("a") as file:
        file.writelines(part)
    time.sleep(wait)
if len(sys.argv) > 3:
    time.sleep(60)
(folder / "state.json").write_text(
    json.dumps({"state": "finished", "iteration": 600, "of": 600, "images_per_second": None, "error": None}))
"""


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    """A row with five reference logs, and where its run would be."""
    for seed in range(5):
        write_run(simulate(seed), tmp_path / "logfiles" / f"seed-{seed}")
    log = PublishedLog("own", None, None, None, None, ("logfiles/seed-*",), None)
    return RunFiles(
        dataclasses.replace(make_spec(recipe=RECIPE), path=tmp_path / "experiments" / "digits.yaml", published_log=log),
        "main",
    )


def launch(files: RunFiles, truth: Truth, *arguments: str) -> Job:
    """A job that logs the run in two parts, waiting before and between; a third argument keeps it from ending."""
    folder = write_run(truth, files.folder)
    (folder / "training_metrics.json").rename(folder / "lines")
    for name in ("log.txt", "state.json"):
        (folder / name).unlink()
    write_whole(folder / "provenance.json", json.dumps({"launches": []}))
    job = start(TRAINS, str(folder), *arguments, folder=folder.resolve() / "submitit")
    record_launch(folder, job=job, site="local")
    return job


def test_finished_run_is_judged_once(files: RunFiles) -> None:
    """How it ended is said; its checks are in the verdict, and not said beside it."""
    folder = write_run(simulate(50), files.folder)
    state = {"state": "finished", "iteration": 600, "of": 600, "images_per_second": None, "error": None}
    (folder / "state.json").write_text(json.dumps(state))
    said: list[str] = []
    verdict = follow_run(files, stop_on_failed=False, notify=NOBODY, say=said.append)
    assert verdict is not None
    assert verdict.done == 600
    (ended,) = said
    assert ended.endswith("finished at 600 of 600 iterations")


def test_run_is_waited_for_and_followed(files: RunFiles) -> None:
    """A job that has not logged yet is waited for; what its log shows later is judged as it comes."""
    job = launch(files, simulate(50), "1.5")
    said: list[str] = []
    verdict = follow_run(files, stop_on_failed=True, notify=NOBODY, say=said.append, period_s=0.1)
    wait_for_end(job)
    assert verdict is not None
    assert (verdict.done, verdict.outcome != "failed") == (600, True)
    assert "nothing is logged yet" in said[0]
    assert any(line.startswith("ON TRACK  At 5") for line in said)
    assert said[-1].endswith("finished at 600 of 600 iterations")


def test_run_that_is_proven_off_is_stopped(files: RunFiles) -> None:
    """The job is asked to save its work and end, and the way to go on is said; the verdict is failed."""
    job = launch(files, simulate(50, shift={"ibot_loss": 3.0}), "0.2", "and goes on")
    said: list[str] = []
    verdict = follow_run(files, stop_on_failed=True, notify=NOBODY, say=said.append, period_s=0.1)
    assert verdict is not None
    assert verdict.outcome == "failed"
    assert not job.is_running()
    assert job.exit_code() == 75
    assert any("reproduce resume" in line for line in said)
    assert said[-1].endswith("interrupted at 300 of 600 iterations")


@contextmanager
def listening() -> Iterator[tuple[str, list[bytes]]]:
    """A server's address, and what is posted to it."""
    bodies: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/notices", bodies
        server.shutdown()
        thread.join()


def test_notices_reach_a_program_and_an_address_as_data(files: RunFiles, tmp_path: Path) -> None:
    """Both are given the same JSON; no shell sees anything, neither of the log nor of the command's own words."""
    write_run(simulate(50, shift={"ibot_loss": 3.0}), files.folder)
    metrics = files.folder / "training_metrics.json"
    metrics.write_text(metrics.read_text() + '{"iteration": 599, "$(touch owned)": "`touch owned`"}\n')
    (files.folder / "state.json").unlink()
    script = tmp_path / "takes.py"
    script.write_text(
        "import sys\nwith open(sys.argv[1], 'ab') as file:\n"
        "    file.write(sys.stdin.buffer.read() + sys.argv[2].encode())\n"
    )
    taken = tmp_path / "taken"
    command = shlex.join([sys.executable, str(script), str(taken), ";touch owned\n"])
    with listening() as (url, bodies):
        verdict = follow_run(files, stop_on_failed=False, notify=Notify(command, url), say=lambda _: None)
    assert verdict is not None
    notices = [json.loads(body) for body in bodies]
    assert b"".join(body + b";touch owned\n" for body in bodies) == taken.read_bytes()
    assert [notice["event"] for notice in notices[-2:]] == ["outcome", "ended"]
    failed = [
        notice["check"] for notice in notices if notice["event"] == "check" and notice["check"]["state"] == "fail"
    ]
    assert "band-ibot_loss" in [check["id"] for check in failed]
    assert all(notice["row"] == files.spec.row for notice in notices)
    assert not list(tmp_path.rglob("owned"))


def test_notice_that_cannot_be_given_stops_nothing(files: RunFiles) -> None:
    """A program that is not there, one that fails and an address that nobody listens at are said."""
    write_run(simulate(50), files.folder)
    (files.folder / "state.json").unlink()
    for notify in (Notify("/no/such/program", None), Notify("false", None), Notify(None, "http://127.0.0.1:9/")):
        said: list[str] = []
        assert follow_run(files, stop_on_failed=False, notify=notify, say=said.append) is not None
        assert any("could not be given" in line for line in said)


def test_what_cannot_be_followed_is_a_mistake(files: RunFiles) -> None:
    """No run, a folder that nothing was ever trained in, and an address that is none."""
    with pytest.raises(RunError, match="no run here"):
        follow_run(files, stop_on_failed=False, notify=NOBODY, say=print)
    with pytest.raises(RunError, match="no web address"):
        follow_run(files, stop_on_failed=False, notify=Notify(None, "file:///etc/passwd"), say=print)
    files.folder.mkdir(parents=True)
    with pytest.raises(RunError, match="nothing was trained here"):
        follow_run(files, stop_on_failed=False, notify=NOBODY, say=print)
