"""Progress for people and for log files."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

from reproduce.progress import Progress
from reproduce.screen import PlainScreen

HERE = Path(__file__).parent


def at(done: int, knn: float | None = None) -> Progress:
    return Progress(done, 100, {"loss": 14.0}, 800.0, 100.0 - done, None if knn is None else (done, 10, knn))


def test_plain_lines_are_few() -> None:
    """A run that is shown every moment prints its first and last state and each new evaluation, no more."""
    stream = io.StringIO()
    screen = PlainScreen(stream)
    screen.say("training")
    for done in range(101):
        screen.show(at(done, knn=90.0 if done == 50 else None) if done <= 50 else at(done))
    screen.end()
    screen.end()
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["training", "1/100", "50/100", "51/100", "100/100"]


def test_live_bar_fits_one_line_and_keeps_what_was_said() -> None:
    """On a terminal the bar moves in place; a line said in between stays as it was, brackets and all."""
    script = (
        "from test_screen import at; from reproduce.screen import LiveScreen; screen = LiveScreen()\n"
        "screen.say('runs/a@1/[main]: training')\n"
        "for done in range(0, 101, 50): screen.show(at(done, knn=91.25))\n"
        "screen.end(); screen.say('done')"
    )
    parent, child = pty.openpty()
    environment = {**os.environ, "COLUMNS": "60", "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=child, stderr=child, env=environment, cwd=HERE)
    os.close(child)
    output = b""
    try:
        while piece := os.read(parent, 4096):
            output += piece
    except OSError:  # Linux's way of saying that the other end is closed
        pass
    os.close(parent)
    assert process.wait() == 0
    text = output.decode()
    assert "runs/a@1/[main]: training\r\n" in text
    assert "100/100  loss 14" in text
    assert text.count("\r\n") == 3
