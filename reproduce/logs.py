"""A training log in, its records and its problems out, whatever the dialect and whatever is broken in it.

The dialect is told by content. Files are streamed, and what is kept of them is bounded; a damaged line becomes a
`Problem` with its number, never an exception.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from reproduce.dialects import dinov2, evaluations, json_lines, metric_logger, mllog, timm
from reproduce.dialects.dinov2 import parse_dinov2_text as parse_dinov2_text
from reproduce.dialects.dinov2 import parse_json_lines as parse_json_lines
from reproduce.errors import LogError
from reproduce.labels import numbered
from reproduce.log_head import STAMPED, STAMPS, Head, parse_heads
from reproduce.problems import Problem, capped
from reproduce.records import Parsed, Unit
from reproduce.records import Record as Record

LINE_BYTES = 1 << 20  # a longer line is no log line: its tail is skipped, so that rubbish cannot fill the memory

# What DINOv3 logs and DINOv2 does not (dinov3 ssl_meta_arch.py): its losses are another convention's.
DINOV3 = re.compile(r"\b(?:dino_local_loss_weight|local_batch_size)\b")
TEXT = ("dinov2-text", "dinov3-text")


@dataclass(frozen=True)
class ParsedLog:
    """A log taken apart. `dialect` is a key of `DIALECTS`, or "unknown" with no records and one problem saying why.

    unit: what the records' `iteration` counts.
    """

    path: Path
    dialect: str
    records: tuple[Record, ...]
    problems: tuple[Problem, ...]
    heads: tuple[Head, ...]
    unit: Unit = "iteration"


def parse_log(path: Path) -> ParsedLog:
    """Parse a log of any dialect. Raises `LogError` only where the file cannot be read, and read again."""
    if path.exists() and not path.is_file():
        raise LogError("a pipe or device, which can be read once", path=path, mend="write the log to a file first")
    dialect = find_dialect(read_lines(path))
    if dialect == "unknown":
        return ParsedLog(path, dialect, (), (Problem(str(path), None, _describe(path)),), ())
    records, problems = DIALECTS[dialect](read_lines(path), path=str(path))
    heads, doubts = HEADS[dialect](read_lines(path), path=str(path)) if dialect in HEADS else ((), ())
    unit = mllog.find_mllog_unit(read_lines(path)) if dialect == "mllog" else UNITS.get(dialect, "iteration")
    return ParsedLog(path, dialect, records, (*problems, *doubts), heads, unit)


def find_dialect(lines: Iterable[str]) -> str:
    """The dialect of the first line that belongs to one, else "unknown".

    A stamped line is DINOv2's, or submitit's, where none that says more follows: a log cut off inside its header, or
    the error stream of a job.
    """
    stamped = "unknown"
    for _, _, line in numbered(lines):
        dialect = next((dialect for dialect, is_of in SIGNS.items() if is_of(line)), None)
        if dialect in ("dinov2-text", "dinov2-json") and DINOV3.search(line):
            return dialect.replace("dinov2", "dinov3")
        if dialect is not None:
            return dialect
        if stamped in ("unknown", "submitit") and line[:1] in STAMPS and STAMPED.match(line):
            stamped = "submitit" if line.startswith("submitit") else "dinov2-text"
    return stamped


def parse_knn(path: Path) -> tuple[dict[int, float], tuple[Problem, ...]]:
    """DINOv2's `results_eval_knn.json`: k → top-1 in percent. Evaluations that were run again repeat: the last wins."""
    accuracies: dict[int, float] = {}
    problems = []
    for number, line in enumerate(read_lines(path), 1):
        read = evaluations.knn_accuracies(line) if line.strip() else ({}, [])
        if read is None:
            problems.append(Problem(str(path), number, f"not a JSON object: {line[:100]!r}"))
            continue
        found, wrong = read
        problems += [Problem(str(path), number, message) for message in wrong]
        for key, accuracy in found.items():
            match = evaluations.KNN_KEY.fullmatch(key)
            assert match is not None
            accuracies[int(match[1])] = accuracy
    return accuracies, capped(problems)


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a file without their ends, undecodable bytes replaced. Raises `LogError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            while piece := file.readline(LINE_BYTES):
                yield piece.decode("utf-8", errors="replace").rstrip("\r\n")
                while piece and not piece.endswith(b"\n") and len(piece) == LINE_BYTES:
                    piece = file.readline(LINE_BYTES)
    except OSError as error:
        raise LogError(f"cannot be read: {error.strerror or error}", path=path) from error


SIGNS: dict[str, Callable[[str], bool]] = {
    "dinov2-text": lambda line: "Training" in line and dinov2.ITERATION.search(line) is not None,
    "dinov2-json": lambda line: line.startswith("{") and '"iteration"' in line,
    "timm-text": lambda line: "Train: " in line and timm.TRAIN.search(line) is not None,
    "epoch-text": lambda line: "Epoch: [" in line and metric_logger.EPOCH.search(line) is not None,
    "mllog": lambda line: mllog.SIGN in line,
    "epoch-json": lambda line: line.startswith("{") and '"epoch"' in line and ('"train_' in line or '"test_' in line),
    "timm-summary": lambda line: line.startswith("epoch,") and "loss" in line,
    "dinov2-knn": lambda line: line.startswith("{\"('full', "),
    "dinov2-linear": lambda line: line.startswith("iter: ") and evaluations.ITERATION.fullmatch(line) is not None,
}
DIALECTS: dict[str, Callable[..., Parsed]] = {
    "dinov2-text": dinov2.parse_dinov2_text,
    "dinov2-json": dinov2.parse_json_lines,
    "dinov3-text": dinov2.parse_dinov2_text,
    "dinov3-json": dinov2.parse_json_lines,
    "timm-text": timm.parse_timm_text,
    "timm-summary": timm.parse_summary,
    "epoch-text": metric_logger.parse_metric_logger,
    "epoch-json": json_lines.parse_epoch_lines,
    "mllog": mllog.parse_mllog,
    "dinov2-knn": evaluations.parse_knn_lines,
    "dinov2-linear": evaluations.parse_linear_lines,
    "submitit": dinov2.parse_dinov2_text,
}
HEADS: dict[str, Callable[..., tuple[tuple[Head, ...], tuple[Problem, ...]]]] = {
    "dinov2-text": parse_heads,
    "dinov3-text": parse_heads,
    "mllog": mllog.parse_hyperparameters,
}
UNITS: dict[str, Unit] = {"timm-summary": "epoch", "epoch-json": "epoch", "dinov2-knn": "evaluation"}


def _describe(path: Path) -> str:
    """What a file of no known dialect looks like, and what would be read."""
    looks = "an empty file"
    with path.open("rb") as file:
        start = file.read(1 << 18)
    lines = start.decode("utf-8", errors="replace").split("\n")
    for looks_like, test in LOOKS.items():
        if start and test(start, lines):
            looks = looks_like
            break
    return (
        f"not a training log that can be read: it looks like {looks}. Read are the text and JSON lines of DINOv2, "
        "Franca and DINOv3, timm's text and summary.csv, the text and epoch lines of DINO and MAE, MLPerf's, and "
        "DINOv2's k-NN and linear results"
    )


LOOKS: dict[str, Callable[[bytes, list[str]], bool]] = {
    "gzip data (unpack it first)": lambda start, lines: start.startswith(b"\x1f\x8b"),
    "a zip archive or a PyTorch checkpoint": lambda start, lines: start.startswith(b"PK\x03\x04"),
    "binary data": lambda start, lines: b"\x00" in start or start.count(b"\xff\xfd") > 0,
    "a git LFS pointer (fetch the file: git lfs pull)": lambda start, lines: start.startswith(
        b"version https://git-lfs"
    ),
    "a web page": lambda start, lines: start.lstrip()[:1] == b"<",
    "JSON without iterations": lambda start, lines: start.lstrip()[:1] in (b"{", b"["),
    "a table of comma-separated values": lambda start, lines: lines[0].count(",") > 1 and "." not in lines[0],
    "text of another kind": lambda start, lines: True,
}
