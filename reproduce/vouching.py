"""A judged run in, the record that its author vouches for out, signed by ssh-keygen with a key of his own.

ssh-keygen is called with a list of arguments, never through a shell.
"""

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from reproduce.errors import ReproduceError
from reproduce.judging import RunFiles
from reproduce.lineage import load_history
from reproduce.report.provenance import load_provenance
from reproduce.runs import margins_sha256
from reproduce.signatures import FOLDER, NAMESPACE, Record
from reproduce.verdict import Verdict


def make_record(files: RunFiles, *, verdict: Verdict, name: str) -> Record:
    """What `name` vouches for: the verdict on the run, its numbers, and what was declared before its launch."""
    provenance = load_provenance(load_history(files.folder))
    knn = next((result for result in verdict.metrics if result.name == "knn_top1"), None)
    launch = provenance.launch
    return Record(
        row=files.spec.row,
        version=files.spec.version,
        fingerprint=files.spec.fingerprint,
        run=files.run,
        name=name,
        outcome=verdict.outcome,
        sentence=verdict.sentence,
        progress=verdict.progress,
        references=len(verdict.references),
        knn=knn.mine if knn else None,
        against=knn.center if knn else None,
        basis=knn.basis if knn else "",
        low=knn.low if knn else None,
        high=knn.high if knn else None,
        margin=knn.margin if knn else None,
        published=knn.target if knn else None,
        published_source=knn.target_source if knn else "",
        machine=_machine(provenance.environment),
        date=_text(launch.get("created")),
        margins=_declaration(launch.get("margins_sha256"), now=margins_sha256(files.spec.margins)),
        margins_sha256=_text(launch.get("margins_sha256")),
        spec_sha256=_text(launch.get("spec_sha256")),
        code=_code(launch.get("git")),
        harness=_text(launch.get("harness_version")),
        log_sha256=provenance.logs[0].sha256,
    )


def write_signed(record: Record, *, root: Path, key: Path) -> Path:
    """Write the record and its signature, both or neither; the record's path. Raises `ReproduceError` without a key."""
    folder = root / FOLDER / record.row
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".draft-") as place:
        draft = Path(place) / record.file_name
        draft.write_text(record.to_json(), encoding="utf-8")
        sign_file(draft, key=key)
        for name in (f"{draft.name}.sig", draft.name):
            (Path(place) / name).replace(folder / name)
    return folder / record.file_name


def sign_file(path: Path, *, key: Path) -> None:
    """Write PATH.sig. ssh-keygen asks for a passphrase on the terminal by itself."""
    command = ["ssh-keygen", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(path)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise ReproduceError(f"ssh-keygen cannot be called: {error}", mend="install OpenSSH's client") from error
    if answer.returncode:
        said = (answer.stderr.strip().splitlines() or ["ssh-keygen failed"])[-1]
        raise ReproduceError(f"not signed: {said}", path=key, mend="--key FILE, or make one: ssh-keygen -t ed25519")


def _machine(environment: Mapping[str, Any]) -> str:
    """`16 × NVIDIA H100`, of a CPU its name; empty where the trainer did not say."""
    device, processes = environment.get("device"), environment.get("processes")
    if device is None:
        return ""
    return str(environment.get("cpu") or "CPU") if device == "cpu" else f"{processes} × {device}"


def _declaration(declared: object, *, now: str) -> Literal["as declared", "changed", "not declared"]:
    if not isinstance(declared, str):
        return "not declared"
    return "as declared" if declared == now else "changed"


def _code(git: object) -> str | None:
    """The commit, and whether the code differed from it."""
    if not isinstance(git, Mapping) or not isinstance(git.get("sha"), str):
        return None
    return f"{git['sha']}{' with changes' if git.get('dirty') else ''}"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
