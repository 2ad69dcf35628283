"""Plain values in, JSON text out that steers no terminal, whatever a log named its columns."""

import json
import re
from typing import Any

DOUBTED = re.compile(r"[^\x00-\x7e]")  # JSON itself escapes what comes before


def render_json(content: Any) -> str:
    """JSON with an item a line. What cannot be printed, or has no form in UTF-8, is escaped; it reads back the same.

    Raises ValueError where a number is not finite.
    """
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    return DOUBTED.sub(lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text)
