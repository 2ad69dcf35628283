"""Feeds the log parsers with whatever libFuzzer finds: no exception, valid line numbers, no input that takes seconds.

    pip install atheris
    python benchmarks/fuzz_parsers.py -max_total_time=600 -timeout=5 CORPUS

CORPUS is a folder that the inputs that reach new code are kept in; it is filled with a sample of every dialect first.
An input that raises, or that takes longer than `-timeout`, ends the run and is written to the current folder.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

with atheris.instrument_imports(include=["reproduce.dialects", "reproduce.logs", "reproduce.log_head"]):
    from reproduce.lineage import make_lineage
    from reproduce.logs import DIALECTS, HEADS, find_dialect


def test_one_input(data: bytes) -> None:
    """Take the bytes apart as a log of every dialect: records in the order of lines, problems at lines that exist."""
    lines = [line.rstrip("\r") for line in data.decode("utf-8", errors="replace").split("\n")]
    find_dialect(lines)
    for dialect, parse in DIALECTS.items():
        records, problems = parse(lines, path="log")
        numbers = [record.line for record in records]
        assert numbers == sorted(numbers)
        assert all(1 <= number <= len(lines) for number in numbers)
        assert all(problem.line is None or 1 <= problem.line <= len(lines) for problem in problems)
        make_lineage(records, path="log")
        if dialect in HEADS:
            HEADS[dialect](lines, path="log")


def fill_corpus(folder: Path) -> None:
    """Write a sample of every dialect."""
    from test_dialects import SAMPLES

    folder.mkdir(parents=True, exist_ok=True)
    for dialect, lines in SAMPLES.items():
        (folder / dialect).write_text("\n".join(lines))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if not argument.startswith("-"):
            fill_corpus(Path(argument))
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
