"""Numbers and values in, the text that a reader sees out: one notation for reports, badges, figures and plans."""

import math
import re
from collections.abc import Mapping
from typing import Any

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"

TITLES = {
    "total_loss": "Total loss",
    "dino_local_crops_loss": "Local-crop DINO loss",
    "dino_global_crops_loss": "Global-crop DINO loss",
    "ibot_loss": "iBOT loss",
    "koleo_loss": "KoLeo loss",
    "lr": "Learning rate",
    "wd": "Weight decay",
    "mom": "Teacher momentum",
}


def metric_title(metric: str) -> str:
    """How a reader calls a logged metric; a key that we do not know stays as it is."""
    return TITLES.get(metric, metric)


def make_legible(text: str) -> str:
    """A sentence with the keys of a log's columns written as a reader calls them."""
    for key, title in TITLES.items():
        inside = title if title.startswith("KoLeo") else title[0].lower() + title[1:]
        text = re.sub(rf"^{key}\b", title, text)
        text = re.sub(rf"(?<![\w.-]){key}(?![\w=-])", inside, text)
    return text


def typeset(text: str) -> str:
    """A sentence with true minus signs, and percent signs that stay with their number."""
    return re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", re.sub(r"(?<![\w.)\]/-])-(?=[\d.])", MINUS, text))


def printable(text: str) -> str:
    """The text on one line, with every character that could steer what stands around it replaced."""
    return "".join(character if character.isprintable() else " " if character.isspace() else "�" for character in text)


def plural(count: int, one: str, many: str = "") -> str:
    """`1 run`, `3 runs`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def render_number(value: float | None, *, digits: int = 4) -> str:
    """`digits` significant digits: 625,000 · 12.14 · 0.0035 · 3.5e−4 · NaN · – for None."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else f"{MINUS}∞")
    if value == 0:
        return "0"
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{int(value):,}".replace("-", MINUS)
    size = math.floor(math.log10(abs(value)))
    if not -4 < size < 12:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{_trimmed(mantissa)}e{int(exponent)}".replace("-", MINUS)
    return _trimmed(f"{value:,.{max(digits - 1 - size, 0)}f}").replace("-", MINUS)


def render_fixed(value: float | None, *, decimals: int, signed: bool = False) -> str:
    """A number with a fixed count of decimals, for columns and intervals; `signed` writes the plus as well."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return render_number(value)
    text = f"{value:{'+' if signed else ''},.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def render_count(value: float) -> str:
    """An axis label: 1 · 10 · 2.5k · 625k · 1.25M · 1.92G."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def render_bytes(value: float) -> str:
    """A size in decimal units: 340 B · 1.3 kB · 31 MB."""
    for size, suffix in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {suffix}"
    return f"{value:.0f} B"


def render_duration(seconds: float) -> str:
    """A stretch of time: 0.4 s · 12 min 5 s · 3 h 20 min · 2 d 4 h."""
    if not math.isfinite(seconds):
        return render_number(seconds)
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for size, name, small, small_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {name} {rest} {small_name}" if rest else f"{whole // size} {name}"
    raise AssertionError(f"{seconds} s is at least a minute")


def render_value(value: Any) -> str:
    """A value of a source or a configuration, verbatim but legible: lists and mappings on one line."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1000:
        return f"{value:.1f}".replace("-", MINUS)  # 82.0 % and 82 % are not the same statement
    if isinstance(value, (int, float)):
        return render_number(value, digits=7)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {render_value(item)}" for key, item in value.items()) or "{}"
    if isinstance(value, (list, tuple)):
        return ", ".join(render_value(item) for item in value) or "none"
    return str(value)


def _trimmed(text: str) -> str:
    """Without the zeros that end a decimal fraction."""
    return text.rstrip("0").rstrip(".") if "." in text else text
