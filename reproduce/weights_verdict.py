"""The evaluation of a row's released weights in, what it says of the published numbers out; as JSON too.

Every version of every published number is held against the measured one, to the margin that the row fixed for k-NN.
Where sources disagree about images of another size, only those of the size that was measured are compared.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reproduce.json_text import render_json
from reproduce.spec import Metric, Spec

Outcome = Literal["reproduced", "consistent", "differs", "no reference"]
State = Literal["agrees", "differs", "other size", "not measured"]

PX = re.compile(r"(\d+) px")
PRIMARY_K = "10"  # as for runs: no source states its k
EXIT_CODES: dict[Outcome, int] = {"reproduced": 0, "consistent": 0, "differs": 1, "no reference": 3}


@dataclass(frozen=True)
class EvaluatedFile:
    """A file that was evaluated. `status` is what its sources say of it; `known`: its hash was stated beforehand."""

    name: str
    url: str | None
    sha256: str
    known: bool
    status: str


@dataclass(frozen=True)
class Comparison:
    """One published value beside the measured one, in `unit`. `target`: it is the value that the row trusts."""

    metric: str
    label: str
    unit: str
    published: float
    sources: str
    condition: str | None
    target: bool
    mine: float | None
    difference: float | None
    state: State


@dataclass(frozen=True)
class WeightsVerdict:
    """How a row's released weights stand. `px` is the size of the images; `measured` maps a label to percent."""

    row: str
    version: int
    px: int
    outcome: Outcome
    sentence: str
    files: tuple[EvaluatedFile, ...]
    checkpoint_sha256: str
    dataset: str
    test_images: int
    measured: Mapping[str, float]
    how: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    margin_points: float
    problems: tuple[str, ...]
    exit_code: int

    def to_json(self) -> str:
        """The text of `reports/ROW.weights-PX.json`; the same verdict gives the same bytes."""
        return render_json(dataclasses.asdict(self)) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "WeightsVerdict":
        """The verdict that `to_json` wrote. Raises ValueError where the text is not one."""
        try:
            content: dict[str, Any] = json.loads(text)
            content["files"] = tuple(EvaluatedFile(**file) for file in content["files"])
            content["comparisons"] = tuple(Comparison(**item) for item in content["comparisons"])
            content |= {key: tuple(content[key]) for key in ("how", "problems")}
            return cls(**content)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a verdict on weights: {error}") from error


def judge_weights(
    spec: Spec,
    evaluation: Mapping[str, Any],
    *,
    files: tuple[EvaluatedFile, ...],
    listed_px: int | None,
    grid_px: int | None,
) -> WeightsVerdict:
    """Hold an `evaluation.json` against everything that was published of the row.

    `listed_px` is the size that the row's sources give for the weights, `grid_px` the one that the file was found to
    have, None where it was not looked at.
    """
    px, margin = int(evaluation["protocol"]["px"]), spec.margins.knn_points
    mine = _measured(evaluation)
    comparisons = tuple(
        comparison
        for metric in spec.metrics
        if metric.name in ("knn_top1", "linear_top1")
        for comparison in _compare(metric, mine=mine.get(metric.name), px=px, margin=margin)
    )
    outcome = decide_weights(comparisons)
    return WeightsVerdict(
        row=spec.row,
        version=spec.version,
        px=px,
        outcome=outcome,
        sentence=_say(outcome, comparisons, px=px, margin=margin),
        files=files,
        checkpoint_sha256=evaluation["checkpoint_sha256"],
        dataset=evaluation["protocol"]["dataset"],
        test_images=evaluation["protocol"]["test_images"],
        measured=_all_measured(evaluation),
        how=tuple(_say_how(evaluation)),
        comparisons=comparisons,
        margin_points=margin,
        problems=_problems(evaluation, files=files, listed_px=listed_px, grid_px=grid_px),
        exit_code=EXIT_CODES[outcome],
    )


def decide_weights(comparisons: tuple[Comparison, ...]) -> Outcome:
    """What the comparable values say: of a metric the trusted one decides; where none is trusted, all do.

    Without a trusted value, agreement with some but not all versions is consistent, and shows which are wrong.
    """
    states: list[Outcome] = []
    for metric in dict.fromkeys(item.metric for item in comparisons):
        own = [item for item in comparisons if item.metric == metric and item.difference is not None]
        deciding = [item for item in own if item.target] or own
        if deciding:
            agreeing = sum(item.state == "agrees" for item in deciding)
            some: Outcome = "consistent" if agreeing else "differs"
            states.append("reproduced" if agreeing == len(deciding) else some)
    order: tuple[Outcome, ...] = ("differs", "consistent", "reproduced")
    return next((outcome for outcome in order if outcome in states), "no reference")


def verdict_path(row: str, *, px: int, root: Path) -> Path:
    """Where the verdict on a row's weights lies, for one size of images."""
    return root / "reports" / f"{row}.weights-{px}.json"


def load_weights_verdicts(row: str, *, root: Path) -> tuple[WeightsVerdict, ...]:
    """The verdicts on a row's weights that were written, smallest images first. Raises ValueError on a damaged one."""
    paths = sorted((root / "reports").glob(f"{row}.weights-*.json"))
    return tuple(sorted((WeightsVerdict.from_json(path.read_text()) for path in paths), key=lambda one: one.px))


def _problems(
    evaluation: Mapping[str, Any], *, files: tuple[EvaluatedFile, ...], listed_px: int | None, grid_px: int | None
) -> tuple[str, ...]:
    """What a reader must know before trusting the numbers."""
    problems = [f"{file.name}: {file.status}" for file in files if file.status != "published"]
    if listed_px is not None and grid_px is not None and listed_px != grid_px:
        problems.append(f"the weights are listed for {listed_px} px, and their positions are made for {grid_px} px")
    if evaluation["unreadable"]:
        problems.append(f"{len(evaluation['unreadable'])} images could not be read and were left out")
    return tuple(problems)


def _compare(metric: Metric, *, mine: float | None, px: int, margin: float) -> list[Comparison]:
    """Every number that was published of a metric, beside the measured one where it is of images of that size."""
    found = []
    for item in metric.values:
        if isinstance(item.value, bool) or not isinstance(item.value, (int, float)):
            continue
        fits = _is_of_size(item.condition, px=px)
        difference = mine - item.value if mine is not None and fits else None
        state: State = "agrees" if difference is not None and abs(difference) <= margin else "differs"
        if difference is None:
            state = "not measured" if mine is None else "other size"
        found.append(
            Comparison(
                metric=metric.name,
                label=metric.label,
                unit=metric.unit,
                published=float(item.value),
                sources=", ".join(map(str, item.sources)),
                condition=item.condition,
                target=fits and item.value == metric.target and _is_of_size(metric.condition, px=px),
                mine=mine if fits else None,
                difference=difference,
                state=state,
            )
        )
    return found


def _is_of_size(condition: str | None, *, px: int) -> bool:
    """Whether a condition names this size of images, or none."""
    sizes = [int(size) for size in PX.findall(condition or "")]
    return not sizes or px in sizes


def _measured(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The measured value of each metric."""
    found = {}
    knn = evaluation.get("knn") or {}
    if knn:
        found["knn_top1"] = float(knn.get(PRIMARY_K, knn[min(knn, key=int)]))
    if "linear" in evaluation:
        found["linear_top1"] = float(evaluation["linear"]["top_1"])
    return found


def _all_measured(evaluation: Mapping[str, Any]) -> dict[str, float]:
    found = {f"k-NN, k = {k}": float(value) for k, value in (evaluation.get("knn") or {}).items()}
    if "linear" in evaluation:
        found["linear probe"] = float(evaluation["linear"]["top_1"])
    if "logreg" in evaluation:
        found["logistic regression"] = float(evaluation["logreg"]["top_1"])
    return found


def _say_how(evaluation: Mapping[str, Any]) -> list[str]:
    """The protocol, in sentences."""
    protocol = evaluation["protocol"]
    said = [
        f"k-NN: cosine similarity, temperature {protocol['temperature']:g}, {protocol['train_images']:,} train images; "
        f"no source states its k, and k = {PRIMARY_K} is compared."
    ]
    if "linear" in evaluation:
        linear = evaluation["linear"]
        said.append(
            f"Linear probe: {linear['iterations']:,} iterations at a batch of {linear['batch']:,} on "
            f"{linear['trained_on']}; best of its grid by {linear['chosen_by']}: {linear['classifier']}."
        )
    return said


def _say(outcome: Outcome, comparisons: tuple[Comparison, ...], *, px: int, margin: float) -> str:
    """What was found, in one or two sentences with their numbers."""
    compared = [item for item in comparisons if item.difference is not None]
    if not compared:
        return f"No number was published for images of {px} px that could be compared."
    parts = []
    for metric in dict.fromkeys(item.metric for item in compared):
        own = [item for item in compared if item.metric == metric]
        agreeing = [item for item in own if item.state == "agrees"]
        targets = [item for item in own if item.target]
        text = f"{own[0].label}: {own[0].mine:.2f} {own[0].unit} at {px} px, within {margin:g} points of "
        text += f"{len(agreeing)} of {len(own)} published values"
        if targets:
            text += f", {targets[0].difference:+.2f} from the trusted one, {targets[0].published:g}"
        parts.append(text + ".")
    return " ".join(parts)
