"""Chromium without a window in a profile of its own: what it makes of a page, what the page says and asks for."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
NEEDED = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
QUIET = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=3000",
         "--enable-logging=stderr")  # fmt: skip
OWN = "not an origin"  # who begins the requests that Chromium makes for itself


def browse(page: Path, *arguments: str, profile: Path) -> tuple[str, list[str]]:
    """What Chromium prints after loading a page, and all that the page's console says: errors, and what was refused."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", *arguments, page.as_uri()]
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=120)
    return done.stdout, re.findall(r":CONSOLE.*", done.stderr)


def load_page(page: Path, *, profile: Path) -> tuple[str, list[str], list[str]]:
    """The document that comes of a page, what its console says, and the addresses that it asked for."""
    log = profile.with_suffix(".net.json")
    document, said = browse(
        page, "--dump-dom", f"--log-net-log={log}", "--net-log-capture-mode=Everything", profile=profile
    )
    requests = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    return document, said, [item["url"] for item in requests if item.get("initiator", OWN) != OWN and "url" in item]
