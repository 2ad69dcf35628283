"""A run's history in, a table of its numbers for notebooks and spreadsheets out."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from reproduce.errors import ReproduceError
from reproduce.files import write_whole
from reproduce.lineage import History
from reproduce.logs import Record


def records_frame(history: History) -> pd.DataFrame:
    """What a run logged: a row for each line that counts, under its `iteration`, and a column for each metric.

    The launches are put together: iterations rise, and what a later launch overwrote is not among them. The values are
    float64 as the log has them, infinities and NaN included; NaN is also where a line lacks a metric. Iterations count
    from 0, as logged. Columns are in the order in which the log names them first.

        frame = records_frame(load_history(Path("runs/digits@1/main")))
        frame[["total_loss", "ibot_loss"]].plot(logx=True)
    """
    return make_frame(history.lineage.records)


def make_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Records as a table, in their order; see `records_frame`."""
    metrics = dict.fromkeys(name for record in records for name in record.values)
    columns = {
        name: np.array([record.values.get(name, np.nan) for record in records], dtype=np.float64) for name in metrics
    }
    index = pd.Index([record.iteration for record in records], dtype=np.int64, name="iteration")
    # Names come from a file: as objects, even those that are no valid Unicode.
    return pd.DataFrame(columns, index=index, columns=pd.Index(list(metrics), dtype=object))


def render_csv(frame: pd.DataFrame) -> str:
    """The table as CSV. Each number is the shortest that reads back as the same float64; NaN is written `nan`.

    What no UTF-8 can hold in a metric's name is escaped.
    """
    text = frame.to_csv(na_rep="nan", lineterminator="\n")
    return text.encode(errors="backslashreplace").decode()


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """Write records as CSV, `-` for stdout. Raises `ReproduceError` where the file cannot be written."""
    text = render_csv(make_frame(records))
    if path == Path("-"):
        sys.stdout.write(text)
        return
    try:
        write_whole(path, text)
    except OSError as error:
        raise ReproduceError(f"cannot be written: {error.strerror}", path=path) from error
