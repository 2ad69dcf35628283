"""A verdict with everything it rests on in, one HTML file out that needs nothing else: no script, no network.

Everything that came from a log or a spec is escaped: by the template's autoescape, by `svg` inside drawings, and by
`embed_json` inside the script element. The same inputs give the same bytes: no clock and no machine is asked.
"""

import base64
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from reproduce import quantities
from reproduce.audit import Finding, audit, cross_checks
from reproduce.checks import Band
from reproduce.curves import LOSSES, TOTAL
from reproduce.figures import plots
from reproduce.figures.captions import has_metric
from reproduce.figures.spans import Span, linear, make_spans, run_scale
from reproduce.figures.svg import Scale
from reproduce.layers.data import find_replay
from reproduce.layers.knn import primary_k
from reproduce.lineage import History, say_when
from reproduce.quantities import plural, render_value
from reproduce.report import run_facts, sections
from reproduce.report.error_rates import load_error_rates
from reproduce.report.provenance import Provenance
from reproduce.report.weights_section import make_weights
from reproduce.sources import Source
from reproduce.spec import Spec
from reproduce.verdict import Verdict
from reproduce.weights_verdict import WeightsVerdict

JSON_LINK = "data:application/json;base64,"
KEPT = {"\n", "\t"}
STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, marks that turn the direction or are not seen, half characters
DRAWN_SCHEDULES = ("lr", "wd", "mom")
GITHUB = re.compile(r"([\w.-]+/[\w.-]+):([\w./+-]+)@([0-9a-f]{7,40})")
ARXIV = re.compile(r"(?:arXiv[: ])?(\d{4}\.\d{4,5}(?:v\d+)?)(?: \([^()]*\))?")
WEIGHTS = re.compile(r"https://[\w.-]+/[\w./%+-]+")
CROSS_STATES = {True: ("pass", "adds up"), False: ("fail", "does not"), None: ("absent", "no test")}
LEGEND = (
    ("mine", '<path class="mine" d="M0 7H26"/>', "mine"),
    ("envelope", '<path class="envelope" d="M0 2H26V12H0Z"/>', "least and greatest line of mine"),
    ("band", '<path class="band" d="M0 1H26V13H0Z"/>', "band that equal runs keep"),
    ("reference", '<path class="reference" d="M0 7H26"/>', "reference runs"),
    ("ghost", '<path class="ghost" d="M0 7H26"/>', "overwritten, or a restart that was given up"),
    ("launch-line", '<line class="launch-line" x1="13" x2="13" y1="0" y2="14"/>', "a later launch"),
    ("evaluation", '<path class="evaluation" d="M8 12H18L13 4Z"/>', "k-NN evaluation"),
    ("checkpoint", '<line class="checkpoint" x1="13" x2="13" y1="3" y2="12"/>', "checkpoint"),
    ("published", '<line class="published" x1="0" x2="26" y1="7" y2="7"/>', "published"),
    ("pixels", '<line class="pixels" x1="0" x2="26" y1="7" y2="7"/>', "raw pixels, no training"),
)


@dataclass(frozen=True)
class Axes:
    """What the curves of a report are drawn over: `unit` by default, and others to choose."""

    unit: str
    others: tuple[Span, ...]

    @property
    def choices(self) -> tuple[tuple[str, str], ...]:
        """(key, title) of each, none where there is nothing to choose."""
        return (("iteration", self.unit), *((span.key, span.title) for span in self.others)) if self.others else ()

    @property
    def shared(self) -> str:
        """The CSS classes of a drawing that is the same under several of them."""
        same = ("iteration", *(span.key for span in self.others if span.relabelled))
        return " ".join(("by", *(f"by-{key}" for key in same))) if self.others else ""


def render_report(
    verdict: Verdict | None,
    *,
    mine: History | None = None,
    references: Sequence[History] = (),
    spec: Spec | None = None,
    provenance: Provenance | None = None,
    commands: Sequence[str] = (),
    vouch: str = "",
    weights: Sequence[WeightsVerdict] = (),
) -> str:
    """The report of a run (verdict and `mine`), of a row that was never run (`spec` alone), or of two logs (no spec).

    `weights` are the verdicts on the row's released weights, one for each size of images. `commands` are the exact
    lines that repeat it, `vouch` the one that signs it. A verdict comes with the history that was judged.
    """
    if (verdict is None) != (mine is None):
        raise ValueError("a verdict and the history it judged come together")
    findings = audit(spec) if spec is not None else ()
    outcome = sections.make_outcome(verdict, spec=spec, findings=findings)
    context: dict[str, Any] = {
        "name": spec.name if spec else (verdict.run if verdict else "comparison"),
        "title": spec.title if spec else " against ".join(_names(mine, references)),
        "identity": " · ".join(filter(None, (spec.name if spec else "", verdict.run if verdict else "no run"))),
        "outcome": outcome,
        "spec": spec,
        "verdict": verdict,
        "commands": list(commands),
        "vouch": vouch,
        **_recorded(provenance, spec=spec, mine=mine),
        "settings": run_facts.make_setting_tables(spec, mine=mine, references=references),
        "weights": make_weights(weights),
        "error_rates": load_error_rates(),
        **_stated(spec, findings=findings),
    }
    if verdict is not None and mine is not None:
        context |= _judged(verdict, mine=mine, references=references, spec=spec, provenance=provenance)
    context["contents"] = _contents(context)
    return render_page("report.html", context)


def make_environment() -> jinja2.Environment:
    """The templates beside this module, with autoescape on and an undefined name an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": quantities.render_number,
        "fixed": lambda value, decimals: quantities.render_fixed(value, decimals=decimals),
        "value": render_value,
        "bytes": quantities.render_bytes,
        "plural": plural,
        "typeset": quantities.typeset,
        "legible": quantities.make_legible,
        "word": sections.STATE_WORDS.__getitem__,
        "source_url": source_url,
        "weights_url": weights_url,
        "source_label": source_label,
    }
    environment.globals["css"] = Markup((Path(__file__).parent / "report.css").read_text())
    return environment


def render_page(template: str, context: Mapping[str, Any]) -> str:
    """A page of one of the templates. What steers the text around it, or has no form in UTF-8, is made visible."""
    text = make_environment().get_template(template).render(context)
    steering = {ord(letter): "�" for letter in set(text) - KEPT if unicodedata.category(letter) in STEERING}
    return text.translate(steering)


def source_url(source: Source) -> str | None:
    """A public address of a source: GitHub at its commit, or arXiv; None where the reference is of no such form."""
    if match := GITHUB.fullmatch(source.ref):
        return f"https://github.com/{match[1]}/blob/{source.commit or match[3]}/{match[2]}"
    if match := ARXIV.fullmatch(source.ref):
        return f"https://arxiv.org/abs/{match[1]}"
    return None


def weights_url(url: str | None) -> str | None:
    """The address of a weights file, where it is one that a browser may follow."""
    return url if url and WEIGHTS.fullmatch(url) else None


def source_label(source: Source) -> str:
    """A source's name, short enough to stand beside every value: of a file in a repository, its last part."""
    match = GITHUB.fullmatch(source.ref)
    if match is None:
        return str(source)
    name = f"{match[1].rpartition('/')[2]} {match[2].rpartition('/')[2]}@{match[3][:8]}"
    return f"{name}, {source.locator}" if source.locator else name


def embed_json(text: str) -> Markup:
    """JSON that may stand in a script element: no character in it can end the element, and it reads back the same."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _judged(
    verdict: Verdict, *, mine: History, references: Sequence[History], spec: Spec | None, provenance: Provenance | None
) -> dict[str, Any]:
    """The parts of a report that need a run."""
    reach = max(run.done for run in (mine, *references))
    spans = make_spans(mine, references=references)
    losses = _loss_figures(verdict.bands, mine=mine, references=references, others=spans)
    results = sections.make_results(verdict.metrics, cells=mine.unit == "cell")
    evaluation = provenance.evaluation if provenance else {}
    return {
        "tally": sections.describe_checks(verdict.checks),
        "layers": sections.make_layers(verdict.checks),
        "results": results,
        "result_notes": tuple(dict.fromkeys(view.result.note for view in results if view.result.note)),
        "method_numbers": sections.method_numbers(verdict.method),
        "losses": losses,
        "axes": Axes(f"{mine.unit}s", spans),
        "losses_legend": _legend([figure.upper for figure in losses]),
        "schedules": _schedule_figures(verdict, mine=mine, references=references, reach=reach),
        **_knn(verdict, mine=mine, references=references, spec=spec, evaluation=evaluation, others=linear(spans)),
        "lineage": None if mine.unit == "cell" else _lineage(mine, spec=spec),
        "speed": None if mine.unit == "cell" else _speed(mine, references=references),
        "problems": (*verdict.problems, *(provenance.problems if provenance else ())),
        "verdict_json": embed_json(verdict.to_json()),
        "verdict_link": Markup(JSON_LINK + base64.b64encode(verdict.to_json().encode()).decode()),
    }


def _recorded(provenance: Provenance | None, *, spec: Spec | None, mine: History | None) -> dict[str, Any]:
    """What the run folder itself says of code, machine, jobs and files."""
    return {
        "logs": provenance.logs if provenance else (),
        "jobs": run_facts.make_jobs(provenance.launch) if provenance else (),
        "script": provenance.script if provenance else "",
        "provenance_groups": run_facts.provenance_groups(provenance, spec=spec, mine=mine),
    }


def _loss_figures(
    bands: Sequence[Band], *, mine: History, references: Sequence[History], others: Sequence[Span]
) -> list[plots.Figure]:
    """One figure per loss that mine logs, the total first, on one axis, and on the others to choose."""
    span = run_scale((mine, *references))
    by_metric = {band.metric: band for band in bands if band.kind == "loss"}
    return [
        plots.render_loss_figure(
            metric, mine=mine, references=references, band=by_metric.get(metric), span=span, others=others
        )
        for metric in (TOTAL, *LOSSES)
        if has_metric(mine, metric)
    ]


def _schedule_figures(
    verdict: Verdict, *, mine: History, references: Sequence[History], reach: int
) -> list[plots.Figure]:
    scale = run_scale((mine, *references))
    span = Scale(0, scale.high, knots=scale.knots) if mine.unit == "cell" else Scale(0, max(reach, 1))
    return [
        plots.render_schedule_figure(metric, mine=mine, references=references, checks=verdict.checks, span=span)
        for metric in DRAWN_SCHEDULES
        if has_metric(mine, metric)
    ]


def _knn(
    verdict: Verdict,
    *,
    mine: History,
    references: Sequence[History],
    spec: Spec | None,
    evaluation: Mapping[str, Any],
    others: Sequence[Span],
) -> dict[str, Any]:
    """The k-NN figure with its levels, and the table of all k."""
    k = primary_k(mine, references)
    if k is None or not mine.knn:
        return {"knn": None, "knn_rows": (), "knn_done": "", "knn_legend": []}
    pixels = evaluation.get("pixels_knn")
    rows = sections.make_knn_rows(mine, references=references, pixels=pixels if isinstance(pixels, Mapping) else {})
    levels = [plots.Level(row.pixels, f"raw pixels {row.pixels:.2f} %", "pixels")
              for row in rows if row.k == k and row.pixels is not None]  # fmt: skip
    for metric in spec.metrics if spec else ():
        if metric.name.startswith("knn") and metric.target is not None:
            levels.append(plots.Level(metric.target, f"published {render_value(metric.target)} %", "published"))
    band = next((band for band in verdict.bands if band.kind == "knn"), None)
    scale = run_scale((mine, *references), evaluations=True)
    span = Scale(0, scale.high, knots=scale.knots)
    figure = plots.render_knn_figure(
        k, mine=mine, references=references, band=band, levels=levels, span=span, others=others
    )
    return {
        "knn": figure,
        "knn_rows": rows,
        "knn_done": say_when(max(mine.knn), mine),
        "knn_legend": _legend([figure.upper]),
    }


def _lineage(mine: History, *, spec: Spec | None) -> dict[str, Any]:
    reach = max((launch.end + 1 for launch in mine.lineage.launches), default=0)
    rows = run_facts.make_launch_rows(mine.lineage)
    figure = plots.render_lineage_figure(mine.lineage, total=reach) if len(rows) > 1 else None
    return {
        "summary": run_facts.describe_lineage(mine.lineage),
        "replay": find_replay(mine, spec=spec),
        "figure": figure,
        "rows": rows,
    }


def _speed(mine: History, *, references: Sequence[History]) -> dict[str, Any] | None:
    rows = run_facts.make_speed_rows(mine, references=references)
    if not rows:
        return None
    span = Scale(0, max(mine.done, 1))  # no reference run is drawn beside it
    drawn = [
        plots.render_speed_figure(title, mine=mine, metric=metric, waiting=waiting, span=span)
        for title, metric, waiting in run_facts.SPEED_FIGURES
        if has_metric(mine, metric)
    ]
    return {"summary": run_facts.describe_speed(mine), "rows": rows, "figures": drawn}


def _stated(spec: Spec | None, *, findings: Sequence[Finding]) -> dict[str, Any]:
    """What the row's sources say of its results, its machine and its recipe."""
    rows = sections.make_claim_rows(findings, claims=spec.claims) if spec else ()
    return {
        "metrics": sections.split_metrics(spec) if spec else ((), ()),
        "resources": run_facts.resource_facts(spec) if spec else (),
        "claim_groups": sections.make_claim_groups(rows),
        "claims_tally": sections.describe_claims(rows),
        "cross_checks": [(check, CROSS_STATES[check.agrees]) for check in cross_checks(spec)] if spec else [],
    }


def _legend(drawings: Sequence[str]) -> list[tuple[Markup, str]]:
    """The entries of what the drawings hold."""
    drawn = "".join(drawings)
    return [(Markup(sample), text) for kind, sample, text in LEGEND if re.search(rf'class="{kind}[" ]', drawn)]


def _names(mine: History | None, references: Sequence[History]) -> list[str]:
    others = [run.name for run in references]
    return ([mine.name] if mine else []) + (others if len(others) < 3 else [plural(len(others), "reference run")])


def _contents(context: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Anchors of the sections that this report has, in order."""
    judged = context["verdict"] is not None
    entries = [
        ("checks", "Checks", judged),
        ("results", "Results", judged),
        ("losses", "Losses", judged),
        ("schedules", "Schedules", judged and context["schedules"]),
        ("knn", "k-NN", judged),
        ("weights", "Released weights", context["weights"]),
        ("published", "Published results", context["spec"]),
        ("claims", "Claims and conflicts", context["spec"]),
        ("configuration", "Configuration", context["settings"]),
        ("lineage", "Lineage", judged),
        ("speed", "Speed", judged and context["speed"]),
        ("provenance", "Provenance", True),
        ("method", "Method", True),
    ]
    return [(anchor, label) for anchor, label, present in entries if present]
