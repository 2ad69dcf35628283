"""Records of one run in, its lineage out: the launches put together, the last branch wins; and the run's history."""

import dataclasses
import itertools
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from franca.config import ConfigError, load_config, to_mapping
from reproduce.errors import LogError, RunError
from reproduce.log_head import Head
from reproduce.logs import TEXT, ParsedLog, Record, parse_knn, parse_log
from reproduce.problems import Problem
from reproduce.records import Unit

LaunchKind = Literal["start", "resume", "restart", "gap"]

FOLDER_LOGS = ("training_metrics.json", "log.txt", "logs/log.txt", "summary.csv")  # dinov2 and dinov3 write logs/
POINT = 1e-3  # of an axis of cells: evaluations closer than that are of one point
LOG_PERIOD = 10  # dinov2 train.py: iterations between two lines, where a log is too short to tell
EVALUATION = re.compile(r"training_(\d{1,15})")


@dataclass(frozen=True)
class Launch:
    """One start of the process, by the lines and iterations that it logged.

    start: the first. resume: goes on at or before the last iteration. restart: from 0 again. gap: lines are missing.
    """

    first_line: int
    last_line: int
    start: int
    end: int
    kind: LaunchKind


@dataclass(frozen=True)
class Lineage:
    """`launches` in the order of the file. `records` rise in iteration: the branch that counts.

    `ghosts` are the records that a later launch overwrote, or of a restart that did not get as far as what it left.
    """

    launches: tuple[Launch, ...]
    records: tuple[Record, ...]
    ghosts: tuple[Record, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class History:
    """What one run left behind. `name` is how reports call it.

    lineage: from training_metrics.json where there is one, else from log.txt. `log_path` is the file that its line
    numbers refer to, None where there is none.
    text: the lineage of log.txt, where the JSON lines hold no block means and its averages are needed, else None.
    knn: iterations done -> k -> top-1 accuracy in percent; of cells, `POINT`s of the axis -> the same.
    config: config.yaml of the run (a `franca.config.TrainConfig` as nested mappings) or None; head: what its log says
    about the newest launch that counts. state: state.json. total: the iterations of the whole recipe, where known.
    test_images: how many images the k-NN accuracies are over, where evaluation.json says so. unit: what `iteration` of
    the records counts. data: what environment.json says of the training images, by
    `franca.data.datasets.describe_dataset`, or None.
    """

    name: str
    path: Path
    log_path: Path | None
    dialect: str
    lineage: Lineage
    text: Lineage | None
    knn: Mapping[int, Mapping[int, float]]
    config: Mapping[str, Any] | None
    head: Head
    state: Mapping[str, Any] | None
    seed: int | None
    total: int | None
    problems: tuple[Problem, ...]
    test_images: int | None = None
    unit: Unit = "iteration"
    data: Mapping[str, Any] | None = None

    @property
    def done(self) -> int:
        """Iterations done, by the log; by state.json, where the newest of them are not in the log yet."""
        records = self.lineage.records
        if not records:
            return 0
        logged = records[-1].iteration + 1
        said = (self.state or {}).get("iteration")
        rise = records[-1].iteration - records[-2].iteration if len(records) > 1 else LOG_PERIOD
        return said if isinstance(said, int) and logged <= said < logged + rise else logged


def say_when(done: int, run: History) -> str:
    """`after 600 iterations`, where an evaluation was made; of a run in cells, `at 78 % of the axis`."""
    if run.unit == "cell":
        return f"at {100 * POINT * done:.3g} % of the axis"
    return f"after {done:,} {run.unit}{'' if done == 1 else 's'}"


def count_cells(runs: Sequence[History]) -> int:
    """How many cells the axis has that runs in cells share: it ends where the longest does, or the recipe."""
    return max(run.total or run.done for run in runs)


def make_lineage(records: Sequence[Record], *, path: str = "") -> Lineage:
    """Put the launches of a log together.

    A launch that resumes overwrites what it repeats. One that restarts from 0 replaces what was there as soon as it
    gets as far; until then it is set aside. Linear in the number of records.
    """
    step = log_period(records)
    launches, problems, ghosts = list[Launch](), list[Problem](), list[Record]()
    current, other = list[Record](), list[Record]()  # the branch being written, and the one that a restart left
    segments, repeats = _segments(records, step)
    for segment in segments:
        start = segment[0].iteration
        kind: LaunchKind = "start"
        if current and start == 0:
            kind = "restart"
            loser, other = sorted((other, current), key=_reach)
            ghosts += loser
            current = []
        elif current:
            if other and start > _reach(current) + step:
                ghosts += current
                current, other = other, []
            kind = "gap" if start > _reach(current) + step else "resume"
            while current and current[-1].iteration >= start:
                ghosts.append(current.pop())
        launches.append(Launch(segment[0].line, segment[-1].line, start, segment[-1].iteration, kind))
        problems += _launch_problems(launches[-1], reach=_reach(other if kind == "restart" else current), path=path)
        current += segment
    loser, winner = sorted((other, current), key=_reach)
    ghosts = sorted(ghosts + loser + repeats, key=lambda record: record.line)
    return Lineage(tuple(launches), tuple(winner), tuple(ghosts), tuple(problems))


def log_period(records: Sequence[Record]) -> int:
    """Iterations between two lines: the median of the rises."""
    rises = [after.iteration - before.iteration for before, after in itertools.pairwise(records)]
    rises = [rise for rise in rises if rise > 0]
    return int(statistics.median_low(rises)) if rises else LOG_PERIOD


def load_history(path: Path) -> History:
    """Read a run folder, a published copy of one, or a single log file.

    Raises `RunError` where a folder holds no log and `LogError` where a file is of another kind or unreadable.
    """
    if path.is_dir():
        return _load_folder(path)
    if not path.exists():
        raise LogError("no such file or folder", path=path)
    parsed = _parse_known(path)
    return _make_history(path, parsed, text=None, knn={}, config=None, state=None, problems=())


def folder_logs(folder: Path) -> list[Path]:
    """The logs of a run folder, the one that counts first. Raises `RunError` where there is none."""
    found = [path for name in FOLDER_LOGS if (path := folder / name).is_file()]
    if not found:
        mend = "name a run folder, a folder of logfiles/, or a log file"
        raise RunError("no training_metrics.json, log.txt, logs/log.txt or summary.csv here", path=folder, mend=mend)
    return found


def _segments(records: Sequence[Record], step: int) -> tuple[list[list[Record]], list[Record]]:
    """Records cut wherever the iteration does not rise, lines are missing, or the log says that a process started.

    Also the records that repeat the one before them: one line written twice, by two handlers of the same logger. One
    missing line alone is no cut: it may be one that could not be read.
    """
    segments, repeats = list[list[Record]](), list[Record]()
    rise = step
    for record in records:
        before = segments[-1][-1] if segments else None
        if before and (record.iteration, record.values) == (before.iteration, before.values):
            repeats.append(record)
            continue
        last_rise, rise = rise, record.iteration - before.iteration if before else step
        if before is None or rise <= 0 or rise > 2 * max(last_rise, step) or record.launch != before.launch:
            segments.append([])
            rise = step
        segments[-1].append(record)
    return segments, repeats


def _reach(branch: list[Record]) -> int:
    return branch[-1].iteration if branch else -1


def _launch_problems(launch: Launch, *, reach: int, path: str) -> list[Problem]:
    """What a reader must know of a launch that did not simply go on."""
    if launch.kind == "gap":
        return [Problem(path, launch.first_line, f"no lines between iterations {reach:,} and {launch.start:,}")]
    if launch.kind == "restart" and launch.end < reach:
        got = f"restarted from 0 and got to iteration {launch.end:,}; the launch before it, to {reach:,}, is kept"
        return [Problem(path, launch.first_line, got)]
    if launch.kind == "restart":
        return [
            Problem(path, launch.first_line, f"restarted from 0; what was logged to iteration {reach:,} is dropped")
        ]
    return []


def _load_folder(folder: Path) -> History:
    found = folder_logs(folder)
    parsed = _parse_known(found[0])
    has_means = any(key.startswith("mean_") for record in parsed.records[:1] for key in record.values)
    text = _parse_known(found[1]) if len(found) > 1 and not has_means and parsed.dialect not in TEXT else None
    text = text if text is not None and text.dialect in TEXT else None
    knn, knn_problems = _load_knn(folder)
    config, config_problems = _load_config(folder / "config.yaml")
    state, state_problems = _load_json(folder / "state.json")
    evaluation, evaluation_problems = _load_json(folder / "evaluation.json")
    environment, environment_problems = _load_json(folder / "environment.json")
    for done, accuracies in _final_evaluation(evaluation or {}).items():
        knn.setdefault(done, accuracies)
    problems = (*knn_problems, *config_problems, *state_problems, *evaluation_problems, *environment_problems)
    history = _make_history(folder, parsed, text=text, knn=knn, config=config, state=state, problems=problems)
    protocol = (evaluation or {}).get("protocol")
    test_images = protocol.get("test_images") if isinstance(protocol, Mapping) else None
    test_images = test_images if isinstance(test_images, int) else None
    return dataclasses.replace(history, test_images=test_images, data=_counted_data(environment or {}))


def _make_history(
    path: Path,
    parsed: ParsedLog,
    *,
    text: ParsedLog | None,
    knn: Mapping[int, Mapping[int, float]],
    config: Mapping[str, Any] | None,
    state: Mapping[str, Any] | None,
    problems: tuple[Problem, ...],
) -> History:
    lineage = make_lineage(parsed.records, path=str(parsed.path))
    counted = [launch for launch in lineage.launches if launch.last_line >= lineage.records[-1].line]
    heads = (text or parsed).heads
    if text is None and counted:
        heads = tuple(head for head in heads if (head.config_line or 0) <= counted[0].first_line)
    head = heads[-1] if heads else Head()
    logged_total = next((record.total for record in (text or parsed).records[-1:]), None)
    train = (head.config or {}).get("train")
    logged_seed = train.get("seed") if isinstance(train, Mapping) else None
    return History(
        name=f"{path.absolute().parent.name}/{path.name}" if path.name in FOLDER_LOGS else path.name,
        path=path,
        log_path=parsed.path,
        dialect=parsed.dialect,
        lineage=lineage,
        text=make_lineage(text.records, path=str(text.path)) if text else None,
        knn=knn,
        config=config,
        head=head,
        state=state,
        seed=config["seed"] if config else logged_seed if isinstance(logged_seed, int) else None,
        total=config["recipe"]["iterations"] if config else logged_total,
        problems=(*problems, *parsed.problems, *lineage.problems),
        unit=parsed.unit,
    )


def _parse_known(path: Path) -> ParsedLog:
    """A log of a known dialect; an empty file is a log without records. Raises `LogError` on a file of another kind."""
    parsed = parse_log(path)
    if parsed.dialect == "unknown" and path.stat().st_size:
        raise LogError(parsed.problems[0].message, path=path, mend="name a training log, or a run folder")
    return parsed


def _load_knn(folder: Path) -> tuple[dict[int, dict[int, float]], list[Problem]]:
    """The k-NN evaluations inside a run: `eval/untrained` is at 0 iterations done, `eval/training_599` at 600."""
    points = dict[int, dict[int, float]]()
    problems = list[Problem]()
    for path in sorted(folder.glob("eval/*/results_eval_knn.json")):
        match = EVALUATION.fullmatch(path.parent.name)
        if match is None and path.parent.name != "untrained":
            problems.append(
                Problem(str(path), None, "its folder names no iteration: training_<iteration> or untrained")
            )
            continue
        accuracies, doubts = parse_knn(path)
        problems += doubts
        if accuracies:
            points[int(match[1]) + 1 if match else 0] = accuracies
    return dict(sorted(points.items())), problems


def _final_evaluation(evaluation: Mapping[str, Any]) -> dict[int, dict[int, float]]:
    """The k-NN point that evaluation.json holds; none where it holds none."""
    done, accuracies = evaluation.get("iteration"), evaluation.get("knn")
    if not isinstance(done, int) or not isinstance(accuracies, Mapping):
        return {}
    numbers = {int(k): float(value) for k, value in accuracies.items() if k.isdecimal() and isinstance(value, float)}
    return {done: numbers} if numbers else {}


def _counted_data(environment: Mapping[str, Any]) -> Mapping[str, Any] | None:
    data = environment.get("data")
    if not isinstance(data, Mapping) or not isinstance(data.get("dataset"), str):
        return None
    return data if all(type(data.get(name)) is int for name in ("images", "classes")) else None


def _load_config(path: Path) -> tuple[Mapping[str, Any] | None, list[Problem]]:
    if not path.is_file():
        return None, []
    try:
        return to_mapping(load_config(path)), []
    except ConfigError as error:
        return None, [Problem(str(path), None, f"no configuration of a run: {error}")]


def _load_json(path: Path) -> tuple[Mapping[str, Any] | None, list[Problem]]:
    if not path.is_file():
        return None, []
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        return None, [Problem(str(path), None, f"not JSON: {error}")]
    return (value, []) if isinstance(value, dict) else (None, [Problem(str(path), None, "not a JSON object")])
