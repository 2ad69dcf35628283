"""YAML files in, the line of every dotted key out: an error can name the place where a value was written."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from reproduce.errors import SpecError

# libyaml's loader where PyYAML was built with it: ten times faster, the same language
LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Place:
    """A line of a file, counted from 1."""

    path: Path
    line: int


@dataclass(frozen=True)
class Document:
    """One YAML file: its plain content, and the line of every dotted key (`values[0]` for an element of a list)."""

    path: Path
    content: Mapping[str, Any]
    lines: Mapping[str, int]


def load_document(path: Path, *, may_be_empty: bool = False) -> Document:
    """Read a YAML file that holds a mapping. Raises `SpecError` with the line of the first mistake."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=LOADER)
        content = yaml.load(text, Loader=LOADER)
    except UnicodeDecodeError as error:
        at = path.read_bytes()[: error.start].count(b"\n") + 1
        raise SpecError("not UTF-8 text", path=path, line=at, mend="save the file as UTF-8") from error
    except yaml.YAMLError as error:
        raise _syntax_error(error, path=path, text=text) from error
    if node is None and may_be_empty:
        return Document(path, {}, {})
    if not isinstance(node, yaml.MappingNode):
        raise SpecError(
            "the file holds no mapping of keys to values", path=path, line=1, mend="write `key: value` lines"
        )
    lines: dict[str, int] = {}
    _collect(node, "", lines, path, ())
    return Document(path, content, lines)


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word that `word` was most likely meant to be, or None. Case does not count."""
    known = {known.casefold(): known for known in words}
    found = difflib.get_close_matches(word.casefold(), known, n=1, cutoff=0.5)
    return known[found[0]] if found else None


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """`did you mean x?`, or the list of all that there is."""
    words = list(words)
    near = nearest(word, words)
    return f"did you mean {near}?" if near else f"there are: {', '.join(words)}"


def _syntax_error(error: yaml.YAMLError, *, path: Path, text: str) -> SpecError:
    """PyYAML's error with the line it names: that of a mark, or of a character that YAML does not allow."""
    if isinstance(error, yaml.reader.ReaderError):
        at = text[: error.position].count("\n") + 1
        return SpecError(f"not YAML: {error.reason}", path=path, line=at, mend="remove the character")
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return SpecError(f"not YAML: {problem}", path=path, line=mark.line + 1 if mark else None, mend="mend the syntax")


def _collect(node: yaml.Node, key: str, lines: dict[str, int], path: Path, above: tuple[int, ...]) -> None:
    """Write the line of every key under `node` into `lines`; duplicate keys and cycles are errors."""
    if id(node) in above:
        raise SpecError(
            f"{key} contains itself",
            path=path,
            line=node.start_mark.line + 1,
            mend="remove the alias that closes the cycle",
        )
    above = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[f"{key}[{index}]"] = item.start_mark.line + 1
            _collect(item, f"{key}[{index}]", lines, path, above)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for name, value in node.value:
            line = name.start_mark.line + 1
            if not isinstance(name, yaml.ScalarNode):
                raise SpecError("a key must be a word", path=path, line=line, mend="quote the key, or mend the braces")
            dotted = f"{key}.{name.value}" if key else str(name.value)
            if name.value in seen:
                raise SpecError(f"{dotted} stands twice", path=path, line=line, mend="remove one of the two")
            seen.add(name.value)
            lines[dotted] = line
            _collect(value, dotted, lines, path, above)
