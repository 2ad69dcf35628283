"""Logs of any dialect held against one another: what is translated, what is refused, over which axis."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from simulated_runs import ITERATIONS, make_history, render_text, simulate, write_run
from test_logs import real_log
from typer.testing import CliRunner

from reproduce.axes import over_axis
from reproduce.cli import app
from reproduce.comparison import compare_runs
from reproduce.conventions import in_dinov2_terms
from reproduce.curves import LOSSES, TOTAL
from reproduce.errors import LogError
from reproduce.lineage import History, load_history, make_lineage
from reproduce.log_head import Head

LOCAL, KOLEO = 8, 0.1
CONFIG = {"crops": {"local_crops_number": LOCAL}, "dino": {"koleo_loss_weight": KOLEO}}
RAW = {
    "dino_local_crops_loss": (LOCAL + 1) / LOCAL,
    "dino_global_crops_loss": LOCAL + 1,
    "ibot_loss": 2.0,
    "koleo_loss": 1 / KOLEO,
}


def in_dinov3_terms(history: History, *, config: dict[str, object] | None) -> History:
    """The run as DINOv3 would have logged it, written from the definition of what each of the two logs."""
    records = []
    for record in history.lineage.records:
        values = {name: value for name, value in record.values.items() if not name.startswith(("mean_", "raw_"))}
        values |= {name: values[name] * RAW[name] for name in LOSSES}
        values["local_batch_size"] = values.pop("current_batch_size")
        records.append(dataclasses.replace(record, values=values))
    lineage = make_lineage(records)
    return dataclasses.replace(
        history, dialect="dinov3-text", lineage=lineage, config=None, head=Head(config, 1), knn={}, name="v3"
    )


def write_epochs(path: Path, *, epochs: int, shift: float = 0.0, seed: int = 0) -> Path:
    """A `log.txt` of MAE's kind."""
    noise = np.random.default_rng(seed).standard_normal(epochs) * 0.002
    lines = [
        {"train_lr": 1e-4, "train_loss": 0.4 + 0.6 * 0.97**epoch + noise[epoch] + shift, "epoch": epoch}
        for epoch in range(epochs)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_dinov3_losses_are_scaled_as_dinov2_logs_them() -> None:
    """By the configuration of its own log: every loss and the total come out as DINOv2 would have logged them."""
    history = make_history(simulate(1))
    back = in_dinov2_terms(in_dinov3_terms(history, config=CONFIG))
    for own, found in zip(history.lineage.records, back.lineage.records, strict=True):
        for name in (*LOSSES, "current_batch_size"):
            assert found.values[name] == pytest.approx(own.values[name])
        assert found.values[TOTAL] == pytest.approx(sum(own.values[name] for name in LOSSES))


def test_dinov3_against_dinov2_says_that_it_was_scaled() -> None:
    """A run in the other convention is on the course of runs like it, and the verdict says what was done."""
    mine = in_dinov3_terms(make_history(simulate(1)), config=CONFIG)
    verdict = compare_runs(mine, [make_history(simulate(seed), hidden=True) for seed in range(2, 6)]).verdict
    assert {check.state for check in verdict.checks if check.layer == "L4"} == {"pass"}
    assert "DINOv3's were scaled" in verdict.cannot_conclude[0]


def test_raw_losses_without_their_configuration_are_refused() -> None:
    """Against DINOv2's losses they cannot be scaled; among themselves they are compared as they are."""
    mine, other = (in_dinov3_terms(make_history(simulate(seed)), config=None) for seed in (1, 2))
    with pytest.raises(LogError, match="logs raw losses"):
        compare_runs(mine, [make_history(simulate(3))])
    assert compare_runs(mine, [other]).verdict.bands
    for known in (CONFIG, None):
        comparison = compare_runs(mine, [in_dinov3_terms(make_history(simulate(2)), config=known)])
        assert comparison.mine.lineage == mine.lineage
        assert comparison.references[0].head == Head()


def test_dinov3_among_themselves_are_scaled_where_all_say_how() -> None:
    """So that what is computed of a configuration, such as the losses of random weights, is of one convention."""
    runs = [make_history(simulate(seed)) for seed in (1, 2)]
    comparison = compare_runs(in_dinov3_terms(runs[0], config=CONFIG), [in_dinov3_terms(runs[1], config=CONFIG)])
    for run, found in zip(runs, (comparison.mine, *comparison.references), strict=True):
        assert found.lineage.records[9].values["ibot_loss"] == pytest.approx(run.lineage.records[9].values["ibot_loss"])
    assert "DINOv3's were scaled" in comparison.verdict.cannot_conclude[0]


@pytest.mark.parametrize(("references", "needed"), [(1, 35), (3, 25)])
def test_log_that_is_too_short_is_told_how_long_it_must_be(references: int, needed: int, tmp_path: Path) -> None:
    """One epoch less than the number said and nothing is compared; at the number, the curve is."""
    sentences = []
    for epochs in (needed - 1, needed):
        runs = [load_history(write_epochs(tmp_path / f"{seed}", epochs=epochs, seed=seed)) for seed in range(4)]
        sentences.append(compare_runs(runs[0], runs[1 : 1 + references]).verdict.sentence)
    assert f"Curves take {needed} epochs of every log; 0 has {needed - 1}." in sentences[0]
    assert "Curves take" not in sentences[1]


def test_epochs_against_epochs(tmp_path: Path) -> None:
    """Two logs of one object an epoch are compared by their curves; one that lies higher is outside of its band."""
    reference = load_history(write_epochs(tmp_path / "a", epochs=300))
    alike = compare_runs(load_history(write_epochs(tmp_path / "b", epochs=300, seed=1)), [reference]).verdict
    assert [(check.id, check.state) for check in alike.checks] == [("band-train_loss", "pass")]
    assert alike.outcome == "consistent"
    off = load_history(write_epochs(tmp_path / "c", epochs=300, seed=1, shift=0.1))
    assert compare_runs(off, [reference]).verdict.outcome == "failed"


def write_metric_logger(path: Path, *, seed: int, shift: float = 0.0) -> Path:
    """What MAE prints of 30 epochs of 200 batches."""
    noise = np.random.default_rng(seed).standard_normal(6000) * 0.004
    lines = ["Start training for 30 epochs"]
    for iteration in range(0, 6000, 20):
        loss = 0.4 + 0.6 * 0.999**iteration + noise[iteration] + shift
        lines.append(
            f"Epoch: [{iteration // 200}]  [{iteration % 200:3d}/200]  eta: 0:01:52  lr: 0.000100  "
            f"loss: {loss:.4f} ({loss:.4f})  time: 0.5  data: 0.1  max mem: 7184"
        )
    path.write_text("\n".join(lines) + "\n")
    return path


def test_what_mae_prints_is_compared(tmp_path: Path) -> None:
    """Two such texts by iteration: alike they are consistent, and one that lies higher leaves the band."""
    reference = load_history(write_metric_logger(tmp_path / "a", seed=0))
    alike = compare_runs(load_history(write_metric_logger(tmp_path / "b", seed=1)), [reference]).verdict
    assert ("band-loss", "pass") in [(check.id, check.state) for check in alike.checks]
    assert (alike.outcome, alike.total, alike.progress) == ("consistent", 6000, 1.0)
    off = load_history(write_metric_logger(tmp_path / "c", seed=1, shift=0.1))
    assert compare_runs(off, [reference]).verdict.outcome == "failed"


def test_what_counts_differently_is_refused_by_iteration(tmp_path: Path) -> None:
    """Epochs and iterations share no axis but progress; a mend says so."""
    epochs = load_history(write_epochs(tmp_path / "a", epochs=300))
    other = dataclasses.replace(epochs, unit="iteration")
    with pytest.raises(LogError, match="counts in epochs") as caught:
        compare_runs(epochs, [other])
    assert "--x progress" in (caught.value.mend or "")


def test_logs_that_share_no_column_are_refused(tmp_path: Path) -> None:
    """The error names some columns of each."""
    with pytest.raises(LogError, match=r"shares no column with .*: train_lr, train_loss here, dino_local"):
        compare_runs(load_history(write_epochs(tmp_path / "a", epochs=300)), [make_history(simulate(1))])


@pytest.mark.parametrize("axis", ["progress", "images", "gpu-hours"])
def test_runs_that_log_otherwise_meet_on_an_axis(axis: str) -> None:
    """A run of half the batch and twice the iterations lies where the other does, in cells of a common axis."""
    whole = make_history(simulate(1))
    records = [
        dataclasses.replace(record, values={**record.values, "iter_time": 0.5, "current_batch_size": 64.0})
        for record in whole.lineage.records
    ]
    whole = dataclasses.replace(whole, lineage=make_lineage(records), total=ITERATIONS)
    doubled = [
        dataclasses.replace(
            record,
            iteration=2 * record.iteration + 1,
            values={**record.values, "iter_time": 0.25, "current_batch_size": 32.0},
        )
        for record in records
    ]
    config = json.loads(json.dumps(whole.config, default=dict))
    batch = config["recipe"]["global_batch"]
    config["recipe"]["global_batch"] = batch // 2
    half = dataclasses.replace(whole, lineage=make_lineage(doubled), total=2 * ITERATIONS, config=config)
    half = dataclasses.replace(half, knn={2 * done: point for done, point in whole.knn.items()})
    one, other = over_axis([whole, half], axis)  # type: ignore[arg-type]
    assert one.lineage.records[-1].iteration == other.lineage.records[-1].iteration
    by_cell = {record.iteration: record.values for record in other.lineage.records}
    for record in one.lineage.records:
        near = [by_cell[cell] for cell in range(record.iteration - 1, record.iteration + 2) if cell in by_cell]
        assert any(values["ibot_loss"] == pytest.approx(record.values["ibot_loss"], rel=0.05) for values in near)
    if axis != "gpu-hours":
        assert one.knn == other.knn


@pytest.mark.parametrize("seconds", [0.8, 1.3])
def test_finished_run_stays_finished_over_gpu_hours(seconds: float) -> None:
    """However fast the reference was, neither run goes on; that k-NN is not compared is said."""
    runs = []
    for seed, time in ((1, 1.0), (2, seconds)):
        run = make_history(simulate(seed))
        records = [dataclasses.replace(r, values={**r.values, "iter_time": time}) for r in run.lineage.records]
        runs.append(dataclasses.replace(run, lineage=make_lineage(records)))
    verdict = compare_runs(runs[0], runs[1:], axis="gpu-hours").verdict
    assert verdict.outcome in ("consistent", "failed")
    assert verdict.progress == 1.0
    assert any(note.startswith("k-NN: runs are evaluated every so many") for note in verdict.cannot_conclude)


def test_axis_that_a_log_does_not_tell_is_refused() -> None:
    """Without a length there is no progress, without a batch there are no images, without times no GPU-hours."""
    hidden = [make_history(simulate(seed), hidden=True) for seed in (1, 2)]
    for axis in ("progress", "images", "gpu-hours"):
        with pytest.raises(LogError, match="does not say how"):
            over_axis(hidden, axis)  # type: ignore[arg-type]


@pytest.mark.parametrize("mine_is_bad", [True, False])
def test_log_without_iterations_is_named(tmp_path: Path, mine_is_bad: bool) -> None:
    """An empty log and one cut inside its header are mistakes on either side, each with its file and what is wrong."""
    good = write_run(simulate(1), tmp_path / "good")
    text = render_text(simulate(1))
    cut = text[: text.index("Training  [")]
    for name, content, wrong in (("empty.txt", "", "the file is empty"), ("cut.txt", cut, "it ends in its header")):
        bad = tmp_path / name
        bad.write_text(content)
        pair = (bad, good) if mine_is_bad else (good, bad)
        answer = CliRunner().invoke(app, ["compare", *map(str, pair)])
        assert answer.exit_code == 2
        assert str(bad) in answer.stderr
        assert wrong in answer.stderr


def test_several_of_mine_are_each_held_against_all(tmp_path: Path) -> None:
    """One verdict for each of mine, in order; the exit code is the worst one's."""
    runs = [str(write_run(simulate(seed), tmp_path / f"seed-{seed}")) for seed in range(5)]
    off = str(write_run(simulate(9, shift={"ibot_loss": 0.5}), tmp_path / "off"))
    answer = CliRunner().invoke(app, ["compare", runs[0], *runs[1:], "--also", off, "--json"])
    verdicts = json.loads(answer.stdout)
    assert [verdict["run"] for verdict in verdicts] == ["seed-0", "off"]
    assert [verdict["exit_code"] for verdict in verdicts] == [0, 1]
    assert answer.exit_code == 1


def test_sentences_over_an_axis_speak_of_shares_of_it() -> None:
    """Part of a log against the whole, and a run whose end was not evaluated, by percent and never by iterations."""
    whole = make_history(simulate(1))
    records = whole.lineage.records
    part = dataclasses.replace(whole, lineage=make_lineage(records[: 4 * len(records) // 5]), knn={}, total=ITERATIONS)
    verdict = compare_runs(part, [make_history(simulate(2))], axis="progress").verdict
    assert verdict.sentence.startswith("At 79.2 % of the axis, nothing so far differs"), verdict.sentence
    early = {done: point for done, point in whole.knn.items() if done <= ITERATIONS // 2}
    verdict = compare_runs(dataclasses.replace(whole, knn=early), [make_history(simulate(2))], axis="images").verdict
    assert "The final k-NN accuracy: the run's end was not evaluated." in verdict.cannot_conclude
    assert "iterations" not in verdict.sentence


def test_report_over_another_axis(tmp_path: Path) -> None:
    """The report draws the curves and k-NN as they were compared, and calls no cell an iteration."""
    runs = [str(write_run(simulate(seed), tmp_path / f"seed-{seed}")) for seed in range(2)]
    page = tmp_path / "page.html"
    answer = CliRunner().invoke(app, ["compare", *runs, "--x", "progress", "--html", str(page), "--exit-zero"])
    assert answer.exit_code == 0, answer.output
    text = page.read_text()
    assert "share of the run" in text
    drawn = text[text.index('id="knn"') : text.index("Accuracy at 100 % of the axis")]
    assert drawn.count("100 %</text>") >= 1
    dots = re.findall(r'class="mine dot" cx="([\d.]+)%"[^>]*><title>[\d.]+ % at ([\d.]+) % of the axis<', drawn)
    assert len(dots) > 1
    assert [float(at) for at, _ in dots] == pytest.approx([float(share) for _, share in dots], abs=0.1)
    assert not re.search(r"\d iterations|Last iteration|Seconds per iteration|k-NN evaluation after", text)
    answer = CliRunner().invoke(app, ["compare", *runs, "--html", str(tmp_path / "no" / "page.html")])
    assert answer.exit_code == 2
    assert "What could not be concluded" in answer.stdout  # the verdict is not lost with its page


def test_parse_says_what_is_wrong_with_what_it_was_given(tmp_path: Path) -> None:
    """Of a run folder the log is taken, where it has one; rubbish as a table on stdout is said on stderr."""
    folder = write_run(simulate(1), tmp_path / "run")
    answer = CliRunner().invoke(app, ["parse", str(folder)])
    assert answer.exit_code == 0
    assert f"{folder / 'training_metrics.json'}: " in answer.stdout
    answer = CliRunner().invoke(app, ["parse", str(folder / "eval")])
    assert answer.exit_code == 2
    assert "no training_metrics.json" in answer.stderr
    rubbish = tmp_path / "bin"
    rubbish.write_bytes(bytes(range(256)))
    answer = CliRunner().invoke(app, ["parse", str(rubbish), "--csv", "-"])
    assert (answer.exit_code, answer.stdout) == (3, "")
    assert "binary data" in answer.stderr


def test_real_logs_of_two_dialects_over_progress() -> None:
    """timm's text and the summary of another run are compared by the names that both have in one of the two forms."""
    mine, other = (load_history(real_log(f"timm/{name}")) for name in ("deit-tiny-300ep.out", "summary-a.csv"))
    verdict = compare_runs(mine, [other], axis="progress").verdict
    assert {band.metric for band in verdict.bands} == {"train_loss", "eval_loss", "eval_top1", "eval_top5"}
    (top1,) = [result for result in verdict.metrics if result.name == "eval_top1"]
    assert top1.difference is not None
    assert (top1.state, top1.difference < -15) == ("worse", True)  # of accuracies more is better
    assert any("summary-a.csv is finished" in note for note in verdict.cannot_conclude)
