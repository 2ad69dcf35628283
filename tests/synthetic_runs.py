"""Runs, a spec and a verdict made of numbers that look like real ones, for the tests of the report."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recipes import make_recipe

from franca.config import recipe_fingerprint, to_mapping
from reproduce.checks import Band, Check, Evidence
from reproduce.lineage import History, make_lineage
from reproduce.log_head import Head
from reproduce.logs import Record
from reproduce.sources import Source
from reproduce.spec import Claim, ClaimedValue, Margins, Metric, PublishedLog, Resources, Spec, Weights
from reproduce.verdict import MetricResult, ReferenceSummary, Verdict

LEVELS = {"dino_local_crops_loss": (7.4, 3.1), "dino_global_crops_loss": (0.93, 0.34), "ibot_loss": (2.1, 0.9),
          "koleo_loss": (-0.02, 0.11)}  # fmt: skip
TOTAL = 6000

PAPER = Source("paper", "paper", "arXiv 2507.14137v4 (25 April 2026)", "Franca paper", None, None, None, "Table 2")
README = Source("readme", "document", "valeoai/Franca:README.md@24f8c60ab24c", "README, July",
                "24f8c60ab24c465b861e46fc3f02c4238db37cf1", None, None)  # fmt: skip
OURS = Source("ours", "ours", "logfiles/digits", "Our ten reference runs", None, None, None)


def make_records(
    seed: int, *, start: int = 0, stop: int = TOTAL, total: int = TOTAL, period: int = 10, first_line: int = 1
) -> list[Record]:
    """Lines of a run as DINOv2 prints them: schedules are exact, losses fall and wander in logarithmic time."""
    generator = np.random.default_rng(seed)
    iterations = np.arange(start, stop, period)
    if stop == total:
        iterations = np.append(iterations[iterations < total - 1], total - 1)  # the last iteration is always logged
    octave = np.log1p(iterations) / math.log(total)
    columns: dict[str, np.ndarray[Any, Any]] = {}
    for name, (high, low) in LEVELS.items():
        steps = generator.normal(size=len(iterations)) * np.sqrt(np.diff(octave, prepend=octave[:1] - 0.01))
        noise = generator.normal(size=len(iterations)) * 0.4
        columns[name] = low + (high - low) * np.exp(-3.2 * octave**2) + 0.012 * abs(high) * (np.cumsum(steps) + noise)
    columns["total_loss"] = sum(columns.values(), np.zeros(len(iterations)))
    share, warmup = iterations / total, total // 10
    cosine = 0.5 * (1 + np.cos(np.pi * np.clip((iterations - warmup) / (total - warmup), 0, 1)))
    columns["lr"] = np.where(iterations < warmup, 0.002 * iterations / warmup, 1e-6 + 0.002 * cosine)
    columns["wd"] = 0.4 - 0.18 * (1 + np.cos(np.pi * share))
    columns["mom"] = 1.0 - 0.004 * (1 + np.cos(np.pi * share))
    columns["current_batch_size"] = np.full(len(iterations), 64.0)
    columns["iter_time"] = 0.21 + 0.01 * generator.random(len(iterations)) + 0.5 * (iterations == start)
    columns["data_time"] = 0.02 * generator.random(len(iterations))
    columns["images_per_second"] = 64 / columns["iter_time"]
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [
        Record(first_line + line, int(iteration), total, dict(zip(columns, row, strict=True)), None, None, 0)
        for line, (iteration, row) in enumerate(zip(iterations, rows, strict=True))
    ]


def make_history(
    name: str, *, seed: int = 0, records: Sequence[Record] | None = None, total: int = TOTAL, **changes: Any
) -> History:
    """A run with its k-NN evaluations every tenth of it, as far as it came."""
    records = make_records(seed, total=total, stop=total) if records is None else records
    lineage = make_lineage(records, path=f"runs/{name}/training_metrics.json")
    done = records[-1].iteration + 1 if records else 0
    generator = np.random.default_rng(seed + 1)
    knn = {
        point: {k: round(97.6 - 15 * math.exp(-5 * point / total) - k / 25 + generator.normal() * 0.15, 3)
                for k in (10, 20, 100, 200)}
        for point in range(0, done + 9, max(total // 10, 1))
    }  # fmt: skip
    config = {"row": "digits", "version": 1, "fingerprint": recipe_fingerprint(make_recipe()), "seed": seed,
              "recipe": to_mapping(make_recipe()), "execution": {"workers": 0}}  # fmt: skip
    fields: dict[str, Any] = {
        "name": name, "path": Path("runs") / name, "log_path": Path("runs") / name / "training_metrics.json",
        "dialect": "dinov2-json", "lineage": lineage, "text": None, "knn": knn, "config": config, "head": Head(),
        "state": None, "seed": seed, "total": total, "problems": (),
    }  # fmt: skip
    return History(**(fields | changes))


def make_spec(**changes: Any) -> Spec:
    """A row whose sources disagree on one fact, agree on another, and leave a third open."""
    recipe = make_recipe()
    claims = (
        Claim("iterations", "Total iterations", None,
              (ClaimedValue(625000, (README, PAPER)), ClaimedValue(1000000, (README,), "800 epochs of 1,250")),
              "iterations", 625000, "The training document and the paper state it; the config was edited later.", 0.0),
        Claim("global_batch", "Global batch", "images", (ClaimedValue(64, (README, PAPER)),), "global_batch", 64,
              "All sources agree.", 0.0),
        Claim("optim.base_lr", "Base learning rate", None, (), "optim.base_lr", 0.004, "Implied by the peak.", 0.0),
    )  # fmt: skip
    metrics = (
        Metric("knn_top1", "k-NN top-1, ImageNet-1k", "%", "224 px",
               (ClaimedValue(80.9, (README,), "518 px"), ClaimedValue(97.1, (PAPER,), "224 px")), 97.1,
               "The paper's newest version, at the resolution that is run."),
    )  # fmt: skip
    log = PublishedLog("published", "valeoai/Franca", "4b2eb918", "logfiles/In21K/Franca_B.txt", "7126fe9c", (), None)
    fields: dict[str, Any] = {
        "row": "digits", "version": 1, "title": "A small Franca on handwritten digits",
        "summary": "Ten reference runs ship with it.", "seed": 0, "row_seed": 0, "recipe": recipe,
        "fingerprint": recipe_fingerprint(recipe), "resources": Resources(0, None, 64, None, 0.3, 600, 3),
        "claims": claims, "metrics": metrics, "published_log": log,
        "weights": (Weights("https://example.org/w.pth", 224, "published", (README,), "the 224 px file"),),
        "margins": Margins(0.01, 0.01, 0.5), "notes": ("The log's text is not shipped.",),
        "sources": {"paper": PAPER, "readme": README}, "overrides": (), "variant": False, "changes": (),
        "path": Path("experiments/digits.yaml"),
    }  # fmt: skip
    return Spec(**(fields | changes))


def make_band(metric: str, *, mine: History, references: Sequence[History], shift: float = 0.0) -> Band:
    """A band around the mean of the reference runs; `shift` moves mine out of it, in standard deviations."""
    edges = np.unique(np.geomspace(200, mine.done, 60).astype(int))
    starts, ends = edges[:-1], edges[1:]

    def blocks(run: History) -> np.ndarray[Any, Any]:
        done = np.array([record.iteration + 1 for record in run.lineage.records])
        values = np.array([record.values[metric] for record in run.lineage.records])
        inside = [(done > start) & (done <= end) for start, end in zip(starts, ends, strict=True)]
        return np.array([values[rows].mean() if rows.any() else np.nan for rows in inside])

    table = np.stack([blocks(run) for run in references])
    center, spread = table.mean(axis=0), table.std(axis=0, ddof=1) + 1e-9
    z = (blocks(mine) - center) / spread * 0.7 + shift * np.linspace(0, 1, len(starts)) ** 2
    columns = (center + z * spread, center, center - 4.2 * spread, center + 4.2 * spread, z)
    cells = [tuple(None if math.isnan(value) else float(value) for value in column) for column in columns]
    return Band(metric, "loss", "block mean", tuple(starts.tolist()), tuple(ends.tolist()),
                *cells, critical=4.23, references=len(references))  # fmt: skip


def make_check(**changes: Any) -> Check:
    fields: dict[str, Any] = {
        "id": "schedules", "layer": "L2", "title": "Schedule columns", "state": "pass",
        "finding": "lr, wd and mom are equal on all 600 common lines.", "value": 0.0, "limit": 0.0001, "unit": "",
        "iteration": None, "evidence": (
            Evidence("runs/digits@1/main/log.txt", 412, "I20260308 08:02:33 116690 franca helpers.py:102] Training  "
                     "[  10/6000]  eta: 0:21:02  lr: 0.0001 (0.0000)  wd: 0.0400 (0.0400)"),
            Evidence("logfiles/digits/seed=3/log.txt", 398, "I20260301 21:14:07 2211 franca helpers.py:102] Training  "
                     "[  10/6000]  eta: 0:20:44  lr: 0.0001 (0.0000)  wd: 0.0400 (0.0400)")),
        "says": "The optimizer was driven by the same schedules.",
        "cannot_say": "That gradients, data or precision are the same.",
    }  # fmt: skip
    return Check(**(fields | changes))


def make_result(**changes: Any) -> MetricResult:
    fields: dict[str, Any] = {
        "name": "knn_20", "title": "k-NN top-1, k = 20", "unit": "%", "state": "reproduced", "iteration": TOTAL,
        "mine": 96.83, "target": 97.1, "target_source": "Franca paper Table 2", "basis": "mean of 10 reference runs",
        "center": 96.9, "references": (96.7, 96.9, 97.1), "difference": -0.07, "low": -0.31, "high": 0.17,
        "confidence": 0.9, "margin": 0.5, "detectable": 0.41, "note": "",
    }  # fmt: skip
    return MetricResult(**(fields | changes))


def make_checks() -> tuple[Check, ...]:
    """One check of each state over the six layers."""
    return (
        make_check(id="recipe", layer="L0", title="Recipe", value=0, limit=0, unit="keys",
                   finding="Every key of the recipe equals that of the reference runs."),
        make_check(id="fingerprint", layer="L1", title="First 50 iterations", state="warn", value=6.1, limit=5,
                   unit="SD", iteration=20, finding="The iBOT loss is 6.1 SD off at iteration 20; the seed differs."),
        make_check(),
        make_check(id="collapse", layer="L3", title="Uniform output", value=None, limit=None, evidence=(),
                   finding="No loss stays at its uniform value."),
        make_check(id="band", layer="L4", title="Loss band", value=2.4, limit=4.23, unit="|z|", evidence=(),
                   finding="All four losses stay inside the simultaneous band."),
        make_check(id="knn", layer="L5", title="k-NN at the end", state="unknown", value=None, limit=None, evidence=(),
                   finding="Not evaluated at the end of the run yet."),
    )  # fmt: skip


def make_verdict(*, mine: History, references: Sequence[History], **changes: Any) -> Verdict:
    """A reproduction, as it looks when everything went well."""
    bands = tuple(make_band(metric, mine=mine, references=references) for metric in LEVELS if len(references) > 1)
    losses = tuple(
        make_result(name=metric, title=metric, unit="", state="consistent", mine=high, target=None, target_source="",
                    center=high, difference=0.004, low=-0.02, high=0.028, margin=0.031)
        for metric, (_, high) in LEVELS.items()
    )  # fmt: skip
    fields: dict[str, Any] = {
        "outcome": "reproduced",
        "sentence": "The run ends at 96.83 % k-NN, 0.07 points below the mean of ten reference runs, and its 90 % "
                    "interval lies inside the margin of 0.5 points fixed before the launch.",
        "cannot_conclude": ("A difference below 0.41 points of k-NN would not have been seen.",
                            "Nothing is said of transfer to other data."),
        "row": "digits", "version": 1, "run": mine.name, "done": mine.done, "total": mine.total,
        "progress": mine.done / mine.total if mine.total else None, "checks": make_checks(),
        "metrics": (make_result(), *losses), "bands": bands,
        "references": tuple(ReferenceSummary(run.name, str(run.path), run.seed, run.done, 1) for run in references),
        "problems": (), "method": {"alpha": 0.01, "critical_loss": 4.23, "lambda": 1.4}, "exit_code": 0,
    }  # fmt: skip
    return Verdict(**(fields | changes))


def make_runs() -> tuple[History, list[History]]:
    """A run that was resumed once, and three reference runs."""
    records = make_records(42, stop=4200) + make_records(43, start=3600, first_line=421)
    return make_history("main", records=records), [make_history(f"seed-{seed}", seed=seed) for seed in (1, 2, 3)]
