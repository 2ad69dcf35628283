"""How often a verdict is wrong: unchanged seeds and planted faults of the row digits, trained, judged and counted.

    python benchmarks/verdicts.py --train 5       # train at most five more runs, each on one core, then judge
    python benchmarks/verdicts.py                 # judge what was trained; train nothing
    python benchmarks/verdicts.py --keep FILE     # take what a verdicts.json says of published runs and of those gone

Every run goes through `reproduce train`, so what is trained is not trained again and one that was cut off goes on. A
fault is an override, or images that were taken away from under the run; when it is judged, the run claims the row's own
recipe, as a program with that fault would. All but the `SLOW` faults are trained for a tenth of the run: they show
there, or count as not found. Runs are judged at every tenth iteration as `reproduce watch` would have: the first look
at which a check fails is when the fault was found, and an unchanged run that fails at any look is a false alarm. The
published seeds are references, all at once and one at a time; each of them is judged against the others as well.
Written: verdicts.json and verdicts.md in the folder `--to`.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from franca.config import Recipe, to_mapping
from franca.schedules import make_schedules
from reproduce.judging import find_files, load_run_spec
from reproduce.layers.schedules import STREAK, expected_medians, first_streak
from reproduce.lineage import History, load_history, make_lineage
from reproduce.log_head import Head
from reproduce.verdict import Verdict, judge

ROW = "digits"
REFERENCES = "logfiles/digits/seed-*"
UNCHANGED = range(21, 71)
SEEDS = range(101, 104)
STEP, PAIR_STEP = 10, 50  # iterations between two looks, at a run against all references and against one
PERIOD = 10  # and between two lines of a published log
PUBLISHED = "published"
FOUND = ("failed", "worse", "better", "variant")  # what a run that claims the row's recipe must not be
COLUMN_ROWS = ("franca-B-in21k", "franca-L-laion600m", "dinov2-L-in21k")

IMAGES_MISSING = "a tenth of the images missing"
# Imported by Python itself before anything else: scikit-learn's digits without a tenth of those to train on, which are
# all but the 360 whose pixels have the smallest SHA-256.
WITHOUT_A_TENTH = """
import hashlib
import numpy as np
import sklearn.datasets
whole = sklearn.datasets.load_digits
def load_digits():
    bunch = whole()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    order = sorted(range(len(pixels)), key=lambda index: hashlib.sha256(pixels[index].tobytes()).digest())
    kept = np.sort(order[:360] + [index for place, index in enumerate(order[360:]) if place % 10])
    bunch.images, bunch.target = bunch.images[kept], bunch.target[kept]
    return bunch
sklearn.datasets.load_digits = load_digits
"""

FAULTS: dict[str, tuple[str, ...]] = {
    "learning rate × 2": ("optim.base_lr=0.006",),
    "learning rate × 1.1": ("optim.base_lr=0.0033",),
    "learning rate × 1.01": ("optim.base_lr=0.00303",),
    "warm-up of 50 in place of 100": ("optim.warmup_iterations=50",),
    "10 % more iterations": ("iterations=660",),
    "weight decay constant": ("optim.weight_decay_end=0.04",),
    "teacher's momentum constant": ("teacher.momentum_end=0.95",),
    "teacher's temperature warmed up": ("teacher.temperature_end=0.07", "teacher.temperature_warmup_iterations=300"),
    "KoLeo off": ("losses.koleo_weight=0.0",),
    "Sinkhorn with one iteration": ("losses.sinkhorn_iterations=1",),
    "one nesting level dropped": ("heads.nesting=[48,96]",),
    "half of the masks": ("masking.sample_probability=0.25",),
    "mask ratio to 0.4": ("masking.ratio=[0.1,0.4]",),
    "smaller local crops": ("crops.local_scale=[0.2,0.5]",),
    "larger global crops": ("crops.global_scale=[0.9,1.0]",),
    "three local crops": ("crops.local_number=3",),
    IMAGES_MISSING: (),
    "everything blurred": ("augment.blur_probability_global_1=0.9", "augment.blur_probability_local=0.9"),
    "no clipping": ("optim.clip_norm=1000.0",),
    "half of the batch": ("global_batch=32",),
    "layer-wise decay 0.8": ("optim.layerwise_decay=0.8",),
}
# Only curves show these, later than in a tenth of the run.
SLOW = {"Sinkhorn with one iteration", "layer-wise decay 0.8"}


@dataclass(frozen=True)
class Trial:
    """One run to make: `fault` is empty of an unchanged one."""

    fault: str
    seed: int
    overrides: tuple[str, ...]

    @property
    def short(self) -> bool:
        """Whether a tenth of the run is trained."""
        return bool(self.fault) and self.fault not in SLOW


@dataclass(frozen=True)
class Outcome:
    """What the verdicts on a run said, held against `references` runs.

    share: of the run that was needed until at some look a check failed, or the outcome was that the run is worse,
    better or another one's; None where that never was. layer, check: what said it first. effects: of each metric the
    run's difference from the references at the end, and the smallest difference that the verdict says would be seen.
    """

    fault: str
    seed: int
    references: int
    final: str
    layer: str | None
    check: str | None
    share: float | None
    effects: dict[str, tuple[float, float]]

    @property
    def detected(self) -> bool:
        return self.share is not None


def list_trials() -> Iterator[Trial]:
    """Unchanged seeds and faults in turn, so that whatever is trained first says something of both."""
    unchanged = [Trial("", seed, ()) for seed in UNCHANGED]
    faults = [Trial(fault, seed, overrides) for seed in SEEDS for fault, overrides in FAULTS.items()]
    for place in range(max(len(unchanged), len(faults))):
        yield from faults[place : place + 1]
        yield from unchanged[place : place + 1]


def train(trial: Trial) -> None:
    """Train and evaluate one run on one core, or take it up where it was cut off."""
    commands = [("train", "--until", "10%")] if trial.short else [("train",), ("evaluate",)]
    with tempfile.TemporaryDirectory() as planted:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if trial.fault == IMAGES_MISSING:
            (Path(planted) / "sitecustomize.py").write_text(WITHOUT_A_TENTH)
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (planted, environment.get("PYTHONPATH"))))
        for command, *options in commands:
            words = ["nice", "-n", "10", sys.executable, "-m", "reproduce", command, ROW, *trial.overrides]
            subprocess.run([*words, f"seed={trial.seed}", *options], check=False, env=environment)


def load_trial(trial: Trial) -> History | None:
    """The run as it claims to be, an unchanged one; None where it is not finished."""
    spec = load_run_spec(ROW, changes=trial.overrides, seed=trial.seed)
    folder = find_files(spec).folder
    state = folder / "state.json"
    ends = ("finished", "paused") if trial.short else ("finished",)
    if not state.is_file() or json.loads(state.read_text())["state"] not in ends:
        return None
    history = load_history(folder)
    own = load_run_spec(ROW, changes=(), seed=trial.seed)
    config = {**(history.config or {}), "recipe": to_mapping(own.recipe), "fingerprint": own.fingerprint}
    return dataclasses.replace(history, config=config, head=Head(), text=None, total=own.recipe.iterations)


def cut(history: History, done: int) -> History:
    """The run as it stood after `done` iterations."""
    records = [record for record in history.lineage.records if record.iteration < done]
    knn = {at: point for at, point in history.knn.items() if at <= done}
    return dataclasses.replace(history, lineage=make_lineage(records), knn=knn, state=None)


def judge_trial(history: History, references: Sequence[History], *, fault: str, seed: int, step: int = STEP) -> Outcome:
    """Every verdict that watching the run would have given, each `step` iterations, and the last."""
    spec = load_run_spec(ROW, changes=(), seed=None)
    total = spec.recipe.iterations
    layer = check = share = None
    for done in itertools.chain(range(step, history.done, step), (history.done,)):
        verdict = judge(history if done == history.done else cut(history, done), references, spec=spec)
        if share is None and verdict.outcome in FOUND:
            layer, check = _first_reason(verdict)
            share = min(1.0, done / total)
    effects = {
        result.name: (result.difference, result.detectable)
        for result in verdict.metrics
        if result.difference is not None and result.detectable is not None
    }
    return Outcome(fault, seed, len(references), verdict.outcome, layer, check, share, effects)


def _first_reason(verdict: Verdict) -> tuple[str, str]:
    """Layer and name of what made the outcome: a failed check, one that tells of another run, or a result."""
    for check in verdict.checks:
        if check.state == "fail" or (check.layer == "L0" and check.state == "warn"):
            return check.layer, check.id
    return "L5", next(result.name for result in verdict.metrics if result.state in ("worse", "better"))


def clopper_pearson(successes: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934), by bisection of the binomial distribution."""
    tail = (1 - confidence) / 2

    def at_most(count: int, share: float) -> float:
        return sum(math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(count + 1))

    def solve(holds: Any) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return low

    lower = 0.0 if successes == 0 else solve(lambda share: 1 - at_most(successes - 1, share) < tail)
    upper = 1.0 if successes == trials else solve(lambda share: at_most(successes, share) > tail)
    return lower, upper


def schedule_shares(row: str) -> dict[str, float | None]:
    """At which share of a row's run a text log's 4 decimals first show a fault, by the rule of the L2 checks.

    Nothing is trained: what a log prints of a schedule follows from the recipe. None: in no digit of any line.
    """
    recipe = load_run_spec(row, changes=(), seed=None).recipe
    optim, teacher = recipe.optim, recipe.teacher
    changed: dict[str, Recipe] = {
        f"learning rate × {factor:g}": dataclasses.replace(
            recipe, optim=dataclasses.replace(optim, base_lr=factor * optim.base_lr)
        )
        for factor in (2.0, 1.1, 1.01, 0.99)
    }
    for percent in (10, 1, -1):
        iterations = round(recipe.iterations * (1 + percent / 100))
        changed[f"{percent:+} % iterations"] = dataclasses.replace(recipe, iterations=iterations)
    shorter = dataclasses.replace(optim, warmup_iterations=optim.warmup_iterations // 2)
    constant = dataclasses.replace(optim, weight_decay_end=optim.weight_decay_start)
    still = dataclasses.replace(teacher, momentum_end=teacher.momentum_start)
    changed["warm-up halved"] = dataclasses.replace(recipe, optim=shorter)
    changed["weight decay constant"] = dataclasses.replace(recipe, optim=constant)
    changed["teacher's momentum constant"] = dataclasses.replace(recipe, teacher=still)
    return {name: _first_digit(recipe, other) for name, other in changed.items()}


def _first_digit(recipe: Recipe, other: Recipe) -> float | None:
    """The share of `recipe` done when three lines of some column have differed in their printed digits."""
    last = min(recipe.iterations, other.iterations)
    lines = np.arange(PERIOD * 2, last, PERIOD)
    firsts = []
    for column in ("lr", "weight_decay", "momentum", "last_layer_lr"):
        printed = [
            np.round(expected_medians(getattr(make_schedules(each), column)[:last], lines), 4)
            for each in (recipe, other)
        ]
        place = first_streak(np.abs(printed[0] - printed[1]) > 1e-9)
        firsts += [] if place is None else [int(lines[place]) + (STREAK - 1) * PERIOD + 1]
    return min(firsts) / recipe.iterations if firsts else None


def summarize(outcomes: Sequence[Outcome], *, planned: int) -> dict[str, Any]:
    """The counts of runs that were held against several references at once."""
    groups = {
        "new seeds against the published": [item for item in outcomes if not item.fault],
        "each published seed against the others": [item for item in outcomes if item.fault == PUBLISHED],
    }
    faults = {}
    for fault in FAULTS:
        chosen = [item for item in outcomes if item.fault == fault]
        faults[fault] = {
            "runs": len(chosen),
            "detected": sum(item.detected for item in chosen),
            "by half": sum(item.share is not None and item.share <= 0.5 for item in chosen),
            "shares": [item.share for item in chosen],
            "checks": sorted({item.check for item in chosen if item.check}),
        }
    alarms = {name: count_alarms(chosen) for name, chosen in groups.items()}
    return {"planned": planned, "alarms": alarms, "faults": faults, "missed": count_missed(outcomes)}


def summarize_pairs(pairs: Sequence[Outcome]) -> dict[str, Any]:
    """The counts of runs that were held against one reference after another: they are not independent."""
    chosen = {fault: [item for item in pairs if item.fault == fault] for fault in FAULTS}
    return {
        "alarms": count_alarms([item for item in pairs if not item.fault]),
        "faults": {fault: [sum(item.detected for item in items), len(items)] for fault, items in chosen.items()},
        "missed": count_missed(pairs),
    }


def count_alarms(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Unchanged runs that were called off, with the share's 95 % interval and its one-sided bound."""
    runs, wrong = len(outcomes), sum(item.detected for item in outcomes)
    interval = clopper_pearson(wrong, runs) if runs else None
    bound = clopper_pearson(wrong, runs, confidence=0.9)[1] if runs else None
    return {"runs": runs, "alarms": wrong, "interval": interval, "bound": bound}


def count_missed(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Runs whose fault was not found, their results, and those of them whose true effect is below what was printed.

    The true effect of a fault on a result is estimated by the mean over its runs less the mean over unchanged ones; it
    should be smaller than the difference that the verdict said would be seen.
    """
    unchanged = _mean_effects([item for item in outcomes if not item.fault])
    counted = {"runs": 0, "results": 0, "below": 0}
    for fault in FAULTS:
        runs = [item for item in outcomes if item.fault == fault]
        effects = _mean_effects(runs)
        for item in runs:
            if not item.detected:
                counted["runs"] += 1
                counted["results"] += len(item.effects)
                counted["below"] += sum(
                    abs(effects[name] - unchanged.get(name, 0.0)) <= detectable
                    for name, (_, detectable) in item.effects.items()
                )
    return counted


def list_kept(path: Path, *, but: Collection[tuple[str, int]]) -> Iterator[Outcome]:
    """The outcomes in an earlier verdicts.json, except of these faults and seeds."""
    names = {item.name for item in dataclasses.fields(Outcome)}
    for item in json.loads(path.read_text())["outcomes"]:
        if (item["fault"], item["seed"]) not in but:
            yield Outcome(**{name: value for name, value in item.items() if name in names})


def _mean_effects(outcomes: Sequence[Outcome]) -> dict[str, float]:
    names = {name for item in outcomes for name in item.effects}
    return {name: statistics.mean(item.effects[name][0] for item in outcomes if name in item.effects) for name in names}


def render(summary: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    pairs, alarms = summary["one reference"], dict(summary["alarms"])
    alarms["new seeds against one published, then the next"] = pairs["alarms"]
    lines = ["| unchanged runs | judged | false alarms | 95 % interval | 95 % bound |", "|---|---|---|---|---|"]
    for name, row in alarms.items():
        interval = "– | –" if not row["runs"] else "{:.1%} to {:.1%} | {:.1%}".format(*row["interval"], row["bound"])
        lines.append(f"| {name} | {row['runs']} | {row['alarms']} | {interval} |")
    lines += ["", "| fault | runs | found | by half | share of the run needed | by | found with one reference |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for fault, row in summary["faults"].items():
        if not row["runs"]:
            lines.append(f"| {fault} | not run | | | | | |")
            continue
        shares = ", ".join("–" if share is None else f"{share:.1%}" for share in row["shares"])
        alone = "{} of {}".format(*pairs["faults"][fault])
        found = (fault, row["runs"], row["detected"], row["by half"], shares, ", ".join(row["checks"]), alone)
        lines.append(f"| {' | '.join(map(str, found))} |")
    for name, missed in (("all references", summary["missed"]), ("one", pairs["missed"])):
        lines += [
            "",
            f"Against {name}: {missed['runs']} verdicts on runs whose fault was not found; {missed['below']} of their "
            f"{missed['results']} results have a true effect below the detectable difference that was printed.",
        ]
    for row, columns in summary["columns"].items():
        lines += ["", f"| fault in a column of {row} | share of the run until 4 decimals show it |", "|---|---|"]
        lines += [f"| {name} | {'–' if share is None else f'{share:.2%}'} |" for name, share in columns.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=0, help="train at most so many more runs first")
    parser.add_argument("--jobs", type=int, default=1, help="train so many at a time")
    parser.add_argument("--keep", type=Path, help="a verdicts.json: of published runs, and of those gone")
    parser.add_argument("--to", type=Path, default=Path("reports"), help="the folder for the tables")
    options = parser.parse_args()
    trials = list(list_trials())
    missing = [trial for trial in trials if options.train and load_trial(trial) is None]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(train, missing[: options.train]))
    references = [load_history(path) for path in sorted(Path.cwd().glob(REFERENCES))]
    outcomes, pairs = list[Outcome](), list[Outcome]()
    for place, mine in enumerate(references if options.keep is None else ()):
        others = references[:place] + references[place + 1 :]
        outcomes.append(judge_trial(mine, others, fault=PUBLISHED, seed=mine.seed or 0))
        print(outcomes[-1], flush=True)
    for trial in trials:
        history = load_trial(trial)
        if history is not None:
            outcomes.append(judge_trial(history, references, fault=trial.fault, seed=trial.seed))
            print(outcomes[-1], flush=True)
            pairs += [
                judge_trial(history, [one], fault=trial.fault, seed=trial.seed, step=PAIR_STEP) for one in references
            ]
    outcomes += list_kept(options.keep, but={(item.fault, item.seed) for item in outcomes}) if options.keep else []
    summary = summarize(outcomes, planned=len(trials)) | {
        "one reference": summarize_pairs(pairs),
        "columns": {row: schedule_shares(row) for row in COLUMN_ROWS},
    }
    options.to.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(dataclasses.asdict(item)) for item in outcomes]
    content = json.dumps(summary, indent=1).removesuffix("\n}")
    listed = ",\n  ".join(lines)
    (options.to / "verdicts.json").write_text(f'{content},\n "outcomes": [\n  {listed}\n ]\n}}\n')
    (options.to / "verdicts.md").write_text(render(summary))
    print(render(summary))


if __name__ == "__main__":
    main()
