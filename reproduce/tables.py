"""A verdict or a parsed log in, what a person wants to read of it on a terminal out."""

import textwrap

from reproduce.checks import MetricResult
from reproduce.lineage import Lineage
from reproduce.logs import ParsedLog
from reproduce.quantities import printable
from reproduce.terminal import paint, render_list, render_table
from reproduce.verdict import Verdict


def render_verdict(verdict: Verdict, *, width: int) -> str:
    """The outcome, its sentence, every check, the results, and what could not be concluded."""
    name = f"{verdict.row}@{verdict.version} {verdict.run}" if verdict.row else verdict.run
    checks = [(check.state, check.layer, check.title, check.finding) for check in verdict.checks]
    results = [(result.state, result.title, _difference(result), result.basis) for result in verdict.metrics]
    parts = [
        f"{paint(verdict.outcome.upper(), verdict.outcome)}  {printable(name)}",
        textwrap.fill(printable(verdict.sentence), width),
        render_table(("state", "layer", "check", "finding"), checks, width=width),
    ]
    if results:
        parts.append(render_table(("state", "result", "difference", "against"), results, width=width))
    for title, items in (("What could not be concluded:", verdict.cannot_conclude), ("Problems:", verdict.problems)):
        if items:
            parts.append(render_list(title, items, width=width))
    return "\n\n".join(parts)


def render_log(log: ParsedLog, lineage: Lineage, *, width: int) -> str:
    """What a log holds: its dialect, its launches, its metrics and everything that could not be taken as it stands."""
    launches = [
        (launch.kind, f"{launch.start:,} – {launch.end:,}", f"lines {launch.first_line:,} – {launch.last_line:,}")
        for launch in lineage.launches
    ]
    metrics = sorted({name for record in log.records for name in record.values})
    parts = [
        f"{printable(str(log.path))}: {log.dialect}, {len(log.records):,} records, {len(lineage.ghosts):,} overwritten",
        *([render_table(("launch", "iterations", "where"), launches, width=width)] if launches else []),
        *([textwrap.fill(f"metrics: {printable(', '.join(metrics))}", width)] if metrics else []),
    ]
    problems = [str(problem) for problem in (*log.problems, *lineage.problems)]
    if problems:
        parts.append(render_list("Problems:", problems, width=width))
    return "\n\n".join(parts)


def _difference(result: MetricResult) -> str:
    """`+0.31 [-0.20, +0.82] percentage points of 97.20`, as far as it is known."""
    if result.mine is None:
        return "not measured"
    if result.difference is None:
        return f"{result.mine:.4g} {result.unit}"
    known = result.low is not None and result.high is not None
    interval = f" [{result.low:+.2g}, {result.high:+.2g}]" if known else ""
    return f"{result.mine:.4g} {result.unit}: {result.difference:+.2g}{interval}"
