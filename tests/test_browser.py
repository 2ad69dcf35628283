"""The pages in a real browser: nothing runs, nothing is fetched, nothing overflows, no label covers another."""

import dataclasses
import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from chromium import NEEDED, load_page
from chromium import browse as browse_file
from synthetic_runs import make_check, make_result, make_runs, make_spec, make_verdict
from test_signatures import make_record

from reproduce.report.index import IndexEntry, IndexRun, render_index
from reproduce.report.page import render_report
from reproduce.signatures import SignedRecord

pytestmark = NEEDED

EVIL = "https://evil.invalid/"

# The page lies in a frame of the width that is tested; the frame's parent measures it and writes down what it found.
MEASURE = """<!doctype html><body style="margin:0"><iframe id="frame" style="border:0;width:WIDTHpx;height:900px"
srcdoc="PAGE"></iframe><pre id="found"></pre><script>
addEventListener("load", () => {
  const inner = document.getElementById("frame").contentDocument, root = inner.documentElement;
  inner.querySelectorAll("details").forEach(details => details.open = true);
  inner.querySelectorAll(".to-AXIS").forEach(choice => choice.checked = true);
  const shows = element => getComputedStyle(element).display != "none";
  const scrolls = element => element.closest(".scroll, .evidence, pre, .symbols, .skip");
  const all = [...inner.body.querySelectorAll("*")];
  const name = element => element.tagName + ": " + element.textContent.trim().slice(0, 40);
  const shown = all.filter(element => element.getClientRects().length && !element.closest("[aria-hidden]"));
  const words = shown.filter(element => [...element.childNodes].some(node => node.nodeType == 3 && node.data.trim()));
  const size = element => parseFloat(getComputedStyle(element).fontSize);
  const meets = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 2 && b.top < a.bottom - 2;
  const covered = [...inner.querySelectorAll("svg.panel")].flatMap(panel => {
    const labels = [...panel.querySelectorAll("text")].map(text => [text, text.getBoundingClientRect()]);
    return labels.flatMap(([text, box], place) => labels.slice(place + 1).filter(
      ([other, theirs]) => meets(box, theirs)).map(([other]) => text.textContent + " covers " + other.textContent));
  });
  document.getElementById("found").textContent = JSON.stringify({
    overflow: root.scrollWidth - root.clientWidth,
    beyond: shown.filter(element => element.getBoundingClientRect().right > root.clientWidth + 1 && !scrolls(element))
      .map(name),
    small: words.filter(element => size(element) < 12).map(name),
    covered: covered,
    undrawn: [...inner.querySelectorAll("svg.panel path.mine")].filter(
      path => path.getClientRects().length && !path.getBoundingClientRect().width).length,
    axes: [...inner.querySelectorAll("#losses .by")].filter(shows).map(element => element.getAttribute("class")),
    title: inner.title,
  });
});
</script>"""


def browse(folder: Path, page: str, *arguments: str) -> str:
    """The document as Chromium has it after loading `page`, in a profile of its own."""
    path = folder / "page.html"
    path.write_text(page)
    return browse_file(path, *arguments, profile=folder / "profile")[0]


def measure(folder: Path, page: str, *, width: int, axis: str = "iteration") -> dict[str, Any]:
    """What `MEASURE` finds in the page at a width, its curves drawn over an axis."""
    frame = MEASURE.replace("WIDTH", str(width)).replace("AXIS", axis).replace("PAGE", html.escape(page))
    document = browse(folder, frame, "--dump-dom", "--window-size=1600,1000")
    found = re.search(r'<pre id="found">(.*?)</pre>', document, flags=re.DOTALL)
    assert found is not None
    return json.loads(html.unescape(found[1]))  # type: ignore[no-any-return]


def make_pages() -> dict[str, str]:
    """A report in full, one of a failing run, one of a row that was never run, a comparison, and the index."""
    mine, references = make_runs()
    verdict = make_verdict(mine=mine, references=references)
    failing = make_check(layer="L4", state="fail", title="long " * 12, finding="word " * 60, value=123.456)
    failed = make_verdict(
        mine=mine, references=references, outcome="failed", checks=(failing,), sentence="long sentence " * 20,
        metrics=(make_result(low=-3.2, high=-2.1, difference=-2.6, state="worse", target_source="x" * 60),),
    )  # fmt: skip
    alone = dataclasses.replace(mine, name="a-log-with-a-very-long-name-" * 3, config=None, knn={})
    spec = make_spec()
    others = tuple(
        IndexRun(f"{name}=0.006", failed, f"{name}.html", "") for name in ("optim.base_lr", "seed", "x" * 74)
    )
    entries = [IndexEntry(spec, IndexRun("main", verdict, None, ""), "digits.html", "dvc repro digits", others),
               IndexEntry(spec, None, None, "x" * 90)]  # fmt: skip
    record = make_record(name="a-very-long-name-of-someone@example.org", sentence="long " * 40, published=97.1)
    signed = [
        SignedRecord(Path("x.json"), record, "verified", ""),
        SignedRecord(Path("y" * 90), record, "altered", "no"),
    ]
    return {
        "report": render_report(verdict, mine=mine, references=references, spec=spec, commands=["x" * 300]),
        "failed": render_report(failed, mine=mine, references=references, spec=spec),
        "audit": render_report(None, spec=spec),
        "compare": render_report(make_verdict(mine=alone, references=[], metrics=()), mine=alone),
        "index": render_index(entries, signed=signed),
    }


PAGES = make_pages()


@pytest.mark.parametrize("width", [360, 768, 1440])
@pytest.mark.parametrize("name", PAGES)
def test_page_fits_its_window(name: str, width: int, tmp_path: Path) -> None:
    """At the widths of a phone, a tablet and a desk: no sideways scroll, no tiny text, no label over another."""
    found = measure(tmp_path, PAGES[name], width=width)
    assert found["overflow"] == 0, found["beyond"]
    assert found["beyond"] == []
    assert found["small"] == []
    assert found["covered"] == []
    assert found["undrawn"] == 0


@pytest.mark.parametrize("axis", ["iteration", "progress", "images", "gpu-hours"])
def test_curves_are_shown_over_the_chosen_axis(axis: str, tmp_path: Path) -> None:
    """Without a script: what belongs to the axis is shown, fits a phone and covers nothing, and nothing else is."""
    found = measure(tmp_path, PAGES["report"], width=360, axis=axis)
    assert found["axes"]
    assert all(f"by-{axis}" in classes.split() for classes in found["axes"])
    assert (found["overflow"], found["beyond"], found["covered"], found["undrawn"]) == (0, [], [], 0)


def test_policy_of_the_page_holds(tmp_path: Path) -> None:
    """Even a script and an image that got into the page would neither run nor be fetched; without it they would."""
    intruder = f'<script>document.title="run"</script><img src="{EVIL}x"><script>fetch("{EVIL}y")</script>'
    page = tmp_path / "page.html"
    page.write_text(PAGES["audit"].replace("</main>", intruder + "</main>"))
    document, said, requests = load_page(page, profile=tmp_path / "kept")
    assert "<title>digits@1: Not run</title>" in document
    assert len([line for line in said if "Content Security Policy" in line]) == 3
    assert requests == []
    page.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text()))
    document, said, requests = load_page(page, profile=tmp_path / "open")
    assert "<title>run</title>" in document
    assert sorted(requests) == [f"{EVIL}x", f"{EVIL}y"]


@pytest.mark.parametrize(("scheme", "dark"), [(1, False), (0, True)])
def test_page_follows_the_color_scheme(scheme: int, dark: bool, tmp_path: Path) -> None:
    """A dark desktop gets a dark page."""
    from PIL import Image

    shot = tmp_path / "shot.png"
    browse(tmp_path, PAGES["report"], f"--screenshot={shot}", "--window-size=800,600",
           f"--blink-settings=preferredColorScheme={scheme}")  # fmt: skip
    pixels = Image.open(shot).convert("L").resize((1, 1)).getpixel((0, 0))
    assert isinstance(pixels, int)
    assert (pixels < 100) is dark


def test_report_prints_with_its_evidence(tmp_path: Path) -> None:
    """On paper closed details are open: the PDF has more pages than one in which they stay closed."""
    opening = "details::details-content { content-visibility: visible; block-size: auto; }"
    assert opening in PAGES["report"]
    pages = []
    for page in (PAGES["report"], PAGES["report"].replace(opening, "")):
        printed = tmp_path / "report.pdf"
        browse(tmp_path, page, f"--print-to-pdf={printed}")
        pages.append(len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes())))
    assert 4 <= pages[1] < pages[0] <= 30
