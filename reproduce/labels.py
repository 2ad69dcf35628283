"""Lines as launchers pass them on in, the rank that a launcher wrote before each and the line itself out."""

import re
from collections.abc import Iterable, Iterator

# srun --label "3: …", torchrun "[default3]:…" and "[rank3]: …", mpirun "[1,3]<stdout>:…", Ray and MLPerf "[3] …".
LABEL = re.compile(r" {0,6}(\d{1,6}): |\[(?:default|rank|\d{1,6},)?(\d{1,6})\](?:<std(?:out|err)>)?:? ?")
ANSI = re.compile(r"\x1b\[[0-9;]{0,16}m")  # colors of a terminal
LABELED = frozenset(" [0123456789")


def strip_label(line: str) -> tuple[int | None, str]:
    """The rank that a launcher wrote before a line, None where it wrote none, and the line without it and its colors.

    What a progress bar left before a carriage return is left out as well.
    """
    if "\x1b" in line:
        line = ANSI.sub("", line)
    if "\r" in line:
        line = line.rstrip("\r").lstrip("\r")
    if line[:1] not in LABELED:
        return None, line
    match = LABEL.match(line)
    if match is None:
        return None, line
    return int(match[1] or match[2]), line[match.end() :]


def numbered(lines: Iterable[str]) -> Iterator[tuple[int, int | None, str]]:
    """Line number from 1, rank, and the line without its label."""
    for number, line in enumerate(lines, 1):
        rank, rest = strip_label(line)
        yield number, rank, rest
