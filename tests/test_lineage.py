"""Launches put together: real appended logs, every way to resume, and what must hold of any sequence of records."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_runs import ITERATIONS, make_records, simulate, write_run

from reproduce.errors import LogError, RunError
from reproduce.lineage import load_history, log_period, make_lineage
from reproduce.logs import Record

LOGS = Path(__file__).parents[2] / "shared" / "logs" / "dinov2"


def records_of(*launches: range) -> list[Record]:
    """Records of launches that each log the iterations of a range; the value is the launch."""
    pairs = [(at, launch) for launch, iterations in enumerate(launches) for at in iterations]
    return [
        Record(line, at, None, {"total_loss": float(launch)}, None, None, 0)
        for line, (at, launch) in enumerate(pairs, 1)
    ]


@pytest.mark.parametrize("name", ["appended-launches.log.txt", "appended-launches.training_metrics.json"])
def test_appended_launches_of_a_real_log(name: str) -> None:
    """Four launches from 0, to 50, 40, 220 and 2,390; 34 iterations stand twice, and the last launch counts."""
    path = LOGS / name
    if not path.exists():
        pytest.skip(f"the public log {path} is not here")
    history = load_history(path)
    launches = history.lineage.launches
    assert [(launch.start, launch.end) for launch in launches] == [(0, 50), (0, 40), (0, 220), (0, 2390)]
    assert [launch.kind for launch in launches] == ["start", "restart", "restart", "restart"]
    assert (len(history.lineage.records), len(history.lineage.ghosts), history.done) == (240, 34, 2391)
    assert {record.line for record in history.lineage.records} == set(
        range(launches[3].first_line, launches[3].last_line + 1)
    )


def test_seven_launches_of_a_real_log() -> None:
    """Six restarts that got less far than the first launch are set aside, and each is a problem with its line."""
    path = LOGS / "seven-launches-inf.log.txt"
    if not path.exists():
        pytest.skip(f"the public log {path} is not here")
    history = load_history(path)
    assert [launch.end for launch in history.lineage.launches] == [260, 20, 40, 90, 50, 100, 60]
    assert history.done == 261
    assert history.head.config_line == 11
    assert [problem.line for problem in history.lineage.problems] == [1616, 2413, 3994, 4798, 7913, 8717]


def test_resume_overwrites_what_it_repeats() -> None:
    """The later launch's records count from its first iteration on; what it overwrote is kept as ghosts."""
    lineage = make_lineage(records_of(range(0, 201, 10), range(150, 301, 10)))
    assert [launch.kind for launch in lineage.launches] == ["start", "resume"]
    assert [record.iteration for record in lineage.records] == list(range(0, 301, 10))
    assert [record.values["total_loss"] for record in lineage.records] == [0.0] * 15 + [1.0] * 16
    assert [record.iteration for record in lineage.ghosts] == list(range(150, 201, 10))
    assert not lineage.problems


def test_resume_at_the_next_line_is_one_run() -> None:
    """A launch that goes on exactly where the last one ended leaves nothing out and nothing twice."""
    records = records_of(range(0, 100, 10), range(100, 201, 10))
    lineage = make_lineage(records)
    assert list(lineage.records) == records
    marked = [dataclasses.replace(record, launch=int(record.values["total_loss"])) for record in records]
    assert [launch.kind for launch in make_lineage(marked).launches] == ["start", "resume"]


def test_restart_counts_once_it_gets_as_far() -> None:
    """A restart from 0 is set aside while it is shorter than what it left, and replaces it afterwards."""
    shorter = make_lineage(records_of(range(0, 201, 10), range(0, 101, 10)), path="log")
    assert [record.values["total_loss"] for record in shorter.records] == [0.0] * 21
    assert "is kept" in shorter.problems[0].message
    longer = make_lineage(records_of(range(0, 201, 10), range(0, 301, 10)), path="log")
    assert [record.values["total_loss"] for record in longer.records] == [1.0] * 31
    assert "is dropped" in longer.problems[0].message


def test_resume_after_a_restart_goes_on_where_it_belongs() -> None:
    """After a short restart, a launch that resumes far beyond it continues the run that the restart left."""
    lineage = make_lineage(records_of(range(0, 201, 10), range(0, 51, 10), range(150, 301, 10)))
    assert [record.values["total_loss"] for record in lineage.records] == [0.0] * 15 + [2.0] * 16
    assert [launch.kind for launch in lineage.launches] == ["start", "restart", "resume"]


def test_missing_lines_are_a_gap() -> None:
    """Iterations that no line covers cut the run, and are reported; a single missing line is not."""
    lineage = make_lineage(records_of(range(0, 101, 10), range(200, 301, 10)), path="log")
    assert [launch.kind for launch in lineage.launches] == ["start", "gap"]
    assert str(lineage.problems[0]) == "log:12: no lines between iterations 100 and 200"
    assert len(make_lineage(records_of([*range(0, 101, 10), *range(120, 201, 10)])).launches) == 1  # type: ignore[arg-type]


def test_line_written_twice_is_no_launch() -> None:
    """Two handlers of one logger write every line twice: one run, whose copies are ghosts."""
    records = [record for record in records_of(range(0, 101, 10)) for _ in range(2)]
    numbered = [dataclasses.replace(record, line=line) for line, record in enumerate(records, 1)]
    lineage = make_lineage(numbered)
    assert len(lineage.launches) == 1
    assert (len(lineage.records), len(lineage.ghosts)) == (11, 11)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 2)), max_size=80))
def test_lineage_of_anything(pairs: list[tuple[int, int]]) -> None:
    """Nothing is lost or made up; iterations rise; launches tile the lines; of a kept iteration no later one exists
    in the launches that count."""
    records = [Record(line, 10 * at, None, {"v": float(v)}, None, None, 0) for line, (at, v) in enumerate(pairs, 1)]
    lineage = make_lineage(records, path="log")
    assert sorted((*lineage.records, *lineage.ghosts), key=lambda record: record.line) == records
    iterations = [record.iteration for record in lineage.records]
    assert iterations == sorted(set(iterations))
    assert [record.line for record in lineage.records] == sorted(record.line for record in lineage.records)
    assert all(launch.first_line <= launch.last_line and launch.start <= launch.end for launch in lineage.launches)
    lines = [line for launch in lineage.launches for line in (launch.first_line, launch.last_line)]
    assert lines == sorted(lines)
    if records:
        assert lineage.launches[0].kind == "start"
        assert max(iterations) >= max((launch.end for launch in lineage.launches[-1:]), default=0)


@given(st.integers(1, 59), st.integers(0, 300))
def test_any_resume_gives_the_uninterrupted_run(stop: int, back: int) -> None:
    """However far a resume goes back, every logged iteration is there once, and from the resume on it is the later."""
    start = max(10 * stop - back, 1)
    first, second = range(0, 10 * stop, 10), range(-(-start // 10) * 10, 600, 10)
    lineage = make_lineage(records_of(first, second))
    assert [record.iteration for record in lineage.records] == list(range(0, 600, 10))
    assert all(record.values["total_loss"] == float(record.iteration >= second[0]) for record in lineage.records)


def test_lineage_is_linear_in_its_launches() -> None:
    """A hundred thousand restarts are put together as fast as one run."""
    records = records_of(*[range(0, 20, 10)] * 50_000)
    assert len(make_lineage(records).launches) == 50_000


def test_run_folder_is_read_whole(tmp_path: Path) -> None:
    """Lines, k-NN points by iterations done, seed, length and configuration of a run folder."""
    truth = simulate(3)
    history = load_history(write_run(truth, tmp_path / "seed-3"))
    assert (history.name, history.seed, history.total, history.done) == ("seed-3", 3, ITERATIONS, ITERATIONS)
    assert history.dialect == "dinov2-json"
    assert history.log_path == tmp_path / "seed-3" / "training_metrics.json"
    assert history.knn == truth.knn
    assert list(history.knn) == [0, 100, 200, 300, 400, 500, 600]
    assert history.state == {"state": "finished", "iteration": 600}
    assert history.text is None
    assert not history.problems


def test_text_log_alone_is_enough(tmp_path: Path) -> None:
    """Without JSON lines the text log gives the lines, the length and, of our own, the whole configuration."""
    folder = write_run(simulate(3), tmp_path / "run")
    (folder / "training_metrics.json").unlink()
    (folder / "config.yaml").unlink()
    history = load_history(folder)
    assert (history.dialect, history.done, history.total) == ("dinov2-text", ITERATIONS, ITERATIONS)
    assert history.head.config is not None
    assert history.head.config["seed"] == 3


def test_text_is_read_for_its_averages_where_json_has_no_means(tmp_path: Path) -> None:
    """JSON lines of another program hold medians only; the text log beside them is read for its averages."""
    folder = write_run(simulate(3), tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "training_metrics.json").read_text().splitlines()]
    plain = [{key: value for key, value in line.items() if not key.startswith(("mean_", "raw_"))} for line in lines]
    (folder / "training_metrics.json").write_text("".join(f"{json.dumps(line)}\n" for line in plain))
    history = load_history(folder)
    assert history.text is not None
    assert history.text.records[-1].averages is not None


def test_final_evaluation_fills_in(tmp_path: Path) -> None:
    """evaluation.json gives a point where the run itself did not evaluate, and the number of test images."""
    folder = write_run(simulate(3), tmp_path / "run")
    shutil.rmtree(folder / "eval" / "training_599")
    content = {"iteration": 600, "knn": {"10": 91.5}, "protocol": {"test_images": 360}}
    (folder / "evaluation.json").write_text(json.dumps(content))
    history = load_history(folder)
    assert history.knn[600] == {10: 91.5}
    assert history.test_images == 360


def test_damaged_files_of_a_run_are_problems(tmp_path: Path) -> None:
    """A broken configuration, state or evaluation, and a torn last line, are problems; the lines still count."""
    folder = write_run(simulate(3), tmp_path / "run")
    (folder / "config.yaml").write_text("row: [")
    (folder / "state.json").write_text("{")
    (folder / "evaluation.json").write_text("[]")
    (folder / "eval" / "odd").mkdir()
    (folder / "eval" / "odd" / "results_eval_knn.json").write_text("{}")
    with (folder / "training_metrics.json").open("a") as file:
        file.write('{"iteration": 60')
    history = load_history(folder)
    assert (history.config, history.state, history.done) == (None, None, ITERATIONS)
    named = {Path(problem.path).name for problem in history.problems}
    assert named == {"config.yaml", "state.json", "evaluation.json", "results_eval_knn.json", "training_metrics.json"}


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    """A folder without a log, a path that is not there and a file of another kind are errors that name it."""
    other = tmp_path / "table.csv"
    other.write_text("name,size,accuracy\n1,2,3\n")
    with pytest.raises(RunError, match="no training_metrics"):
        load_history(tmp_path)
    with pytest.raises(LogError, match="no such file"):
        load_history(tmp_path / "absent")
    with pytest.raises(LogError, match="comma-separated"):
        load_history(other)


def test_empty_log_is_a_run_that_did_nothing(tmp_path: Path) -> None:
    """A file that was just created is a run of no iterations, not an error."""
    path = tmp_path / "training_metrics.json"
    path.touch()
    assert load_history(path).done == 0
    assert load_history(tmp_path).done == 0


def test_period_of_a_log() -> None:
    """The median rise between lines, whatever the launches; ten where there is nothing to tell."""
    assert log_period(records_of(range(0, 100, 50), range(0, 300, 50))) == 50
    assert log_period(make_records(simulate(0))) == 10
    assert log_period([]) == 10


def test_log_of_a_run_is_called_after_its_folder(tmp_path: Path) -> None:
    """Every run's log has the same name: of two that are compared, each bears its folder's beside it."""
    folder = write_run(simulate(1), tmp_path / "seed-1")
    assert load_history(folder / "training_metrics.json").name == "seed-1/training_metrics.json"
    assert load_history(shutil.copy(folder / "log.txt", tmp_path / "mine.txt")).name == "mine.txt"
