"""Checks and results in, what they say together out: the outcome, one plain sentence, what could not be concluded."""

import math
from dataclasses import dataclass
from typing import Literal

from reproduce.bands import LOG_TIME_CORRELATION
from reproduce.checks import Check, MetricResult, plural, the_references
from reproduce.layers.losses import LossBands, detectable_shares, shortest_log
from reproduce.layers.results import KNN
from reproduce.lineage import POINT, History, count_cells, say_when

Outcome = Literal["reproduced", "consistent", "better", "worse", "failed", "on track", "variant", "no reference"]

SHORT = 0.05  # of a run: references that end so much earlier leave a part of it uncompared
FEW = 5  # reference runs: with fewer, a band is so wide that it says little
CERTAIN = ("L0", "L1", "L2", "L3")  # layers that a deviation of the training's own randomness does not reach


@dataclass(frozen=True)
class Grounds:
    """What an outcome rests on. `progress` is the share of the recipe that is done, None where that is not known.

    twin: the reference run that this one repeats number for number, or None.
    """

    mine: History
    references: tuple[History, ...]
    checks: tuple[Check, ...]
    metrics: tuple[MetricResult, ...]
    bands: LossBands | None
    progress: float | None
    twin: History | None

    @property
    def knn(self) -> MetricResult | None:
        return next((result for result in self.metrics if result.name == KNN), None)

    @property
    def untrained(self) -> bool:
        """Whether k-NN, which decides, can be compared of the untrained network alone."""
        return self.knn is not None and not self.knn.iteration

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.state == "fail")

    @property
    def finished(self) -> bool:
        return self.progress is not None and self.progress >= 1

    @property
    def shorter(self) -> tuple[History, ...]:
        """The runs that it is compared with and that end so early that they leave a part of it uncompared."""
        runs = self.bands.runs if self.bands is not None else self.references
        return tuple(run for run in runs if run.lineage.records and run.done < (1 - SHORT) * self.mine.done)

    @property
    def reach(self) -> int:
        """How many of its iterations were held against all others."""
        return min((run.done for run in self.shorter), default=self.mine.done)

    @property
    def ahead(self) -> bool:
        """Whether it went on where others stopped, by logs that decide: k-NN may be known of its end without them.

        Over an axis of cells a run may be over and shorter, because it was faster.
        """
        stopped = any(run.unit != "cell" or run.total != run.done for run in self.shorter)
        return stopped and (self.knn is None or not _at_the_end(self))

    @property
    def compared(self) -> bool:
        """Whether anything that the run did was held against another run or a published value."""
        own = ("schedule-", "recipe-")
        against = [check for check in self.checks if check.layer != "L3" and not check.id.startswith(own)]
        return any(check.state != "unknown" for check in against) or any(m.state != "unknown" for m in self.metrics)

    @property
    def ground(self) -> str:
        return the_references(len(self.references))


def decide(grounds: Grounds) -> Outcome:
    """The outcome. A run of another recipe is a variant whatever it shows; what no randomness explains is a failure.

    k-NN decides, loss diagnoses: a significant k-NN difference names the outcome before a loss curve does. Equality
    is claimed of a finished run alone, and with fewer than three reference runs only of one that repeats another. A
    finished run is on track as far as its references go, where that is not to its end.
    """
    knn = grounds.knn
    if any(check.layer == "L0" and check.state == "warn" for check in grounds.checks):
        return "variant"
    if any(check.layer in CERTAIN for check in grounds.failed):
        return "failed"
    if knn is not None and knn.state in ("better", "worse"):
        return "better" if knn.state == "better" else "worse"
    if grounds.failed:
        return "failed"
    if not grounds.compared or not grounds.mine.lineage.records:
        return "no reference"
    if not grounds.finished:
        return "on track"
    if grounds.twin is not None:
        return "reproduced"
    deciding = (knn,) if knn is not None else grounds.metrics
    if not deciding or all(result.state == "unknown" for result in deciding):
        return "no reference"
    if grounds.ahead:
        return "on track"
    warned = any(check.state == "warn" for check in grounds.checks)
    equal = all(result.state == "reproduced" for result in deciding) and not warned and _at_the_end(grounds)
    enough = len(grounds.references) >= 3 or (knn is not None and knn.target is not None)
    return "reproduced" if equal and enough else "consistent"


def exit_code(outcome: Outcome, grounds: Grounds) -> int:
    """0: nothing contradicts the row. 1: something does. 3: not enough evidence for either."""
    if outcome == "variant":
        deviates = grounds.failed or (grounds.knn is not None and grounds.knn.state in ("better", "worse"))
        enough = grounds.compared and not (grounds.finished and grounds.untrained)
        return 1 if deviates else 0 if enough else 3
    return {"better": 1, "worse": 1, "failed": 1, "no reference": 3}.get(outcome, 0)


def say_outcome(outcome: Outcome, grounds: Grounds) -> str:
    """What the outcome rests on, in one or two plain sentences with their numbers; the outcome's word stands before."""
    if outcome == "failed":
        return f"It fails at {_say_failures(grounds)}"
    if outcome == "no reference":
        return _say_nothing_compared(grounds)
    if outcome == "on track":
        return _say_on_track(grounds)
    if outcome == "variant":
        differs = " ".join(check.finding for check in grounds.checks if check.layer == "L0" and check.state == "warn")
        rest = f"It fails at {_say_failures(grounds)}" if grounds.failed else f"No check fails. {_say_results(grounds)}"
        return f"{differs} {rest.strip()}{_say_untrained(grounds)}".strip()
    if outcome in ("better", "worse"):
        return f"{_say_results(grounds)} {_say_parting(grounds)}".strip()
    if grounds.twin is not None:
        return f"Every loss of every line is that of {grounds.twin.name}, digit for digit."
    return f"No check fails. {_say_results(grounds)}{'' if outcome == 'reproduced' else _say_not_shown(grounds)}"


def say_open_questions(grounds: Grounds) -> tuple[str, ...]:
    """What the evidence does not settle, each in a sentence."""
    return tuple(
        sentence
        for sentence in (
            *_say_references(grounds),
            _say_reach(grounds),
            *_say_detectable(grounds),
            _say_forecast(grounds),
            _say_twin(grounds),
            grounds.bands.left_out if grounds.bands else "",
            _say_knn(grounds),
            *(result.note for result in grounds.metrics if result.name == KNN),
            *(f"{check.title}: {_lower(check.finding)}" for check in grounds.checks if check.state == "unknown"),
        )
        if sentence
    )


def _say_progress(grounds: Grounds) -> str:
    total = grounds.mine.total or max((run.total or 0 for run in grounds.references), default=0)
    share = 100 * (grounds.progress or 0) * grounds.reach / max(grounds.mine.done, 1)
    where = ", where the logs that it is compared with end" if grounds.shorter else ""
    if grounds.mine.unit == "cell":
        return f"At {share:.3g} % of the axis{where}"
    return f"At {share:.3g} % ({grounds.reach:,}{f' of {total:,}' if total else ''} iterations{where})"


def _say_on_track(grounds: Grounds) -> str:
    """No check fails so far; but a k-NN accuracy that is outside its margin is said, whether or not it is chance."""
    knn = grounds.knn
    outside = knn is not None and knn.iteration and knn.low is not None and _where(knn) != "lies inside"
    if not outside or knn is None or knn.difference is None or abs(knn.difference) <= (knn.margin or 0):
        return f"{_say_progress(grounds)}, nothing so far differs from {grounds.ground}."
    return f"{_say_progress(grounds)}, no check fails. {_say_results(grounds)}{_say_not_shown(grounds)}"


def _say_not_shown(grounds: Grounds) -> str:
    """Of a result outside its margin, too, where it is not significant: chance alone may have put it there."""
    knn = grounds.knn
    if knn is None or knn.low is None or knn.detectable is None or _where(knn) != "lies outside":
        return " Equality is not shown."
    return (
        f" Neither equality nor a difference is shown: the interval errs once in ten, while a difference counts from "
        f"{knn.detectable:.2g} points on, which chance hardly ever reaches."
    )


def _say_parting(grounds: Grounds) -> str:
    """Whether the losses show what k-NN shows, and from where on."""
    if grounds.bands is None:
        return ""
    parted = [check.iteration for check in grounds.failed if check.layer == "L4" and check.iteration is not None]
    return f"The losses part by {grounds.mine.unit} {min(parted):,}." if parted else "The losses do not show it."


def _say_failures(grounds: Grounds) -> str:
    first = min(grounds.failed, key=lambda check: check.layer)
    others = [check.title for check in grounds.failed if check is not first]
    more = f" Failed as well: {', '.join(others[:4])}{' and others' if len(others) > 4 else ''}." if others else ""
    return f"{first.layer}: {first.finding}{more}"


def _say_results(grounds: Grounds) -> str:
    """The deciding result: k-NN, or the losses where there is no k-NN."""
    knn = grounds.knn
    if grounds.untrained:
        knn = None  # random weights are no result
    if knn is not None and knn.mine is not None and knn.difference is not None and knn.margin is not None:
        side = "above" if knn.difference >= 0 else "below"
        basis = "the published value" if knn.basis == "published value" else f"the {knn.basis}"
        return (
            f"k-NN top-1 is {knn.mine:.2f} % {say_when(knn.iteration or 0, grounds.mine)}, "
            f"{abs(knn.difference):.2f} points {side} {basis}; the 90 % interval of the difference, {knn.low:+.2f} to "
            f"{knn.high:+.2f}, {_where(knn)} the margin of ±{knn.margin:g}."
        )
    losses = [result for result in grounds.metrics if result.margin]
    if not losses:
        return ""
    inside = sum(result.state == "reproduced" for result in losses)
    noun = "loss lies" if len(losses) == 1 else "losses lie"
    return f"Over the last octave {inside} of {len(losses)} {noun} surely within the margin around {grounds.ground}."


def _where(result: MetricResult) -> str:
    assert result.low is not None
    assert result.high is not None
    assert result.margin is not None
    if -result.margin < result.low and result.high < result.margin:
        return "lies inside"
    return "reaches beyond" if result.low < result.margin and result.high > -result.margin else "lies outside"


def _say_nothing_compared(grounds: Grounds) -> str:
    passed = sum(check.state == "pass" for check in grounds.checks)
    alone = f" What can be judged alone passes: {plural(passed, 'check')}." if passed else ""
    if not grounds.mine.lineage.records:
        return "Nothing to judge: the log has no iteration lines."
    if grounds.references:
        nothing = f"Nothing that decides could be compared with {grounds.ground}."
        return f"{nothing}{_say_too_short(grounds)}{_say_untrained(grounds)}{alone}"
    return f"Nothing to hold the run against: no reference run and no published value.{alone}"


def _say_too_short(grounds: Grounds) -> str:
    """How long the logs must be for curves to be compared, where the shortest is not."""
    runs = (grounds.mine, *grounds.references)
    if not all(run.lineage.records for run in runs):
        return ""
    needed, shortest = shortest_log(grounds.references, bands=grounds.bands), min(runs, key=lambda run: run.done)
    if shortest.done >= needed:
        return ""
    return f" Curves take {plural(needed, shortest.unit)} of every log; {shortest.name} has {shortest.done:,}."


def _say_untrained(grounds: Grounds) -> str:
    """Of a run that is over: an unfinished one may yet come to an evaluation."""
    if not grounds.untrained or not grounds.finished:
        return ""
    return " Of k-NN, only the untrained network's can be compared, which says nothing of the training."


def _say_references(grounds: Grounds) -> list[str]:
    count = len(grounds.references)
    if not count:
        return ["Whether the training took the published course: there is no log to compare with."]
    if count < 3:
        return [f"How far runs of this recipe lie apart: {grounds.ground} cannot show it, and it is estimated."]
    return [f"Small differences: {count} reference runs make for wide limits."] if count < FEW else []


def _say_reach(grounds: Grounds) -> str:
    """Where the references end before this run does, that the rest of it was held against nothing."""
    if not grounds.shorter:
        return ""
    return (
        f"What came after {grounds.mine.unit} {grounds.reach:,}: the logs that this run is compared with end there, "
        f"and it did {grounds.mine.done:,}."
    )


def _say_detectable(grounds: Grounds) -> list[str]:
    found = []
    knn = grounds.knn
    if knn is not None and knn.iteration and knn.detectable is not None:
        found.append(
            f"A k-NN difference below {knn.detectable:.2g} points would not have been seen: a difference counts only "
            "where chance hardly ever reaches, farther out than the ends of the 90 % interval, which errs once in ten."
        )
    shares = detectable_shares(grounds.bands) if grounds.bands else {}
    if shares:
        listed = ", ".join(f"{float(f'{100 * share:.2g}'):g} % of {metric}" for metric, share in shares.items())
        found.append(f"A loss that differs by less at the last compared block would not have been seen: {listed}.")
    return found


def _say_knn(grounds: Grounds) -> str:
    if grounds.knn is None or grounds.untrained:
        return "How good the features are: no k-NN accuracy was compared."
    if grounds.finished and not _at_the_end(grounds):
        return "The final k-NN accuracy: the run's end was not evaluated."
    return ""


def _say_forecast(grounds: Grounds) -> str:
    """How much of a deviation seen now is expected at the end: the correlation of wander in log time."""
    if grounds.finished or not grounds.progress or not grounds.mine.lineage.records:
        return ""
    share = math.exp(math.log(grounds.progress) / LOG_TIME_CORRELATION)
    return (
        "The rest of the run: its first part can prove it off, and never right; of a deviation seen now, "
        f"{100 * share:.0f} % is to be expected at the end."
    )


def _say_twin(grounds: Grounds) -> str:
    twin = grounds.twin
    return f"How far another seed may fall: this run repeats {twin.name} number for number." if twin else ""


def _at_the_end(grounds: Grounds) -> bool:
    """Whether the k-NN result, where there is one, is of the run's last iteration; of cells, of its last cell."""
    if grounds.knn is None:
        return True
    at = grounds.knn.iteration or 0
    if grounds.mine.unit == "cell":
        return at * POINT * count_cells((grounds.mine, *grounds.references)) >= grounds.mine.done - 1
    return at >= grounds.mine.done


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
