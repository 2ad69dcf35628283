"""Logs, run folders and rows full of HTML, shell and control characters: text everywhere, in a browser too."""

import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from chromium import NEEDED, load_page
from html_page import Page
from row_copies import copy_rows
from simulated_runs import make_records, render_text, simulate, write_run
from test_signatures import make_record
from typer.testing import CliRunner

from reproduce import signing, watching  # noqa: F401  they bring their commands along
from reproduce.cli import app

EVIL = "http://evil.invalid/"
HOSTILE = (
    f'</script></style></title></svg><script>document.title="run"</script><img src="{EVIL}a" onerror="fetch(\'{EVIL}b'
    f'\')">"><svg onload="fetch(\'{EVIL}c\')">]]>--><!--<iframe src={EVIL}d></iframe><link rel=stylesheet href={EVIL}e>'
    f"<meta http-equiv=refresh content='0;url={EVIL}f'><a href=\"javascript:document.title='run'\">'`touch ran`$(touch "
    "ran);|&amp;{{7*7}}{% raw %}\u202egnp.exe\u2066\u200b\ufeff\u2028\x1b[31m\x1b]0;title\x07\x9b2J\x08\x00\x7f"
)
LONG = "wide" * 2000
FORBIDDEN = {"img", "iframe", "object", "embed", "form", "base", "link", "audio", "video"}
SAFE_LINK = re.compile(
    r"#[a-z-]+|https://[\w.-]+/[^\s<>\"]*|[\w.%,=+-]+\.html|data:application/json;base64,[\w+/]+={0,2}"
)


@dataclass(frozen=True)
class Pages:
    """What the commands wrote and said: pages by their kind, verdicts beside them, and all that was printed."""

    folder: Path
    html: dict[str, str]
    verdicts: dict[str, str]
    printed: dict[str, str]


def write_hostile_run(folder: Path, *, seed: int) -> Path:
    """A run whose name, columns, torn lines and records are hostile, as far as a file can hold it."""
    write_run(simulate(seed), folder)
    metrics = folder / "training_metrics.json"
    lines = metrics.read_text().splitlines()
    lines[3] = json.dumps({**json.loads(lines[3]), HOSTILE + "\ud800": 1.0, LONG: HOSTILE, "ibot_loss": HOSTILE})
    lines[5:5] = ['{"iteration": ' + HOSTILE, "\ufffd" + LONG, json.dumps({"iteration": HOSTILE, "koleo_loss": 1e999})]
    metrics.write_text("\n".join(lines) + "\n")
    (folder / "log.txt").write_text((folder / "log.txt").read_text().replace("status: clean", f"status: {HOSTILE}"))
    records = {HOSTILE: HOSTILE, "packages": {HOSTILE: LONG}, "data": {HOSTILE: [HOSTILE]}, "cpu": HOSTILE + "\udfff"}
    (folder / "environment.json").write_text(json.dumps(records))
    launch = {"command": [HOSTILE], "git": {"sha": HOSTILE}, "margins_sha256": HOSTILE, "launches": [HOSTILE]}
    (folder / "provenance.json").write_text(json.dumps(launch))
    failure = {"type": HOSTILE, "message": HOSTILE, "where": HOSTILE}
    state = {"state": HOSTILE, "iteration": 600, "of": 600, "images_per_second": None, "error": failure}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "evaluation.json").write_text(json.dumps({"pixels_knn": {HOSTILE: 1, "10": HOSTILE}}))
    (folder / "eval" / HOSTILE.replace("/", "∕").replace("\x00", "")[:80]).mkdir(exist_ok=True)
    return folder


def write_texts(folder: Path) -> tuple[Path, Path]:
    """Two text logs of one recipe, one with hostile lines among its own and in the configuration that it prints."""
    paths = folder / "mine <b>.txt", folder / "theirs.txt"
    for seed, path in enumerate(paths):
        path.write_text(render_text(simulate(seed)))
    lines = paths[0].read_text().replace("row: ", f"'{HOSTILE.replace(chr(39), '')}': 1\nrow: ").splitlines()
    error = f"E20260308 08:02:33 116690 franca loop.py:1] {HOSTILE}"
    lines[-20:-20] = [error, "Traceback (most recent call last):", f"ValueError: {HOSTILE}", lines[-21][:90] + HOSTILE]
    paths[0].write_text("\n".join(lines))
    return paths


def write_epochs(path: Path, *, seed: int) -> Path:
    """An object an epoch, with a hostile name as one of the columns that are compared."""
    records = make_records(simulate(seed))
    lines = [
        {"epoch": epoch, "train_loss": record.values["total_loss"], HOSTILE: record.values["ibot_loss"]}
        for epoch, record in enumerate(records)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def make_project(folder: Path) -> Path:
    """A project whose row digits states hostile things of itself, with a hostile run of it."""
    project = copy_rows(folder)
    path = project / "experiments" / "digits.yaml"
    row = yaml.safe_load(path.read_text())
    row |= {"title": HOSTILE, "summary": HOSTILE, "notes": [HOSTILE, LONG]}
    row["published_log"] |= {"local": ["logs/*"], "note": HOSTILE}
    row["claims"]["dataset_images"] |= {"label": HOSTILE, "values": [{"value": HOSTILE, "sources": ["ours"]}]}
    row["metrics"]["knn_top1"] |= {"label": HOSTILE, "unit": HOSTILE, "condition": LONG, "target_why": HOSTILE}
    path.write_text(yaml.safe_dump(row))
    for seed in range(1, 4):
        write_run(simulate(seed), project / "logs" / f"<b onclick=x> {seed}")
    write_hostile_run(project / "runs" / "digits@1" / "main", seed=0)
    write_run(simulate(4), project / "runs" / "digits@1" / HOSTILE.replace("/", "∕").replace("\x00", "")[:70])
    record = make_record(sentence=HOSTILE, machine=HOSTILE, basis=HOSTILE, run=HOSTILE, outcome=HOSTILE, date=HOSTILE)
    signed = project / "reproductions" / "digits"
    signed.mkdir(parents=True)
    (signed / record.file_name).write_text(record.to_json())
    (signed / "<img src=x onerror=y>.json").write_text(HOSTILE)
    return project


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    """Everything that the commands make of hostile input."""
    folder = tmp_path_factory.mktemp("hostile")
    name = HOSTILE.replace("/", "∕").replace("\x00", "")[:60]
    runs = [str(write_hostile_run(folder / f"{name}{seed}", seed=seed)) for seed in range(4)]
    texts = [str(path) for path in write_texts(folder)]
    epochs = [str(write_epochs(folder / f"epochs-{seed}", seed=seed)) for seed in range(2)]
    project, printed = make_project(folder / "project"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRANCA_REPRODUCE_ROOT", str(project))
        patch.chdir(folder)
        for kind, paths in {"runs": runs, "texts": texts, "epochs": epochs}.items():
            command = ["compare", *paths, "--exit-zero"]
            printed[kind] = invoke([*command, "--html", f"{kind}.html"])
            (folder / f"{kind}.json").write_text(invoke([*command, "--json"]))
        printed["parse"] = invoke(["parse", f"{runs[0]}/training_metrics.json"])
        for words in ("judge digits --exit-zero", "report digits", "list", "status", "logs digits", "audit digits"):
            printed[words] = invoke(words.split())
        printed["show"] = invoke(["show", "digits"])
        printed["signed"] = invoke(["verify-signed"], code=1)
    html = {path.stem: path for path in (*folder.glob("*.html"), *project.glob("reports/*.html"))}
    found = {kind: path.read_text(encoding="utf-8") for kind, path in html.items()}
    verdicts = {kind: path.with_suffix(".json").read_text() for kind, path in html.items() if kind != "index"}
    return Pages(folder, found, verdicts, printed)


def invoke(arguments: list[str], *, code: int = 0) -> str:
    """All that a command prints; it ends with `code`."""
    answer = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
    assert answer.exit_code == code, answer.output
    return answer.output


def test_hostile_input_is_shown_as_text(pages: Pages) -> None:
    """Every page shows it, and has of it no element, no handler and no link that a browser would follow elsewhere."""
    assert pages.html.keys() == {"runs", "texts", "epochs", "digits", "index"}
    for kind, text in pages.html.items():
        page = Page(text)
        assert not {tag for tag, _ in page.tags} & FORBIDDEN
        assert [tag for tag, _ in page.tags].count("script") == (kind != "index")
        policies = [attributes for tag, attributes in page.tags if "http-equiv" in attributes]
        assert [policy["http-equiv"] for policy in policies] == ["Content-Security-Policy"]
        assert (policies[0]["content"] or "").startswith("default-src 'none'; style-src 'unsafe-inline'")
        for _, attributes in page.tags:
            assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcdoc", "action")]
            assert SAFE_LINK.fullmatch(attributes.get("href") or "#top")
        assert "<img src=" in page.text
        assert "{{7*7}}" in page.text or kind == "epochs"


def test_no_character_of_a_page_steers_what_stands_around_it(pages: Pages) -> None:
    """No control character, none that turns the direction of writing or is not seen, and no half of one."""
    for text in pages.html.values():
        assert not {letter for letter in set(text) - {"\n"} if unicodedata.category(letter) in ("Cc", "Cf", "Cs")}


def test_embedded_verdict_is_that_of_the_file(pages: Pages) -> None:
    """The JSON inside each report can be parsed and says what the command printed, or wrote beside it."""
    for kind, verdict in pages.verdicts.items():
        (embedded,) = re.findall(
            r'<script type="application/json" id="verdict">(.*?)</script>', pages.html[kind], flags=re.DOTALL
        )
        assert json.loads(embedded) == json.loads(verdict)
        assert verdict.isprintable() or {letter for letter in verdict if not letter.isprintable()} == {"\n"}


def test_terminal_is_not_steered(pages: Pages) -> None:
    """What is printed of it holds no escape sequence and nothing else that a terminal obeys."""
    assert any("<img src=" in text for text in pages.printed.values())
    for words, text in pages.printed.items():
        assert {letter for letter in text if not letter.isprintable()} <= {"\n", "\xa0"}, words


def test_no_shell_saw_it(pages: Pages) -> None:
    """Nothing was run of what stands between backticks or behind a dollar sign."""
    assert not list(pages.folder.rglob("ran"))


@pytest.mark.parametrize("kind", ["runs", "texts", "epochs", "digits", "index"])
@pytest.mark.browser
@NEEDED[1]
def test_browser_runs_and_fetches_nothing(kind: str, pages: Pages, tmp_path: Path) -> None:
    """Chromium finds neither script nor image in a page, has nothing to refuse, and asks the network for nothing."""
    path = tmp_path / "page.html"
    path.write_text(pages.html[kind], encoding="utf-8")
    document, said, requests = load_page(path, profile=tmp_path / "profile")
    assert (said, requests) == ([], [])
    tags = {tag.lower() for tag in re.findall(r"<([a-zA-Z][\w-]*)", document)}
    assert not tags & FORBIDDEN
    assert document.count("<script") == (kind != "index")
    assert "<title>run</title>" not in document
    assert "&lt;img src=" in document
