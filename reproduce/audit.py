"""A spec in, its findings out: what the sources say of each fact, where they disagree, what is run, if it adds up.

Nothing here runs or downloads anything: the documents are held against one another and against the recipe.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from franca.config import Recipe, peak_lr, prototypes_per_level
from franca.flops import count_parameters, ffn_hidden
from reproduce.spec import Claim, ClaimedValue, Spec, Value
from reproduce.terminal import printable_lines

State = Literal["agree", "conflict", "single", "open"]
WORST_FIRST: tuple[State, ...] = ("conflict", "open", "agree", "single")
PRINTED = 0.02  # a rate printed with two digits, e.g. 3.5e-4 for 3.464e-4


# Facts that the recipe does not hold under one key, but determines.
DERIVED: dict[str, Callable[[Recipe], Value]] = {
    "peak_lr": peak_lr,
    "ffn_hidden": lambda recipe: ffn_hidden(recipe.model),
    "backbone_parameters": lambda recipe: count_parameters(recipe).backbone,
    "trainable_parameters": lambda recipe: count_parameters(recipe).trainable,
    "prototypes_per_level": lambda recipe: list(prototypes_per_level(recipe.heads.dino, recipe.heads.nesting)),
}


@dataclass(frozen=True)
class Finding:
    """One fact. `holds` says whether the run has `run_value`; None where the fact is no setting of a run.

    conflict: sources of this row disagree. open: none speaks of this row. single: one source. agree: several, as one.
    """

    field: str
    label: str
    unit: str | None
    state: State
    run_value: Value
    actual: Value
    holds: bool | None
    why: str
    values: tuple[ClaimedValue, ...]


@dataclass(frozen=True)
class CrossCheck:
    """One relation between several facts, computed: `agrees` is None where nothing published can be held against it."""

    title: str
    computed: str
    expected: str
    agrees: bool | None


def audit(spec: Spec) -> tuple[Finding, ...]:
    """Every fact of the row: conflicts first, then what is open, then the rest, each in the order of the row's file."""
    findings = [_find(claim, spec) for claim in spec.claims]
    return tuple(sorted(findings, key=lambda finding: WORST_FIRST.index(finding.state)))


def claim_state(claim: Claim) -> State:
    """What the sources of a fact are to one another. Assumed values speak of other rows and are not counted."""
    values = [value for value in claim.values if not value.assumed]
    if not values:
        return "open"
    if any(not equal(values[0].value, value.value, tolerance=claim.tolerance_relative) for value in values[1:]):
        return "conflict"
    sources = {source.id for value in values for source in value.sources if source.kind != "computed"}
    return "agree" if len(sources) > 1 else "single"


def equal(one: Value, other: Value, *, tolerance: float = 0.0) -> bool:
    """Whether two published values are the same; numbers within a tolerance relative to the larger."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(equal(a, b, tolerance=tolerance) for a, b in zip(one, other, strict=True))
    if _is_number(one) and _is_number(other):
        return math.isclose(one, other, rel_tol=max(tolerance, 1e-9))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def cross_checks(spec: Spec) -> tuple[CrossCheck, ...]:
    """Relations between facts: batch and GPUs, learning rates, lengths of the schedules, passes over the data, cost.

    And whether the log that runs are judged by is where the row says.
    """
    return tuple(_cross_checks(spec))


def render_audit(spec: Spec, *, states: Sequence[State] = ("conflict", "open")) -> str:
    """The audit as plain text. `states` are shown with every value and source; a fact that does not hold always is."""
    findings = audit(spec)
    counts = {state: sum(finding.state == state for finding in findings) for state in WORST_FIRST}
    lines = [
        f"{spec.name}  {spec.title}",
        f"{counts['conflict']} facts in conflict, {counts['open']} open, "
        f"{counts['agree']} that several sources agree on, {counts['single']} from one source",
        *(f"note: {note}" for note in spec.notes),
        *(f"changed: {change}" for change in spec.changes),
    ]
    for finding in findings:
        if finding.state in states or finding.holds is False:
            lines += ["", *_render_finding(finding)]
    marks = {True: "ok", False: "NO", None: "--"}
    lines += ["", "cross-checks"]
    lines += [
        f"  {marks[check.agrees]}  {check.title}: {check.computed}; {check.expected}" for check in cross_checks(spec)
    ]
    return printable_lines("\n".join([*lines, "", *_render_judges(spec)]) + "\n")


def render_value(value: Value, *, unit: str | None = None) -> str:
    """A published value in words: whole numbers with thousands separated, small ones in powers of ten."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        text = "[" + ", ".join(render_value(item) for item in value) + "]"
    elif isinstance(value, int):
        text = f"{value:,}"
    elif isinstance(value, float):
        text = f"{value:.4g}" if value and abs(value) < 1e-2 else f"{value:g}"
    else:
        text = str(value)
    return f"{text} {unit}" if unit else text


def _find(claim: Claim, spec: Spec) -> Finding:
    actual, known = _actual(claim, spec)
    holds = equal(claim.run_value, actual, tolerance=claim.tolerance_relative) if known else None
    return Finding(
        field=claim.field,
        label=claim.label,
        unit=claim.unit,
        state=claim_state(claim),
        run_value=claim.run_value,
        actual=actual,
        holds=holds,
        why=claim.why,
        values=claim.values,
    )


def _actual(claim: Claim, spec: Spec) -> tuple[Value, bool]:
    """(what the run has, whether the fact is one of recipe, resources or spec)."""
    if claim.recipe_key is not None:
        value: Any = spec.recipe
        for name in claim.recipe_key.split("."):
            value = getattr(value, name)
        return _plain(value), True
    if claim.field in DERIVED:
        return DERIVED[claim.field](spec.recipe), True
    resources = dataclasses.asdict(spec.resources)
    if claim.field in resources and claim.run_value is not None:
        return resources[claim.field], True
    return (spec.seed, True) if claim.field == "seed" else (None, False)


def _cross_checks(spec: Spec) -> Iterator[CrossCheck]:
    recipe, resources = spec.recipe, spec.resources
    if resources.gpus:
        images = resources.gpus * resources.batch_per_gpu
        yield CrossCheck(
            "Global batch",
            f"{resources.gpus} GPUs × {resources.batch_per_gpu} images = {images:,}",
            f"the recipe has {recipe.global_batch:,}",
            images == recipe.global_batch,
        )
    yield _peak_lr_check(spec)
    for name, length in (
        ("Warm-up of the learning rate", recipe.optim.warmup_iterations),
        ("Warm-up of the teacher's temperature", recipe.teacher.temperature_warmup_iterations),
    ):
        share = 100 * length / recipe.iterations
        yield CrossCheck(
            name,
            f"{length:,} of {recipe.iterations:,} iterations, {share:.3g} %",
            "it must end before the run does",
            length < recipe.iterations,
        )
    images_seen = recipe.iterations * recipe.global_batch
    yield CrossCheck(
        "Passes over the data",
        f"{images_seen:,} images of {recipe.data.images:,} = {images_seen / recipe.data.images:.1f}",
        "for orientation",
        None,
    )
    yield from _log_checks(spec)
    if resources.gpus and resources.gpu_hours:
        seconds = resources.gpu_hours * 3600 / (recipe.iterations * resources.gpus)
        yield CrossCheck(
            "Seconds per iteration",
            f"{resources.gpu_hours:,g} GPU-hours / {resources.gpus} GPUs / {recipe.iterations:,} = {seconds:.3f} s",
            "an upper bound: the hours include later stages",
            None,
        )


def _log_checks(spec: Spec) -> Iterator[CrossCheck]:
    """Whether the logs that runs of the row are judged by are where it says."""
    for pattern, paths in spec.published_log.here(spec.root).items():
        mine = spec.published_log.state == "ours"
        yield CrossCheck(
            "Log that runs are judged by",
            f"{len(paths)} of {pattern} here" if paths else f"nothing is at {pattern}",
            "it belongs in this project" if mine else f"`reproduce fetch {spec.row}` brings it",
            True if paths else False if mine else None,
        )


def _peak_lr_check(spec: Spec) -> CrossCheck:
    """The recipe's own peak against the documented one, which is printed with one or two digits."""
    optim, peak = spec.recipe.optim, peak_lr(spec.recipe)
    formula = f"{optim.base_lr:.4g}"
    if optim.scaling == "sqrt_1024":
        formula += f" × sqrt({spec.recipe.global_batch} / 1024) = {peak:.4g}"
    documented = next((claim.values[0] for claim in spec.claims if claim.field == "peak_lr" and claim.values), None)
    if documented is None:
        return CrossCheck("Learning rate after warm-up", formula, "no document gives it", None)
    source = documented.sources[0]
    return CrossCheck(
        "Learning rate after warm-up",
        formula,
        f"{source} has {documented.value:.4g}",
        equal(peak, documented.value, tolerance=PRINTED),
    )


def _render_finding(finding: Finding) -> Iterator[str]:
    yield f"{finding.state.upper():9}{finding.label}  ({finding.field})"
    for value in finding.values:
        sources = "; ".join(str(source) for source in value.sources)
        details = "; ".join(filter(None, [value.condition, value.note, "a fallback" if value.assumed else None]))
        said = render_value(value.value, unit=finding.unit)
        yield f"  {said:<24} {sources}" + (f"  ({details})" if details else "")
    if finding.run_value is not None:
        yield f"  runs {render_value(finding.run_value, unit=finding.unit)}" + (
            f": {finding.why}" if finding.why else ""
        )
    elif finding.why:
        yield f"  {finding.why}"
    if finding.holds is False:
        yield f"  BUT the recipe has {render_value(finding.actual, unit=finding.unit)}"


def _render_judges(spec: Spec) -> Iterator[str]:
    """What a run of the row is judged by."""
    yield "judged by"
    log = spec.published_log
    where = f", {log.repository} {log.path}" if log.path else ""
    yield f"  log: {log.state}{where}" + (f" ({log.note})" if log.note else "")
    for metric in spec.metrics:
        if metric.target_why:
            target = "no target" if metric.target is None else render_value(metric.target, unit=metric.unit)
            yield f"  {metric.label}: {target}. {metric.target_why}"


def _plain(value: Any) -> Value:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
