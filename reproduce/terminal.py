"""Cells in, aligned text for a terminal out. Whatever came from a file cannot steer the terminal."""

import os
import textwrap
from collections.abc import Sequence

import typer

from reproduce.quantities import printable

COLORS = {
    "pass": "green", "agree": "green", "reproduced": "green", "consistent": "green", "on track": "green",
    "warn": "yellow", "conflict": "yellow", "variant": "yellow", "better": "yellow",
    "fail": "red", "worse": "red", "failed": "red",
}  # fmt: skip
GAP = "  "


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, width: int) -> str:
    """Aligned columns, the first colored by its state; the last is wrapped to keep lines to `width` if it can."""
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header) - 1)]
    room = max(width - sum(widths) - len(GAP) * len(widths), 24)
    lines = []
    for row in cells:
        first = [cell.ljust(size) for cell, size in zip(row, widths, strict=False)]
        last = textwrap.wrap(row[-1], room) or [""]
        lines.append(GAP.join([paint(first[0], row[0]), *first[1:], last[0]]).rstrip())
        indent = " " * (sum(widths) + len(GAP) * len(widths))
        lines += [indent + more for more in last[1:]]
    return "\n".join(lines)


def printable_lines(text: str) -> str:
    """The text with its line ends, and each line as `printable` has it."""
    return "\n".join(map(printable, text.split("\n")))


def paint(text: str, state: str) -> str:
    """The text in the color of a state; `typer.echo` takes it off again where the output is no terminal."""
    color = COLORS.get(state)
    return text if color is None or os.environ.get("NO_COLOR") else typer.style(text, fg=color)


def render_list(title: str, items: Sequence[str], *, width: int) -> str:
    """A titled list, one item after another, wrapped."""
    lines = [textwrap.fill(printable(item), width, initial_indent="- ", subsequent_indent="  ") for item in items]
    return "\n".join([title, *lines])
