"""The log's numbers against naive ones, its lines against those of real logs, and what it does with a bad loss."""

import json
import math
import random
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes import make_recipe, make_train_config

from franca.closed_form import first_losses, make_beginning
from franca.flops import step_flops
from franca.laws import DRAWS
from franca.train.metrics import LOSSES, Metrics, NonFiniteError, append_line, mend_last_line, open_log

LOGS = Path(__file__).parents[2] / "shared" / "logs" / "dinov2"

# What a line of DINOv2's log looks like, from its head to its tail.
LINE = re.compile(
    r"I\d{8} \d\d:\d\d:\d\d \d+ (?P<name>dinov2|franca) \w+\.py:\d+\] "
    r"Training  \[ *(?P<iteration>\d+)/(?P<total>\d+)\]  eta: (?:\d+ days?, )?\d+:\d\d:\d\d  "
    r"(?P<meters>(?:\w+: \S+ \(\S+\)  )+)time: \d+\.\d{6}  data: \d+\.\d{6}  max mem: \d+"
)
METERS = ["lr", "wd", "mom", "last_layer_lr", "current_batch_size", "total_loss", *LOSSES]


def make_metrics(folder: Path, *, scaled: bool = False, period: int = 10, iterations: int = 100) -> Metrics:
    config = make_train_config(make_recipe(iterations=iterations), log_period_iterations=period)
    return Metrics(config, folder=folder, device=torch.device("cpu"), scaled=scaled)


def add(metrics: Metrics, iteration: int, values: list[float], *, grad_norm: float = 1.0) -> None:
    losses = dict(zip(LOSSES, map(torch.tensor, values), strict=True))
    settings = {"lr": iteration / 8, "wd": 0.04, "mom": 0.99, "last_layer_lr": 0.0, "current_batch_size": 64.0}
    settings["teacher_temp"] = 0.04
    draws = np.full(len(DRAWS), values[0])
    metrics.add(iteration, settings=settings, losses=losses, grad_norm=torch.tensor(grad_norm), draws=[draws])


def run(metrics: Metrics, values: list[list[float]], *, start: int = 0) -> None:
    """Iterations from `start` on, each half a second long, a tenth of it waiting for data."""
    for iteration, row in enumerate(values, start):
        add(metrics, iteration, row)
        if metrics.is_due(iteration):
            metrics.check()
        metrics.add_times(iteration_s=0.5, data_s=0.1)
        if metrics.is_due(iteration):
            metrics.write(iteration)


def random_losses(count: int) -> list[list[float]]:
    """Values that float32 holds exactly, so that sums can be compared."""
    generator = random.Random(0)
    return [[generator.randrange(2**12) / 2**8 for _ in LOSSES] for _ in range(count)]


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "training_metrics.json").read_text().splitlines()]


def test_json_lines_hold_medians_raw_values_and_block_means(tmp_path: Path) -> None:
    """A line every ten iterations and at the last: the lower median of 20, this iteration's value, the block's mean."""
    values = random_losses(100)
    run(make_metrics(tmp_path), values)
    lines = records(tmp_path)
    assert [line["iteration"] for line in lines] == [*range(0, 100, 10), 99]
    previous = -1
    for line in lines:
        i = int(line["iteration"])
        for column, name in enumerate(LOSSES):
            history = [row[column] for row in values[: i + 1]]
            assert line[name] == statistics.median_low(history[-20:])
            assert line[f"raw_{name}"] == history[-1]
            assert line[f"mean_{name}"] == pytest.approx(statistics.fmean(history[previous + 1 :]), rel=1e-14)
        assert line["raw_total_loss"] == sum(values[i])
        assert line["total_loss"] == statistics.median_low([sum(row) for row in values[max(0, i - 19) : i + 1]])
        assert line["lr"] == statistics.median_low([step / 8 for step in range(max(0, i - 19), i + 1)])
        assert (line["iter_time"], line["data_time"]) == pytest.approx((0.5, 0.1))
        assert line["images_per_second"] == pytest.approx(128)
        assert line["grad_norm"] == 1.0
        assert line["max_memory_mb"] > 10
        previous = i


def test_text_lines_are_those_of_real_logs(tmp_path: Path) -> None:
    """Our line has the form of DINOv2's, with its medians and means since the start, to four decimals."""
    values = random_losses(31)
    with open_log(tmp_path):
        run(make_metrics(tmp_path, iterations=125_000), values)
    lines = [line for line in (tmp_path / "log.txt").read_text().splitlines() if "Training" in line]
    assert len(lines) == 4
    match = LINE.fullmatch(lines[-1])
    assert match
    assert (match["name"], match["iteration"], match["total"]) == ("franca", "30", "125000")
    meters = dict(re.findall(r"(\w+): (\S+ \(\S+\))", match["meters"]))
    assert list(meters) == METERS
    column = [row[3] for row in values]
    assert meters["ibot_loss"] == f"{statistics.median_low(column[-20:]):.4f} ({statistics.fmean(column):.4f})"
    assert "eta: 17:21:25" in lines[-1]  # 124,970 iterations of half a second


def test_pattern_is_that_of_real_logs() -> None:
    """The pattern that our lines match is matched by every line of a real DINOv2 log, with the same meters."""
    path = LOGS / "sibling-1.log.txt"
    if not path.exists():
        pytest.skip(f"the public log {path} is not here")
    lines = [line for line in path.read_text().splitlines() if "Training  [" in line]
    assert len(lines) > 3000
    for line in lines:
        match = LINE.fullmatch(line)
        assert match, line
        assert re.findall(r"(\w+): \S+ \(\S+\)", match["meters"]) == METERS


def test_blocks_of_a_resumed_run_are_those_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """Stopped between two lines and resumed with the open block, a run writes the same block means."""
    values = random_losses(100)
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
    run(make_metrics(tmp_path / "one"), values)
    first, second = make_metrics(tmp_path / "two"), make_metrics(tmp_path / "two")
    run(first, values[:47])
    first.check()
    second.block = first.block
    run(second, values[47:], start=47)
    one, two = records(tmp_path / "one"), records(tmp_path / "two")
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert {k: v for k, v in a.items() if "mean" in k} == {k: v for k, v in b.items() if "mean" in k}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_loss_names_its_iteration_and_term(tmp_path: Path, bad: float) -> None:
    """The first bad iteration is named, whenever the check comes, and the flag on the device stays down after it."""
    metrics = make_metrics(tmp_path)
    add(metrics, 5, [1.0, 1.0, 1.0, 1.0])
    assert metrics.healthy
    add(metrics, 6, [1.0, 1.0, bad, 1.0])
    assert not metrics.healthy
    add(metrics, 7, [1.0, 1.0, 1.0, 1.0])
    assert not metrics.healthy
    with pytest.raises(NonFiniteError, match="iteration 6: koleo_loss not finite"):
        metrics.check()


def test_bad_gradient_is_an_error_without_a_scaler(tmp_path: Path) -> None:
    """An infinite gradient stops a run in full precision; a scaler has asked for it and skips the step."""
    metrics = make_metrics(tmp_path)
    add(metrics, 3, [1.0, 1.0, 1.0, 1.0], grad_norm=math.inf)
    assert not metrics.healthy
    with pytest.raises(NonFiniteError, match="iteration 3: grad_norm not finite"):
        metrics.check()
    scaled = make_metrics(tmp_path, scaled=True)
    add(scaled, 0, [1.0, 1.0, 1.0, 1.0], grad_norm=math.inf)
    scaled.check()
    scaled.add_times(iteration_s=1.0, data_s=0.0)
    scaled.write(0)
    assert "grad_norm" not in records(tmp_path)[0]


def test_torn_last_line_is_ended(tmp_path: Path) -> None:
    """After a kill amid a line, the next line begins on its own; whole files and absent ones are left alone."""
    path = tmp_path / "training_metrics.json"
    mend_last_line(path)
    assert not path.exists()
    path.write_text('{"iteration": 0}\n{"iterat')
    mend_last_line(path)
    append_line(path, '{"iteration": 1}')
    mend_last_line(path)
    assert path.read_text().splitlines() == ['{"iteration": 0}', '{"iterat', '{"iteration": 1}']


def test_log_is_closed_again(tmp_path: Path) -> None:
    """Two runs in one process write to their own logs alone."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with open_log(tmp_path / name):
            run(make_metrics(tmp_path / name), random_losses(1))
    assert (tmp_path / "one" / "log.txt").read_text().count("Training  [") == 1


def test_model_flops_are_those_of_the_images(tmp_path: Path) -> None:
    """A line holds the model TFLOP/s of one process; a share of the peak only where the device's peak is known."""
    metrics = make_metrics(tmp_path)
    run(metrics, random_losses(11))
    metrics.peak_tflops = 0.5
    run(metrics, random_losses(20)[11:] + random_losses(11), start=11)
    first, _, known = records(tmp_path)[:3]
    cost = step_flops(make_recipe(), images=64).total
    assert first["tflops_per_process"] == pytest.approx(128 * cost / 1e12)
    assert "mfu" not in first
    assert known["mfu"] == pytest.approx(known["tflops_per_process"] / 0.5)


def test_first_losses_are_logged_beside_their_closed_form(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At iteration 0 alone, and a loss that random weights do not have is a warning."""
    beginning = make_beginning(make_recipe())
    assert beginning is not None
    expected = first_losses(beginning)
    right = [expected[name].value if name in expected else 0.5 for name in LOSSES]
    with open_log(tmp_path):
        run(make_metrics(tmp_path, period=1), [right, [2 * value for value in right]])
        assert [record.levelname for record in caplog.records] == ["INFO"] * 5
        (tmp_path / "other").mkdir()
        run(make_metrics(tmp_path / "other"), [[2 * value for value in right]])
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line.split(":")[0] for line in warnings] == list(expected)


def test_steps_that_are_not_finite_are_skipped_as_often_as_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is named in the log and left out of every mean; the one after the last allowed one ends the run."""
    config = make_train_config(make_recipe(optim={"nonfinite_skips": 2}), log_period_iterations=2)
    metrics = Metrics(config, folder=tmp_path, device=torch.device("cpu"), scaled=False)
    rows = [[1.0] * 4, [math.nan, 1.0, 1.0, 1.0], [3.0] * 4, [1.0, 1.0, 1.0, math.inf]]
    healthy, left_out = [], []
    for iteration, row in enumerate(rows):
        add(metrics, iteration, row)
        metrics.check()
        healthy.append(bool(metrics.healthy))
        left_out.append(metrics.left_out)
        metrics.add_times(iteration_s=0.5, data_s=0.1)
        if metrics.is_due(iteration):
            metrics.write(iteration)
    assert healthy == [True, False, True, False]
    assert left_out == [False, True, False, True]
    assert [record["mean_total_loss"] for record in records(tmp_path)] == [4.0, 12.0]
    messages = [record.getMessage() for record in caplog.records]
    assert "iteration 1: dino_local_crops_loss not finite; the step was left out (1 of 2)" in messages
    assert "iteration 3: ibot_loss not finite; the step was left out (2 of 2)" in messages
    add(metrics, 4, [1.0] * 4, grad_norm=math.nan)
    with pytest.raises(
        NonFiniteError, match=r"iteration 4: grad_norm not finite; the weights were kept \(2 skips used\)"
    ):
        metrics.check()
