"""The commands that vouch for a reproduction: `sign` writes a run's record and signature, `verify-signed` checks all.

Modules are imported by the commands that need them, so that `reproduce list` answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from reproduce.console import Changes, Json, Row, Seed, command, show, width
from reproduce.errors import ReproduceError
from reproduce.files import short_path

DEFAULT_KEY = Path("~/.ssh/id_ed25519")
BAD = ("altered", "other recipe", "no record")


@command("sign")
def sign_run(
    row: Row,
    name: Annotated[str, typer.Option(help="Who you are, without spaces: an e-mail address or a handle.")],
    changes: Changes = None,
    seed: Seed = None,
    key: Annotated[Path, typer.Option(help="An SSH key; its public half serves where an agent has it.")] = DEFAULT_KEY,
) -> None:
    """Vouch for a run that you made: judge it, write a record of its verdict to reproductions/ROW/, and sign it."""
    from reproduce.asking import find_run
    from reproduce.judging import judge_run
    from reproduce.signatures import NAME, allowed_line
    from reproduce.vouching import make_record, write_signed

    if not NAME.fullmatch(name):
        raise ReproduceError(f"--name {name!r}", mend="at most 64 letters, digits and . _ + @ -, without spaces")
    files = find_run(row, changes, seed=seed)
    record = make_record(files, verdict=judge_run(files), name=name)
    path = write_signed(record, root=files.spec.root, key=key.expanduser())
    typer.echo(f"{record.outcome.upper()}  {short_path(path)}\n{short_path(path)}.sig")
    line = allowed_line(name, key=key.expanduser())
    if line:
        typer.echo(f"Your line of reproductions/allowed_signers, once:\n{line}")


@command("verify-signed")
def verify_signed(as_json: Json = False) -> int:
    """Check every signed record in reproductions/. Exits with 1 where one was altered or does not belong there."""
    from reproduce.compose import find_root
    from reproduce.signatures import load_signed
    from reproduce.terminal import render_table

    signed = load_signed(find_root())
    rows = [
        (item.standing, item.record.row if item.record else "–", item.record.name if item.record else "–",
         item.record.outcome if item.record else "–", short_path(item.path), item.why)
        for item in signed
    ]  # fmt: skip
    header = ("signature", "row", "who", "verdict", "file", "why")
    show(signed, as_json=as_json, text=lambda: render_table(header, rows, width=width()) if rows else "none is here")
    return int(any(item.standing in BAD for item in signed))
