"""Every dialect but DINOv2's own: real logs, faithful lines, lines that are torn, labeled, or anything at all."""

import csv
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_logs import LINE, OBJECT, PREFIX, real_log

from reproduce.logs import DIALECTS, HEADS, find_dialect, parse_log, read_lines
from reproduce.problems import SHOWN

DINOV3 = (
    "I20250902 10:00:00 4242 dinov3 helpers.py:103] Training  [    10/1000000]  eta: 9 days, 22:23:19  "
    "lr: 0.0000 (0.0000)  wd: 0.0400 (0.0400)  mom: 0.9940 (0.9940)  last_layer_lr: 0.0000 (0.0000)  "
    "total_loss: 23.4012 (23.4013)  local_batch_size: 64.0000 (64.0000)  global_batch_size: 2048.0000 (2048.0000)  "
    "dino_local_crops_loss: 11.7834 (11.7836)  dino_local_loss_weight: 1.0000 (1.0000)  "
    "dino_global_crops_loss: 11.7834 (11.7835)  koleo_loss: 2.1035 (2.1100)  ibot_loss: 11.9131 (11.9132)  "
    "backbone_grad_norm: 1.2031 (1.3052)  time: 0.9041  data: 0.0003  max mem: 31022"
)
TIMM = (
    "Train: 3 [  50/1251 (  4%)]  Loss: 6.91 (6.93)  Time: 2.159s,  474.22/s  (0.696s, 1471.12/s)  "
    "LR: 1.000e-04  Data: 1.992 (0.383)"
)
TEST = "Test: [  48/48]  Time: 0.556 (1.946)  Loss:  5.9052 (6.4740)  Acc@1: 10.9670 ( 1.3580)  Acc@5: 24.4 ( 5.2700)"
EPOCH = '{"train_loss": 10.38, "train_lr": 0.00011, "train_wd": 0.04, "epoch": 1}'
LOGGER = [
    "Starting DINO training !",
    "Epoch: [12/100]  [ 340/1251]  eta: 0:10:11  loss: 8.124312 (8.301234)  lr: 0.000512 (0.000498)  "
    "wd: 0.041256 (0.040312)  time: 0.521532  data: 0.000912  max mem: 12001",
    "[14:22:31.123456] Epoch: [13]  [   0/1251]  eta: 1 day, 1:52:02  lr: 0.000511  loss: 0.9712 (0.9712)  "
    "time: 5.3736  data: 2.9413  max mem: 7184",
    "Test:  [  0/261]  eta: 0:08:20  loss: 0.5 (0.5)  acc1: 90.6 (90.6)  time: 1.9  data: 1.7  max mem: 8000",
    "* Acc@1 81.800 Acc@5 95.600 loss 0.821",
]
MAE = '{"train_lr": 3.4e-05, "train_loss": 0.95, "epoch": 4}'
SUMMARY = ["epoch,train_loss,eval_loss,eval_top1", "0,5.36,5.34,0.31", "1,5.28,5.10,3.48"]
MLLOG = [
    ':::MLLOG {"namespace": "", "time_ms": 1700000000000, "event_type": "POINT_IN_TIME", "key": "global_batch_size", '
    '"value": 4096, "metadata": {"file": "train.py", "lineno": 3}}',
    '0: :::MLLOG {"namespace": "", "time_ms": 1700000001000, "event_type": "INTERVAL_START", "key": "run_start", '
    '"value": null, "metadata": {"file": "train.py", "lineno": 9}}',
    '0: :::MLLOG {"namespace": "", "time_ms": 1700000002000, "event_type": "POINT_IN_TIME", "key": "train_loss", '
    '"value": 11.846, "metadata": {"samples_count": 4096, "lr": 3e-06}}',
    '0: :::MLLOG {"namespace": "", "time_ms": 1700000003000, "event_type": "POINT_IN_TIME", "key": "tracked_stats", '
    '"value": {"throughput": 5154.5}, "metadata": {"samples_count": 4096}}',
    '0: :::MLLOG {"namespace": "", "time_ms": 1700000004000, "event_type": "POINT_IN_TIME", "key": "eval_accuracy", '
    '"value": 0.72, "metadata": {"samples_count": 8192}}',
    ':::MLLOG {"namespace": "", "time_ms": 1700000005000, "event_type": "INTERVAL_END", "key": "run_stop", '
    '"value": null, "metadata": {"status": "aborted"}}',
]
KNN = ["{\"('full', 10) Top 1\": 91.5}", "{\"('full', 20) Top 1\": 92.0}", "{\"('full', 10) Top 1\": 91.7}"]
LINEAR = ["iter: 1249", '{"best_classifier": {"name": "lr_0_005", "accuracy": 0.88}}', ""]
SAMPLES = {
    "dinov2-text": [PREFIX + "Starting training from iteration 0", LINE],
    "dinov2-json": [OBJECT],
    "dinov3-text": [DINOV3],
    "dinov3-json": ['{"iteration": 0, "total_loss": 23.4, "local_batch_size": 64.0, "koleo_loss": 2.1}'],
    "timm-text": ["Scheduled epochs: 300", TIMM, TEST],
    "timm-summary": SUMMARY,
    "epoch-text": LOGGER,
    "epoch-json": [EPOCH, MAE],
    "mllog": MLLOG,
    "dinov2-knn": KNN,
    "dinov2-linear": LINEAR,
    "submitit": ["submitit ERROR (2024-12-04 11:57:30,347) - Submitted job triggered an exception"],
}
EVERY_LINE = [line for lines in SAMPLES.values() for line in lines]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialect_is_told_by_content(dialect: str) -> None:
    """Whatever stands before them, lines of a dialect are of that dialect, and hold no problem but the one planted."""
    assert find_dialect(["", "some words", *SAMPLES[dialect]]) == dialect
    _, problems = DIALECTS[dialect](SAMPLES[dialect], path="log")
    planted = {"mllog": ["the run stopped: aborted"], "submitit": ["an error was logged: Submitted job triggered a"]}
    assert [problem.message[:46] for problem in problems] == planted.get(dialect, [])


def test_dinov3_keeps_its_columns() -> None:
    """DINOv3's own columns are there under their names, with the means since process start."""
    (record,), problems = DIALECTS["dinov3-text"]([DINOV3], path="log")
    assert not problems
    assert (record.iteration, record.total, record.time) == (10, 1_000_000, "2025-09-02T10:00:00")
    assert record.values["backbone_grad_norm"] == 1.2031
    assert record.values["global_batch_size"] == 2048
    assert record.averages is not None
    assert record.averages["koleo_loss"] == 2.11


def test_every_training_line_of_a_real_timm_log_is_found() -> None:
    """Of 300 epochs of 1,251 batches: each printed line, and at each epoch's end what the evaluation came to."""
    path = real_log("timm/deit-tiny-300ep.out")
    parsed = parse_log(path)
    lines = [line for line in path.read_bytes().decode().split("\n") if "Train: " in line]
    assert len(parsed.records) == len(lines)
    for line, record in zip(lines, parsed.records, strict=True):
        epoch, batch, batches = map(int, re.findall(r"\d+", line)[:3])
        assert (record.iteration, record.total) == (epoch * batches + batch, 300 * 1251)
        assert record.values["Loss"] == float(re.findall(r"Loss: +(\S+)", line)[0])
        assert record.values["images_per_second"] == float(re.findall(r"([\d.]+)/s", line)[0])
    evaluated = [record for record in parsed.records if "Test Acc@1" in record.values]
    assert [record.iteration for record in evaluated] == [epoch * 1251 - 1 for epoch in range(1, 301)]
    assert evaluated[-1].values["Test Acc@1"] == 72.19
    assert not parsed.problems


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_every_cell_of_a_real_summary_is_read(name: str) -> None:
    """Whatever the order of the columns: each number, and of a list of equal learning rates the first."""
    path = real_log(f"timm/summary-{name}.csv")
    parsed = parse_log(path)
    assert (parsed.unit, len(parsed.records), parsed.problems) == ("epoch", 105, ())
    with path.open(newline="") as file:
        for record, row in zip(parsed.records, csv.DictReader(file), strict=True):
            assert record.iteration == int(row.pop("epoch"))
            assert record.values == {key: json.loads(cell.strip("[]").split(",")[0]) for key, cell in row.items()}


def test_real_linear_results() -> None:
    """Each evaluation of the probe at its iteration."""
    parsed = parse_log(real_log("eval/results_eval_linear.json"))
    assert [record.iteration for record in parsed.records] == [*range(1249, 12000, 1250), 12500]
    assert parsed.records[-1].values == {"accuracy": 0.9064268469810486}


def test_real_error_stream_of_a_job_says_why_it_died() -> None:
    """submitit's error file holds no iterations; what it reports is the exception, at its line."""
    parsed = parse_log(real_log("dinov2/submitit-failed.err"))
    assert (parsed.dialect, parsed.records) == ("submitit", ())
    assert any("ValueError" in problem.message for problem in parsed.problems)


def test_mllog_events_at_one_place_are_one_record() -> None:
    """Metrics count in samples; the hyperparameters before the run are its configuration."""
    records, _ = DIALECTS["mllog"](MLLOG, path="log")
    assert [(record.iteration, dict(record.values)) for record in records] == [
        (4096, {"train_loss": 11.846, "throughput": 5154.5}),
        (8192, {"eval_accuracy": 0.72}),
    ]
    assert records[0].time == "2023-11-14T22:13:22"
    (head,), _ = HEADS["mllog"](MLLOG, path="log")
    assert head.config == {"global_batch_size": 4096}


def test_lines_of_epochs_are_iterations() -> None:
    """DINO's and MAE's lines count batches over epochs; the accuracy after an epoch joins the line before it.

    The means in brackets are those of an epoch, so they are not taken for means since the process began.
    """
    records, problems = DIALECTS["epoch-text"](LOGGER, path="log")
    assert not problems
    assert [(record.line, record.iteration, record.total) for record in records] == [
        (2, 12 * 1251 + 340, 100 * 1251), (3, 13 * 1251, None),
    ]  # fmt: skip
    assert dict(records[0].values) == {"loss": 8.124312, "lr": 0.000512, "wd": 0.041256, "iter_time": 0.521532,
                                       "data_time": 0.000912, "max_memory_mb": 12001}  # fmt: skip
    assert dict(records[1].values) == {"lr": 0.000511, "loss": 0.9712, "iter_time": 5.3736, "data_time": 2.9413,
                                       "max_memory_mb": 7184, "Test Acc@1": 81.8, "Test Acc@5": 95.6,
                                       "Test loss": 0.821}  # fmt: skip
    assert {record.averages for record in records} == {None}


def test_launches_of_epochs_say_how_many() -> None:
    """MAE says at its start how many epochs there will be; another start is another launch."""
    start = "Start training for 400 epochs"
    records, _ = DIALECTS["epoch-text"]([start, LOGGER[2], start, LOGGER[2]], path="log")
    assert [(record.launch, record.total) for record in records] == [(1, 400 * 1251), (2, 400 * 1251)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (LOGGER[1][:90], "torn training line"),
        (LOGGER[1].replace("8.124312", "8.12.43"), "unreadable field"),
        (LOGGER[1].partition("  loss")[0] + "  time: 0.5  data: 0.1", "torn training line"),
        (LOGGER[4], "an evaluation before any training line"),
    ],
)
def test_broken_line_of_an_epoch_is_a_problem_at_its_line(line: str, said: str) -> None:
    """Cut before its end, with a number that is none, without a loss, or out of place."""
    _, problems = DIALECTS["epoch-text"](["", *([] if line == LOGGER[4] else [LOGGER[1]]), line], path="log")
    assert [(problem.line, problem.message[: len(said)]) for problem in problems][:1] == [
        (2 if line == LOGGER[4] else 3, said)
    ]


def test_summary_that_begins_again_is_another_launch() -> None:
    """A header in the middle starts anew; a row with too few cells is a problem at its line."""
    records, problems = DIALECTS["timm-summary"]([*SUMMARY, *SUMMARY, "2,1.0"], path="log")
    assert [(record.launch, record.iteration) for record in records] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert [problem.line for problem in problems] == [7]


def test_evaluations_that_repeat_are_records_of_their_own() -> None:
    """A key that comes again begins the next evaluation."""
    records, _ = DIALECTS["dinov2-knn"](KNN, path="log")
    assert [list(record.values.values()) for record in records] == [[91.5, 92.0], [91.7]]


@pytest.mark.parametrize(
    "label", ["{rank}: ", "[rank{rank}]: ", "[default{rank}]:", "[1,{rank}]<stdout>:", "[{rank}] "]
)
@pytest.mark.parametrize("dialect", ["dinov2-text", "dinov3-text", "timm-text", "epoch-text", "mllog"])
def test_lines_of_many_ranks_are_those_of_one(label: str, dialect: str) -> None:
    """Of the lines of four ranks in one file, labeled by a launcher, those of one rank are taken."""
    plain = [re.sub(r"^0: ", "", line) for line in SAMPLES[dialect]]
    labeled = [label.format(rank=rank) + line for line in plain for rank in range(4)]
    assert find_dialect(labeled) == dialect
    alone, _ = DIALECTS[dialect](plain, path="log")
    records, _ = DIALECTS[dialect](labeled, path="log")
    assert [record.values for record in records] == [record.values for record in alone]
    assert [record.launch for record in records] == [record.launch for record in alone]


def test_colors_and_carriage_returns_are_no_text() -> None:
    """What a terminal is given beside the text is left out; lines with CR at either end are read."""
    colored = "\x1b[32m" + PREFIX + "\x1b[0m" + LINE.removeprefix(PREFIX)
    plain, _ = DIALECTS["dinov2-text"]([LINE], path="log")
    assert DIALECTS["dinov2-text"]([colored], path="log")[0] == plain
    assert DIALECTS["timm-text"](["\r" + TIMM + "\r"], path="log") == DIALECTS["timm-text"]([TIMM], path="log")


def test_configuration_under_hydras_stamp_is_read() -> None:
    """A program that logs through Hydra stamps its lines otherwise; configuration and time are read all the same."""
    stamp = "[2026-01-01 12:00:00,123][dinov2][INFO] - "
    lines = [stamp + "train:", "  seed: 3", "optim:", "  epochs: 10", stamp + LINE.removeprefix(PREFIX)]
    assert find_dialect(lines) == "dinov2-text"
    (record,), _ = DIALECTS["dinov2-text"](lines, path="log")
    assert record.time == "2026-01-01T12:00:00"
    (head,), _ = HEADS["dinov2-text"](lines, path="log")
    assert head.config == {"train": {"seed": 3}, "optim": {"epochs": 10}}


PIECES = st.one_of(
    st.text(max_size=80),
    st.sampled_from(EVERY_LINE),
    st.tuples(st.sampled_from(EVERY_LINE), st.integers(0, 400)).map(lambda pair: pair[0][: pair[1]]),
    st.tuples(st.sampled_from(EVERY_LINE), st.integers(0, 300), st.text(max_size=4)).map(
        lambda cut: cut[0][: cut[1]] + cut[2] + cut[0][cut[1] :]
    ),
)


@settings(max_examples=200)
@given(st.lists(PIECES, max_size=20))
def test_no_line_of_any_dialect_raises(lines: list[str]) -> None:
    """Whatever the lines, every parser returns records in the order of lines and problems with lines of the file."""
    for dialect, parse in DIALECTS.items():
        records, problems = parse(lines, path="log")
        numbers = [record.line for record in records]
        assert numbers == sorted(numbers)
        assert all(1 <= number <= len(lines) for number in numbers)
        assert all(problem.line is None or 1 <= problem.line <= len(lines) for problem in problems)
        assert len(problems) <= SHOWN + 2
        if dialect in HEADS:
            HEADS[dialect](lines, path="log")
    find_dialect(lines)


@given(content=st.binary(max_size=300), pieces=st.lists(st.sampled_from(EVERY_LINE), max_size=4))
def test_no_file_of_any_dialect_raises(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, pieces: list[str]
) -> None:
    """Whatever the bytes between good lines, a file is taken apart."""
    path = tmp_path_factory.getbasetemp() / "dialect.log"
    path.write_bytes(content.join(f"{piece}\n".encode() for piece in pieces) + content)
    parsed = parse_log(path)
    count = sum(1 for _ in read_lines(path))
    assert all(problem.line is None or 1 <= problem.line <= count for problem in parsed.problems)
