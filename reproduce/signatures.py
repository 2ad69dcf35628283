"""Records of reproductions that their authors signed: text in, record out, and whether its signature holds.

A record is a small JSON file in `reproductions/ROW/`, its signature lies beside it. Signatures are OpenSSH's:
`ssh-keygen -Y` makes them and checks them against `reproductions/allowed_signers`, which says whose key is whose
(ssh-keygen(1), "ALLOWED SIGNERS"). A signature shows who vouches for the numbers, not that the run took place.
"""

import dataclasses
import hashlib
import json
import re
import subprocess
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reproduce.json_text import render_json
from reproduce.versions import load_lock

Standing = Literal["verified", "unknown signer", "altered", "other recipe", "unsigned", "no record", "not checked"]

FOLDER = "reproductions"
NAMESPACE = "franca-reproduce"  # so that a signature made for something else cannot be passed off as one of these
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,63}")  # nothing that allowed_signers takes for a pattern
ROW = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SHA256 = re.compile(r"[0-9a-f]{64}")
RECORD_BYTES = 1 << 16
TIMEOUT_S = 60
KEY = re.compile(r"key (SHA256:[\w+/=]{1,64})")


@dataclass(frozen=True)
class Record:
    """What is vouched for: a run of `row`, its verdict and its numbers. `name` is the signer's own word for himself.

    knn: top-1 in percent; against: what it was held against, which `basis` names, with the 90 % interval of the
    difference and the margin. date: when the run was declared. margins: whether they are still those that were declared
    before the launch. log_sha256: of the log that was judged.
    """

    row: str
    version: int
    fingerprint: str
    run: str
    name: str
    outcome: str
    sentence: str
    progress: float | None
    references: int
    knn: float | None
    against: float | None
    basis: str
    low: float | None
    high: float | None
    margin: float | None
    published: float | None
    published_source: str
    machine: str
    date: str | None
    margins: Literal["as declared", "changed", "not declared"]
    margins_sha256: str | None
    spec_sha256: str | None
    code: str | None
    harness: str | None
    log_sha256: str

    def to_json(self) -> str:
        """The bytes that are signed, as text; equal records, equal bytes."""
        return render_json(dataclasses.asdict(self)) + "\n"

    @property
    def file_name(self) -> str:
        """The name of its file, which follows from its content: a copy under another name counts as altered."""
        return f"{self.name}-{hashlib.sha256(self.to_json().encode()).hexdigest()[:8]}.json"


@dataclass(frozen=True)
class SignedRecord:
    """A file of `reproductions/`. `record` is None where the file holds none; `why` explains the standing."""

    path: Path
    record: Record | None
    standing: Standing
    why: str


def load_signed(root: Path) -> tuple[SignedRecord, ...]:
    """Every record of the project with what its signature is worth here and now, by row and name."""
    return tuple(_load(path, root=root) for path in sorted((root / FOLDER).glob("*/*.json")))


def parse_record(text: str) -> Record:
    """The record that `to_json` wrote. Raises ValueError where the text is no such record."""
    content = json.loads(text)
    hints = typing.get_type_hints(Record)
    if not isinstance(content, dict) or content.keys() != hints.keys():
        raise ValueError("it does not have the fields of a record")
    for key, hint in hints.items():
        if not _is_of(content[key], hint):
            raise ValueError(f"{key} is {content[key]!r:.40}")
    record = Record(**content)
    if not (NAME.fullmatch(record.name) and ROW.fullmatch(record.row) and SHA256.fullmatch(record.log_sha256)):
        raise ValueError("its name, row or hash is not of the form that they have")
    if record.to_json() != text:
        raise ValueError("it is not written as records are")
    return record


def allowed_line(name: str, *, key: Path) -> str | None:
    """The line of `allowed_signers` that gives `name` the key; None where its public half does not lie beside it."""
    public = key if key.suffix == ".pub" else key.with_name(f"{key.name}.pub")
    words = public.read_text().split() if public.is_file() else []
    return f'{name} namespaces="{NAMESPACE}" {words[0]} {words[1]}' if len(words) > 1 else None


def _is_of(value: object, hint: object) -> bool:
    """Whether a JSON value is of a field's annotated type."""
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    kinds = typing.get_args(hint) or (hint,)
    return type(value) in kinds or (type(value) is int and float in kinds)


def _load(path: Path, *, root: Path) -> SignedRecord:
    try:
        if path.stat().st_size > RECORD_BYTES:
            raise ValueError("it is too large for one")
        record = parse_record(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return SignedRecord(path, None, "no record", f"not a record of a reproduction: {error}")
    standing, why = _judge_signature(path, record, root=root)
    return SignedRecord(path, record, standing, why)


def _judge_signature(path: Path, record: Record, *, root: Path) -> tuple[Standing, str]:
    signature, allowed = path.with_name(f"{path.name}.sig"), root / FOLDER / "allowed_signers"
    if not signature.is_file():
        return "unsigned", f"{signature.name} is not beside it"
    data = path.read_bytes()
    given = ("-n", NAMESPACE, "-s", str(signature))
    try:
        known = allowed.is_file() and _ask("verify", "-f", str(allowed), "-I", record.name, *given, data=data)[0]
        holds, said = (True, "") if known else _ask("check-novalidate", *given, data=data)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "not checked", f"ssh-keygen cannot be asked: {error}"
    if not holds:
        return "altered", "the signature is not that of this text"
    if (path.parent.name, path.name) != (record.row, record.file_name):
        return "altered", f"it belongs at {record.row}/{record.file_name}"
    if not known:
        key = KEY.search(said)
        return "unknown signer", f"allowed_signers gives {record.name} no key {key[1] if key else 'like its own'}"
    if load_lock(root).get(f"{record.row}@{record.version}") != record.fingerprint and record.outcome != "variant":
        return "other recipe", f"the recipe of {record.row}@{record.version} is not {record.fingerprint} here"
    return "verified", f"signed by {record.name}"


def _ask(action: str, *arguments: str, data: bytes) -> tuple[bool, str]:
    """Whether ssh-keygen agrees, and what it says."""
    command = ["ssh-keygen", "-Y", action, *arguments]
    answer = subprocess.run(command, input=data, capture_output=True, timeout=TIMEOUT_S, check=False)
    return answer.returncode == 0, answer.stdout.decode(errors="replace")
