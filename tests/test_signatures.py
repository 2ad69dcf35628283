"""Signed records: what they hold, whom they are believed, and every way in which they are not."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_copies import copy_rows
from simulated_runs import simulate, write_run
from typer.testing import CliRunner

from reproduce import signing  # noqa: F401  it brings its commands along
from reproduce.cli import app
from reproduce.errors import ReproduceError
from reproduce.signatures import Record, allowed_line, load_signed, parse_record
from reproduce.versions import load_lock
from reproduce.vouching import write_signed

pytestmark = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="needs OpenSSH: apt-get install openssh-client"
)

ROOT = Path(__file__).parents[1]
JANE = "jane@example.org"
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(), max_size=2)


def make_key(path: Path) -> Path:
    """A key without a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "key of jane")


@pytest.fixture
def project(tmp_path: Path, key: Path) -> Path:
    """A project with this one's rows that knows Jane's key."""
    project = copy_rows(tmp_path / "project $(touch ran)")
    (project / "reproductions").mkdir()
    (project / "reproductions" / "allowed_signers").write_text(f"{allowed_line(JANE, key=key)}\n")
    return project


def make_record(**changes: Any) -> Record:
    fields: dict[str, Any] = {
        "row": "digits", "version": 1, "fingerprint": load_lock(ROOT)["digits@1"], "run": "main", "name": JANE,
        "outcome": "consistent", "sentence": "No check fails.", "progress": 1.0, "references": 10, "knn": 78.06,
        "against": 79.1, "basis": "mean of 10 reference runs", "low": -5.0, "high": 3.2, "margin": 0.5,
        "published": None, "published_source": "", "machine": "8 × NVIDIA H100", "date": "2026-11-21T12:42:07+00:00",
        "margins": "as declared", "margins_sha256": "1b" * 32, "spec_sha256": "89" * 32, "code": "8c644e62",
        "harness": "0.1.0", "log_sha256": "ab" * 32,
    }  # fmt: skip
    return Record(**(fields | changes))


def standing(project: Path) -> tuple[str, str]:
    """How the only record of the project stands, and why."""
    (found,) = load_signed(project)
    return found.standing, found.why


def test_record_reads_back_the_same() -> None:
    """What is signed is what is read: every field, and nothing besides."""
    record = make_record()
    assert parse_record(record.to_json()) == record
    assert record.file_name.startswith(f"{JANE}-")


@pytest.mark.parametrize(
    "changes",
    [{"version": "1"}, {"knn": "78"}, {"margins": "fine"}, {"name": "-I"}, {"name": "a b"}, {"row": "../x"},
     {"log_sha256": "x"}, {"sentence": None}, {"progress": True}, {"references": 1.5}],
)  # fmt: skip
def test_text_of_another_form_is_no_record(changes: dict[str, Any]) -> None:
    """A field of another type, or a name that ssh-keygen would read as an option or a pattern, is refused."""
    text = json.dumps({**dataclasses.asdict(make_record()), **changes}, indent=1) + "\n"
    with pytest.raises(ValueError, match=r" is "):
        parse_record(text)


@given(st.sampled_from([field.name for field in dataclasses.fields(Record)]), VALUES)
def test_any_value_of_a_field_is_kept_or_refused(field: str, value: Any) -> None:
    """A stranger's file ends in ValueError, or in a record that has the very text that was signed."""
    text = json.dumps({**dataclasses.asdict(make_record()), field: value}, indent=1, ensure_ascii=False) + "\n"
    try:
        record = parse_record(text)
    except ValueError:
        return
    assert getattr(record, field) == value
    assert record.to_json() == text


def test_known_signer_is_believed(project: Path, key: Path) -> None:
    """Signed by the key that allowed_signers gives that name: verified; the key's public half serves as well."""
    path = write_signed(make_record(), root=project, key=key)
    assert standing(project) == ("verified", f"signed by {JANE}")
    assert sorted(path.parent.iterdir()) == [path, path.with_name(f"{path.name}.sig")]


def test_other_key_is_an_unknown_signer(project: Path, tmp_path: Path) -> None:
    """A sound signature by a key that is not Jane's is told apart from an altered text, with that key's fingerprint."""
    write_signed(make_record(), root=project, key=make_key(tmp_path / "other"))
    kind, why = standing(project)
    assert kind == "unknown signer"
    assert "SHA256:" in why
    (project / "reproductions" / "allowed_signers").unlink()
    assert standing(project)[0] == "unknown signer"


def test_name_of_another_is_an_unknown_signer(project: Path, key: Path) -> None:
    """Jane's key does not speak for John."""
    write_signed(make_record(name="john"), root=project, key=key)
    assert standing(project)[0] == "unknown signer"


def test_changed_number_is_altered(project: Path, key: Path) -> None:
    """One digit more of accuracy, and the signature no longer holds."""
    path = write_signed(make_record(), root=project, key=key)
    path.write_text(path.read_text().replace("78.06", "79.06"))
    assert standing(project)[0] == "altered"


def test_signature_for_something_else_does_not_count(project: Path, key: Path) -> None:
    """A signature that Jane made over the same text in another namespace, for git for one, is none of these."""
    path = write_signed(make_record(), root=project, key=key)
    path.with_name(f"{path.name}.sig").unlink()
    subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-f", str(key), "-n", "git", str(path)], check=True, capture_output=True
    )
    assert standing(project)[0] == "altered"


def test_copy_is_not_a_second_reproduction(project: Path, key: Path) -> None:
    """The same record under another name, or another row's folder, is not where it belongs."""
    path = write_signed(make_record(), root=project, key=key)
    for place in (path.with_name("copy.json"), project / "reproductions" / "franca-B-in21k" / path.name):
        place.parent.mkdir(exist_ok=True)
        shutil.copy(path, place)
        shutil.copy(f"{path}.sig", f"{place}.sig")
    assert sorted(found.standing for found in load_signed(project)) == ["altered", "altered", "verified"]


def test_record_without_signature_is_unsigned(project: Path, key: Path) -> None:
    """A record alone is nobody's word."""
    path = write_signed(make_record(), root=project, key=key)
    path.with_name(f"{path.name}.sig").unlink()
    assert standing(project)[0] == "unsigned"


def test_reproduction_of_another_recipe_is_told(project: Path, key: Path) -> None:
    """A signed run of what is not that version's recipe here is no reproduction of it."""
    write_signed(make_record(fingerprint="0" * 16), root=project, key=key)
    assert standing(project)[0] == "other recipe"


def test_damaged_files_are_named_and_nothing_ends(project: Path) -> None:
    """An empty file, rubbish and one that is far too long are no records."""
    folder = project / "reproductions" / "digits"
    folder.mkdir()
    for name, content in {"empty": b"", "rubbish": b"\xff{", "long": b"[" * 10**6}.items():
        (folder / f"{name}.json").write_bytes(content)
    assert [found.standing for found in load_signed(project)] == ["no record"] * 3


def test_key_that_is_not_there_leaves_nothing_behind(project: Path, tmp_path: Path) -> None:
    """Without a key nothing is written, and the error says how to have one."""
    with pytest.raises(ReproduceError) as caught:
        write_signed(make_record(), root=project, key=tmp_path / "missing")
    assert "ssh-keygen -t ed25519" in (caught.value.mend or "")
    assert not list((project / "reproductions" / "digits").iterdir())


def test_run_is_signed_and_verified_by_commands(project: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sign` judges the run and writes what was declared and found; `verify-signed` finds it sound, then altered."""
    monkeypatch.setenv("FRANCA_REPRODUCE_ROOT", str(project))
    monkeypatch.chdir(project)
    run = write_run(simulate(0), project / "runs" / "digits@1" / "main")
    for seed in range(1, 4):
        write_run(simulate(seed), project / "logfiles" / "digits" / f"seed-{seed}")
    (run / "provenance.json").write_text(json.dumps({"created": "2026-11-21T12:00:00+00:00", "margins_sha256": "0"}))
    (run / "environment.json").write_text(json.dumps({"device": "NVIDIA H100", "processes": 16}))
    words = ["sign", "digits", "--key", str(key), "--name"]
    assert CliRunner().invoke(app, [*words, "Jane Doe; touch ran"]).exit_code == 2
    answer = CliRunner().invoke(app, [*words, JANE])
    assert answer.exit_code == 0, answer.output
    assert f'{JANE} namespaces="franca-reproduce" ssh-ed25519 AAAA' in answer.output
    (found,) = load_signed(project)
    assert found.record is not None
    assert (found.record.margins, found.record.machine) == ("changed", "16 × NVIDIA H100")
    assert found.record.date == "2026-11-21T12:00:00+00:00"
    assert found.record.outcome == json.loads((project / "reports" / "digits.json").read_text())["outcome"]
    assert CliRunner().invoke(app, ["verify-signed"]).exit_code == 0
    found.path.write_text(found.path.read_text().replace("as declared", "changed").replace("H100", "H200"))
    answer = CliRunner().invoke(app, ["verify-signed"])
    assert (answer.exit_code, "altered" in answer.output) == (1, True)
    assert not list(project.parent.rglob("ran"))
