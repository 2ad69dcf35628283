"""A verdict in, a badge out: one small SVG file that says how a row stands, as an icon with a word."""

from html import escape

from reproduce.report.sections import OUTCOMES
from reproduce.verdict import Verdict

COLORS = {
    "pass": "#0a6847",
    "partial": "#0a6847",
    "warn": "#835200",
    "fail": "#b0271b",
    "unknown": "#5a6068",
    "absent": "#5a6068",
}
ICONS = {  # 12 px drawings, as in the report: no state is told by its color alone
    "pass": '<circle cx="6" cy="6" r="6" fill="#fff"/><path d="M3.2 6.3l2 2 3.6-4" {stroke}/>',
    "partial": '<circle cx="6" cy="6" r="5.2" {light}/><path d="M3.4 6.2l2 2 3.3-3.8" {light}/>',
    "warn": '<path d="M6 0l6 11.5H0Z" fill="#fff"/><path d="M6 4v3.6M6 9v.6" {stroke}/>',
    "fail": '<rect width="12" height="12" rx="2.5" fill="#fff"/><path d="M3.5 3.5l5 5M8.5 3.5l-5 5" {stroke}/>',
    "unknown": '<circle cx="6" cy="6" r="5" fill="none" stroke="#fff" stroke-width="1.5" stroke-dasharray="2.2 1.6"/>',
    "absent": '<circle cx="6" cy="6" r="5" fill="none" stroke="#fff" stroke-width="1.5"/><path d="M3.5 6h5" {light}/>',
}
LETTER_PX = 6.6  # a generous mean advance of 11 px Verdana; textLength makes it exact


def render_badge(verdict: Verdict | None, *, name: str) -> str:
    """The badge of `name` (such as `row@version`); without a verdict it says that the row was not run."""
    tone, word = OUTCOMES["not run" if verdict is None else verdict.outcome]
    word = word.lower()
    if verdict is not None and verdict.on_track_at is not None:
        word += f" at {100 * verdict.on_track_at:.3g} %"
    left, right = round(len(name) * LETTER_PX) + 14, round(len(word) * LETTER_PX) + 32
    stroke = f'fill="none" stroke="{COLORS[tone]}" stroke-width="1.6" stroke-linecap="round"'
    light = 'fill="none" stroke="#fff" stroke-width="1.5" stroke-linecap="round"'
    text = (
        'y="14" fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" lengthAdjust="spacingAndGlyphs"'
    )
    label = escape(f"{name}: {word}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" aria-label="{label}">'
        f"<title>{label}</title>"
        f'<rect width="{left + right}" height="20" rx="4" fill="#33383e"/>'
        f'<path d="M{left} 0h{right - 4}a4 4 0 0 1 4 4v12a4 4 0 0 1-4 4H{left}z" fill="{COLORS[tone]}"/>'
        f'<text x="7" textLength="{left - 14}" {text}>{escape(name)}</text>'
        f'<g transform="translate({left + 7} 4)">{ICONS[tone].format(stroke=stroke, light=light)}</g>'
        f'<text x="{left + 25}" textLength="{right - 32}" {text}>{word}</text></svg>\n'
    )
