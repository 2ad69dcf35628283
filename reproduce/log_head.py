"""The lines of a text log in, what it says about its run outside the iterations out: configuration, commit, scaling."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from reproduce.labels import numbered
from reproduce.problems import Problem, capped

# dinov2 logging/__init__.py: "{level}{date} {time} {process} {logger} {file}:{line}] {message}".
# Hydra's job logging: "[2026-01-01 12:00:00,123][name][INFO] - {message}". submitit's own: "submitit INFO (…) - …".
STAMPED = re.compile(
    r"(?:[DIWEFC]\d{8} \d\d:\d\d:\d\d \d+ \S+ \S+?:\d+\] "
    r"|\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\]\[[^\[\]]+\]\[[A-Z]+\] - "
    r"|submitit [A-Z]+ \([^()]*\) - )(.*)"
)
STAMPS = frozenset("DIWEFC[s")  # what a stamped line may begin with
SHA = re.compile(r"\bsha: ([0-9a-f]{7,40})\b")
SCALING = re.compile(r"scaling learning rate; (?:base|old): ([\d.e+-]+), new: ([\d.e+-]+)")  # old: DINOv3
ANCHOR = re.compile(r"(?m)(?:^|[\s:\-\[{,])&\w")
GROUP = re.compile(r"(?m)^[\w.-]+:[ ]*$")  # a key whose values stand below it
KEY = re.compile(r"\s*(?:- |[\w.-]+:)")
CONFIGURATIONS = 100  # that are read of a log; one with more launches shows no more of them
MESSAGE_LINES, MESSAGE_CHARACTERS = 2000, 1 << 17  # a dumped configuration has some hundred lines


@dataclass(frozen=True)
class Head:
    """What a text log says about one launch before its first iteration.

    config: the YAML that was dumped there, at `config_line`. scaled_lr: (base, new) of the line "sqrt scaling learning
    rate".
    """

    config: Mapping[str, Any] | None = None
    config_line: int | None = None
    git_sha: str | None = None
    scaled_lr: tuple[float, float] | None = None


def parse_heads(lines: Iterable[str], *, path: str) -> tuple[tuple[Head, ...], tuple[Problem, ...]]:
    """The heads of a log's launches in order, and a problem for each configuration that differs from that before it."""
    heads: list[Head] = []
    problems = []
    sha, scaled, newest_text, read = None, None, "", 0
    for number, text in _config_messages(lines):
        if match := SHA.search(text):
            sha = match[1]
        elif match := SCALING.search(text):
            scaled = _pair(match[1], match[2])
        elif read < CONFIGURATIONS and (config := heads[-1].config if text == newest_text else _parse_config(text)):
            before = heads[-1] if heads else Head(config)
            changed = differing_keys(before.config or {}, config)
            if changed:
                message = f"configuration differs from that at line {before.config_line}: {', '.join(changed[:6])}"
                problems.append(Problem(path, number, message + (", …" if len(changed) > 6 else "")))
            heads.append(Head(config, number, sha, scaled))
            newest_text, read = text, read + (text != newest_text)
        else:
            read += len(GROUP.findall(text)) > 1  # an attempt costs what a configuration does
    return tuple(heads), capped(problems)


def flatten(mapping: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys → values; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, prefix=f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The dotted keys whose values differ, or that only one of two nested mappings has."""
    first, second = flatten(one), flatten(other)
    missing = object()
    return [key for key in {**first, **second} if first.get(key, missing) != second.get(key, missing)]


def _config_messages(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The logged messages that may say what the run is, with the lines that continue them, and their first line.

    Those are one-liners on scaling, and messages that go on with `key: value`; the model's repr, say, does not.
    """
    start, message, size = 0, list[str](), 0
    for number, _, line in numbered(lines):
        match = STAMPED.match(line) if line[:1] in STAMPS else None
        if match:
            if len(message) > 1 or SCALING.search("".join(message)):
                yield start, "\n".join(message)
            start, message, size = number, [match[1]], len(match[1])
        elif len(message) == 1 and not KEY.match(line):
            message = []
        elif message and len(message) < MESSAGE_LINES and size + len(line) < MESSAGE_CHARACTERS:
            message.append(line)
            size += len(line)
    if len(message) > 1 or SCALING.search("".join(message)):
        yield start, "\n".join(message)


def _parse_config(text: str) -> dict[str, Any] | None:
    """A dumped configuration: YAML that holds groups of keys. Anything else (the command line, say) is None."""
    if len(GROUP.findall(text)) < 2:
        return None
    if ANCHOR.search(text):  # no dump of a configuration has one, and a nest of them unfolds without end
        return None
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return None
    if not isinstance(value, dict) or sum(isinstance(item, dict) for item in value.values()) < 2:
        return None
    return {str(key): item for key, item in value.items()}


def _pair(base: str, new: str) -> tuple[float, float] | None:
    try:
        return float(base), float(new)
    except ValueError:
        return None
