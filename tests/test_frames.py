"""A table holds what the log holds: every number to the last bit, under the name that the log gave it."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import make_history, make_records
from typer.testing import CliRunner

from reproduce.cli import app
from reproduce.errors import ReproduceError
from reproduce.frames import make_frame, records_frame, render_csv, write_csv
from reproduce.lineage import load_history
from reproduce.logs import Record

HOSTILE = ("iteration", "a,b", 'say "loss"', "two\nlines", "=1+1", "", "損失", "\ud800", "0", "index")


def make_record(iteration: int, **values: float) -> Record:
    return Record(iteration + 1, iteration, None, values, None, None, 0)


def test_table_equals_the_records() -> None:
    """Each row is the record of its iteration, to the last bit and in the order of the log."""
    history = make_history("main", records=make_records(0, stop=600, total=600))
    frame = records_frame(history)
    assert frame.index.name == "iteration"
    assert frame.index.tolist() == [record.iteration for record in history.lineage.records]
    assert list(frame.columns) == list(history.lineage.records[0].values)
    assert set(frame.dtypes) == {np.dtype(np.float64)}
    assert frame.to_dict("records") == [dict(record.values) for record in history.lineage.records]


def test_table_holds_the_branch_that_counts() -> None:
    """Of iterations that a resumed launch wrote again, the later lines are kept, and each iteration is there once."""
    again = make_records(7, start=300, stop=600, total=600, first_line=62)
    history = make_history("main", records=make_records(0, stop=600, total=600) + again)
    frame = records_frame(history)
    assert frame.index.is_unique
    assert frame.loc[300, "total_loss"] == again[0].values["total_loss"]


def test_what_is_not_a_number_is_kept() -> None:
    """NaN and infinities stay where they were logged; a metric that a line lacks is NaN there."""
    frame = make_frame([make_record(0, loss=math.nan, lr=1.0), make_record(10, loss=math.inf), make_record(20, late=2)])
    assert frame["loss"].map(repr).tolist() == ["nan", "inf", "nan"]
    assert frame["lr"].map(repr).tolist() == ["1.0", "nan", "nan"]
    assert frame["late"].dropna().to_dict() == {20: 2.0}


def test_table_of_an_empty_log_is_empty() -> None:
    """A log without records is a table without rows, whose CSV is its header."""
    assert make_frame([]).shape == (0, 0)
    assert render_csv(make_frame([])) == "iteration\n"


def test_csv_reads_back_exactly(tmp_path: Path) -> None:
    """CSV loses no bit of any number, whatever a metric is called."""
    numbers = (0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0, math.nan, -math.inf, 1 / 3, 1e22, 2.0**-1074, 123.0)
    record = Record(1, 0, None, dict(zip(HOSTILE, numbers, strict=True)), None, None, 0)
    write_csv(tmp_path / "table.csv", [record, dataclasses.replace(record, iteration=10)])
    with (tmp_path / "table.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["iteration", *HOSTILE[:-3], "\\ud800", *HOSTILE[-2:]]
    assert [row[0] for row in rows] == ["0", "10"]
    assert [repr(float(cell)) for cell in rows[1][1:]] == [repr(number) for number in numbers]


def test_csv_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """A folder that does not exist is a mistake with its place."""
    with pytest.raises(ReproduceError, match=r"none/table\.csv: cannot be written: No such file"):
        write_csv(tmp_path / "none" / "table.csv", [make_record(0, loss=1.0)])


def test_command_prints_or_writes_the_table(tmp_path: Path) -> None:
    """`--csv -` prints the table and nothing else, `--csv FILE` writes the same; an empty log leaves no file."""
    log, table, empty = tmp_path / "log.json", tmp_path / "table.csv", tmp_path / "empty.json"
    lines = [{"iteration": record.iteration, **record.values} for record in make_records(0, stop=100)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    printed = CliRunner().invoke(app, ["parse", str(log), "--csv", "-"])
    assert (printed.exit_code, printed.stdout) == (0, render_csv(records_frame(load_history(log))))
    written = CliRunner().invoke(app, ["parse", str(log), "--csv", str(table)])
    assert "10 records" in written.stdout
    assert table.read_text() == printed.stdout
    assert CliRunner().invoke(app, ["parse", str(log), "--csv", "-", "--json"]).exit_code == 2
    empty.touch()
    assert CliRunner().invoke(app, ["parse", str(empty), "--csv", str(tmp_path / "none.csv")]).exit_code == 3
    assert not (tmp_path / "none.csv").exists()
