"""The log parsers against real logs, against lines broken in every way, and against anything at all."""

import dataclasses
import itertools
import json
import math
import os
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_runs import ITERATIONS, RECIPE, make_records, render_text, simulate

from reproduce.errors import LogError
from reproduce.log_head import parse_heads
from reproduce.logs import Record, parse_dinov2_text, parse_json_lines, parse_knn, parse_log, read_lines
from reproduce.records import collect

LOGS = Path(__file__).parents[2] / "shared" / "logs"
PREFIX = "I20260308 08:02:33 116690 dinov2 helpers.py:102] "
LINE = (
    PREFIX + "Training  [   600/160000]  eta: 9 days, 22:23:19  lr: 0.0002 (0.0001)  total_loss: 13.8497 (14.0969)  "
    "koleo_loss: -0.0085 (0.1615)  time: 0.407304  data: 0.169819  max mem: 8193"
)
OBJECT = '{"iteration": 600, "lr": 1.1e-05, "total_loss": 13.849702835083008, "koleo_loss": -0.0085}'


def real_log(name: str) -> Path:
    path = LOGS / name
    if not path.exists():
        pytest.skip(f"the public log {path} is not here")
    return path


@pytest.mark.parametrize(
    "name",
    [
        "appended-launches.log.txt",
        "appended-launches.training_metrics.json",
        "failed-launch-then-run.log.txt",
        "failed-launch-then-run.training_metrics.json",
        "seven-launches-inf.log.txt",
        "sibling-1.log.txt",
        "sibling-2.log.txt",
    ],
)
def test_every_iteration_line_of_a_real_log_is_found(name: str) -> None:
    """As many records as a plain search counts, each at its own line, with every column."""
    path = real_log(f"dinov2/{name}")
    lines = path.read_text().split("\n")
    expected = [number for number, line in enumerate(lines, 1) if re.search(r"Training  \[|^\{\"iteration", line)]
    parsed = parse_log(path)
    assert [record.line for record in parsed.records] == expected
    assert {len(record.values) for record in parsed.records} == ({13} if path.suffix == ".txt" else {12})


def test_text_and_json_of_one_run_agree() -> None:
    """The two logs of one run give the same iterations, and the same values to the four decimals of text."""
    text = parse_log(real_log("dinov2/appended-launches.log.txt")).records
    lines = parse_log(real_log("dinov2/appended-launches.training_metrics.json")).records
    assert [record.iteration for record in text] == [record.iteration for record in lines]
    for one, other in zip(text, lines, strict=True):
        assert one.total == 160_000
        for name in other.values:
            assert one.values[name] == pytest.approx(other.values[name], abs=5.001e-5)


def test_head_of_a_real_log() -> None:
    """Commit, scaled learning rate and configuration of every launch; one that changed is a problem with its line."""
    parsed = parse_log(real_log("dinov2/seven-launches-inf.log.txt"))
    assert len(parsed.heads) == 11
    assert parsed.heads[0].git_sha == "e138b027674d89fb041212360532b9b741b9a20d"
    assert parsed.heads[0].scaled_lr == (0.004, 0.0004330127018922193)
    assert parsed.heads[0].config is not None
    assert parsed.heads[0].config["crops"]["local_crops_number"] == 8
    assert parsed.heads[-1].scaled_lr == (0.004, 0.000125)
    changed = [problem for problem in parsed.problems if "configuration differs" in problem.message]
    assert changed[0].line == 2428
    assert "train.batch_size_per_gpu" in changed[0].message


def test_infinite_values_are_values() -> None:
    """The 34 lines that carry `inf (inf)` are records whose numbers are infinite."""
    records = parse_log(real_log("dinov2/seven-launches-inf.log.txt")).records
    infinite = [record for record in records if math.isinf(record.values["total_loss"])]
    assert len(infinite) == 34
    assert all(record.averages is not None and math.isinf(record.averages["koleo_loss"]) for record in infinite)


def test_failed_launch_is_a_problem() -> None:
    """The error that ended a launch before its first iteration is reported at its line."""
    problems = parse_log(real_log("dinov2/failed-launch-then-run.log.txt")).problems
    assert any(
        problem.line == 781 and "Submitted job triggered an exception" in problem.message for problem in problems
    )


@pytest.mark.parametrize(("content", "looks"), [("<html>\n", "web page"), ("a,b,c\n1,2,3\n", "comma-separated")])
def test_log_of_another_kind_is_named(tmp_path: Path, content: str, looks: str) -> None:
    """A file of another kind gives no records and one problem: what it looks like, and what would be read."""
    path = tmp_path / "other"
    path.write_text(content)
    parsed = parse_log(path)
    assert (parsed.dialect, parsed.records) == ("unknown", ())
    assert looks in parsed.problems[0].message
    assert "DINOv2" in parsed.problems[0].message


def test_empty_and_binary_files_are_named(tmp_path: Path) -> None:
    """An empty file, a compressed one and rubbish are told apart."""
    for content, looks in ((b"", "empty"), (b"\x1f\x8b\x08rest", "gzip"), (bytes(range(256)) * 50, "binary")):
        path = tmp_path / "log"
        path.write_bytes(content)
        assert looks in parse_log(path).problems[0].message


def test_pipe_is_refused(tmp_path: Path) -> None:
    """A log is read more than once, which a pipe gives but once: what a second reading missed would not be seen."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LogError, match="a pipe or device") as error:
        parse_log(tmp_path / "pipe")
    assert error.value.mend


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    """A file that is not there, or is a folder, cannot be read: an error that names it."""
    for path in (tmp_path / "absent.txt", tmp_path):
        with pytest.raises(LogError, match=re.escape(str(path))):
            parse_log(path)


@pytest.mark.parametrize("eta", ["0:00:00", "22:16:11", "1 day, 7:24:46", "9 days, 22:23:19", "-1 day, 23:59:59"])
def test_every_form_of_eta(eta: str) -> None:
    """Whatever time is left, the line is read."""
    records, problems = parse_dinov2_text([LINE.replace("9 days, 22:23:19", eta)], path="log")
    assert not problems
    assert records[0].values["total_loss"] == 13.8497
    assert records[0].averages == {"lr": 0.0001, "total_loss": 14.0969, "koleo_loss": 0.1615}
    assert (records[0].iteration, records[0].total, records[0].time) == (600, 160_000, "2026-03-08T08:02:33")


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e-05", "-0.0000", "3"])
def test_every_form_of_number(value: str) -> None:
    """Numbers as Python prints them, finite or not."""
    records, problems = parse_dinov2_text([LINE.replace("13.8497 (14.0969)", f"{value} ({value})")], path="log")
    assert not problems
    assert records[0].values["total_loss"] == pytest.approx(float(value), nan_ok=True)


@given(st.integers(len(PREFIX), len(LINE) - 1))
def test_torn_text_line_never_gives_a_wrong_number(length: int) -> None:
    """A line cut anywhere gives the numbers of the whole line, or no record and a problem."""
    whole = parse_dinov2_text([LINE], path="log")[0][0]
    records, problems = parse_dinov2_text(["before", LINE[:length]], path="log")
    if records:
        losses = {name for name in whole.values if name.endswith(("loss", "lr"))}
        assert {name: records[0].values[name] for name in losses} == {name: whole.values[name] for name in losses}
    elif "eta: " in LINE[:length]:
        assert (problems[0].path, problems[0].line) == ("log", 2)


@given(st.integers(1, len(OBJECT) - 1))
def test_torn_json_line_is_a_problem(length: int) -> None:
    """A line cut anywhere is no record; the problem names its line."""
    records, problems = parse_json_lines([OBJECT, OBJECT[:length]], path="log")
    assert len(records) == 1
    assert [problem.line for problem in problems] == [2]


@given(st.integers(1, len(OBJECT) - 1), st.integers(len(PREFIX) + 60, len(LINE) - 1))
def test_line_written_on_behind_a_torn_one_is_read(json_length: int, text_length: int) -> None:
    """A process that was killed while it wrote leaves half a line; what the next one appends to it is not lost."""
    records, problems = parse_json_lines([OBJECT[:json_length] + OBJECT], path="log")
    assert [record.iteration for record in records] == [600]
    assert problems
    records, _ = parse_dinov2_text([LINE[:text_length] + LINE.replace("600/", "610/")], path="log")
    assert records[-1].iteration == 610
    assert records[-1].values["total_loss"] == 13.8497


@pytest.mark.parametrize(
    "line",
    ["[1, 2]", "{}", '{"iteration": -1}', '{"iteration": true}', '{"iteration": 1.5}', "[" * 100_000, "null", "nan"],
)
def test_json_without_an_iteration_is_a_problem(line: str) -> None:
    """JSON that is no iteration is reported with its line and left out."""
    records, problems = parse_json_lines([OBJECT, line, OBJECT], path="log")
    assert len(records) == 2
    assert problems[0].line == 2


def test_values_that_are_no_numbers_are_left_out() -> None:
    """Text, truth values, lists and numbers beyond any float are named; the other columns stay."""
    line = json.dumps({"iteration": 3, "a": "x", "b": True, "c": [1], "d": None, "e": 10**400, "f": 1.5})
    records, problems = parse_json_lines([line], path="log")
    assert records[0].values == {"f": 1.5}
    assert "a, b, c, d, e" in problems[0].message


def test_traceback_and_nan_are_problems() -> None:
    """A traceback is one problem, at its first line and with its last; so is the trainer's own NaN message."""
    lines = [
        "Traceback (most recent call last):",
        '  File "/path/train.py", line 313, in main',
        "    do_train(cfg)",
        'ValueError: Unsupported dataset "X"',
        PREFIX + "NaN detected",
        LINE,
    ]
    records, problems = parse_dinov2_text(lines, path="log")
    assert len(records) == 1
    assert [problem.line for problem in problems] == [1, 5]
    assert 'ValueError: Unsupported dataset "X"' in problems[0].message


def test_many_problems_are_counted_not_listed() -> None:
    """A corrupt file of ten thousand lines gives fifty problems and the number of the rest."""
    _, problems = parse_json_lines(["rubbish"] * 10_000, path="log")
    assert len(problems) == 51
    assert "9,950 more" in problems[-1].message


@given(
    st.lists(
        st.one_of(
            st.text(), st.sampled_from([LINE, OBJECT, LINE[:150], OBJECT[:40], "Traceback (most recent call last):"])
        )
    )
)
def test_no_line_raises(lines: list[str]) -> None:
    """Whatever the lines are, both parsers return records with line numbers that rise, and problems that are placed."""
    for parse in (parse_dinov2_text, parse_json_lines):
        records, problems = parse(lines, path="log")
        numbers = [record.line for record in records]
        assert numbers == sorted(numbers)
        assert all(1 <= (problem.line or 1) <= len(lines) for problem in problems)
        assert len(records) >= lines.count(LINE if parse is parse_dinov2_text else OBJECT)
    parse_heads(lines, path="log")


@given(content=st.binary(max_size=2000))
def test_no_file_raises(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever the bytes are, before or between good lines, the file is taken apart."""
    path = tmp_path_factory.getbasetemp() / "any.log"
    for before in (b"", LINE.encode() + b"\n", OBJECT.encode() + b"\n"):
        path.write_bytes(before + content)
        parsed = parse_log(path)
        assert parsed.records or not before
        parse_knn(path)


@given(st.text(alphabet="abc:&*-? \n{}[]'\"|>!%@`#0123", max_size=200))
def test_no_configuration_raises(text: str) -> None:
    """Whatever stands where a configuration should, the head is read."""
    parse_heads([PREFIX + "MODEL:", "  a: 1", *text.split("\n"), LINE], path="log")


def test_nested_anchors_do_not_unfold() -> None:
    """A configuration of nested anchors, which would unfold without end, is passed over."""
    bomb = ["a: &a [x, x]"] + [
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]" for i in range(20)
    ]
    heads, _ = parse_heads([PREFIX + "MODEL:", "  b: 1", *bomb], path="log")
    assert heads == ()


def test_line_without_end_is_cut(tmp_path: Path) -> None:
    """Megabytes without a line break are one line, of which the start is kept."""
    path = tmp_path / "log"
    path.write_bytes(b"x" * 5_000_000 + b"\nnext\r\n")
    lines = list(read_lines(path))
    assert len(lines) == 2
    assert len(lines[0]) == 1 << 20
    assert lines[1] == "next"


def test_our_own_text_is_read_back(tmp_path: Path) -> None:
    """What our trainer's text log prints is read back: iterations, values, launch, commit and the whole recipe."""
    truth = simulate(0)
    path = tmp_path / "log.txt"
    path.write_text(render_text(truth))
    parsed = parse_log(path)
    assert not parsed.problems
    assert [record.launch for record in parsed.records] == [1] * 61
    for record, made in zip(parsed.records, make_records(truth), strict=True):
        assert (record.iteration, record.total) == (made.iteration, ITERATIONS)
        for name, column in truth.columns.items():
            assert record.values[name] == pytest.approx(made.values[name], abs=5.001e-5)
            assert record.averages is not None
            assert record.averages[name] == pytest.approx(column[: record.iteration + 1].mean(), abs=5.001e-5)
    config = parsed.heads[0].config
    assert config is not None
    assert config["recipe"]["optim"]["base_lr"] == RECIPE.optim.base_lr
    assert parsed.heads[0].git_sha == "0123456789" * 4


def test_knn_results_of_dinov2() -> None:
    """Evaluations that were run again repeat their keys; each k has one accuracy."""
    accuracies, problems = parse_knn(real_log("eval/results_eval_knn.json"))
    assert not problems
    assert {k: round(value, 2) for k, value in accuracies.items()} == {10: 91.76, 20: 92.01, 100: 91.68, 200: 91.44}


def test_damaged_knn_results_are_problems(tmp_path: Path) -> None:
    """The last of repeated values wins; torn lines and accuracies beyond 100 % are reported."""
    path = tmp_path / "results_eval_knn.json"
    lines = [
        json.dumps({"('full', 10) Top 1": 50.0}),
        json.dumps({"('full', 10) Top 1": 60.0}),
        json.dumps({"('full', 10) Top 5": 90.0}),
        json.dumps({"('full', 20) Top 1": 160.0}),
        "{\"('full', 100) Top",
    ]
    path.write_text("\n".join(lines))
    accuracies, problems = parse_knn(path)
    assert accuracies == {10: 60.0}
    assert [problem.line for problem in problems] == [4, 5]


def test_kept_records_are_bounded_and_their_means_exact() -> None:
    """Of many records some are kept, evenly; sums over iterations, launches and the last record are as without that."""
    values = [3.0, -1.0, 2.0, 7.0, 1.0, 0.0, 4.0, 5.0]
    records = [
        Record(at + 1, 10 * at, None, {"mean_loss": values[at % 8], "loss": float(at)}, None, None, 0)
        for at in range(3000)
    ]
    again = [dataclasses.replace(record, line=3001 + place) for place, record in enumerate(records[1000:2500])]
    whole, problems = collect([*records, *again], path="log", limit=10_000)
    assert (len(whole), problems) == (4500, ())
    kept, problems = collect([*records, *again], path="log", limit=500)
    assert 120 < len(kept) < 500
    assert "4,500 records" in problems[0].message
    for full, thinned in zip(_sums(whole), _sums(kept), strict=True):
        assert thinned == pytest.approx(full)
    assert (kept[0], kept[-1].line) == (whole[0], 4500)
    rises = [after.iteration - before.iteration for before, after in itertools.pairwise(kept)]
    assert max(rises) == statistics.mode(rises) == 160


def _sums(records: Sequence[Record]) -> list[tuple[int, int, float]]:
    """Of each launch, its first and last iteration and the sum that its means tile."""
    sums = list[tuple[int, int, float]]()
    before = 0
    for record in records:
        if not sums or record.iteration <= before:
            sums.append((record.iteration, record.iteration, 0.0))
        else:
            first, _, total = sums[-1]
            sums[-1] = (first, record.iteration, total + (record.iteration - before) * record.values["mean_loss"])
        before = record.iteration
    return sums


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), max_size=200), st.integers(4, 40))
def test_no_course_of_a_log_keeps_more_than_the_limit(course: list[tuple[int, int]], limit: int) -> None:
    """However iterations and launches jump, no more than the limit is kept, in order, the last record with it."""
    records = [
        Record(line, at, None, {"mean_loss": 1.0}, None, None, launch) for line, (at, launch) in enumerate(course, 1)
    ]
    kept, _ = collect(records, path="log", limit=limit)
    assert len(kept) <= limit
    assert [record.line for record in kept] == sorted({record.line for record in kept})
    assert [record.line for record in kept[-1:]] == [record.line for record in records[-1:]]
