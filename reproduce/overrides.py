"""`key=value` texts in, typed and checked changes to a recipe out. Hydra's grammar; keys are relative to the recipe."""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reproduce.errors import SpecError
from reproduce.places import nearest
from reproduce.validate import validate

SEED = "seed"
MOST_RUNS = 10_000  # of a sweep: more is a slip of the finger, and takes minutes to list


@dataclass(frozen=True)
class Override:
    """One change: the dotted key below the recipe (or `seed`), its new value, and the text that asked for it."""

    key: str
    value: Any
    text: str


def parse_overrides(texts: Sequence[str], *, schema: Mapping[str, Any]) -> tuple[Override, ...]:
    """Parse and check overrides. Raises `SpecError` naming the nearest key, or what belongs in its place."""
    known = dict(_leaves(schema["$defs"]["recipe"], schema["$defs"], "")) | {SEED: schema["properties"][SEED]}
    overrides = tuple(_parse(text, known=known) for text in texts)
    for index, override in enumerate(overrides):
        if override.key in {other.key for other in overrides[:index]}:
            raise SpecError(f"override {override.text!r}: {override.key} is given twice", mend="keep one of the two")
        _check(override, schema=known[override.key], definitions=schema["$defs"])
    return overrides


def split_sweep(text: str) -> tuple[str, ...]:
    """The single changes that one text of Hydra's sweep syntax names: `seed=1,2` is `seed=1` and `seed=2`.

    Lists, ranges (`seed=range(1,4)`) and globs of choices are understood; anything else is left as it is, for
    `parse_overrides` to take or refuse.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(text)
        if not parsed.is_sweep_override():
            return (text,)
        values = tuple(itertools.islice(parsed.sweep_string_iterator(), MOST_RUNS + 1))
    except HydraException as error:
        raise SpecError(f"override {text!r} is not key=value", mend="write it like seed=1,2,3") from error
    if not 0 < len(values) <= MOST_RUNS:
        said = "names no value" if not values else f"names more than {MOST_RUNS:,} values"
        raise SpecError(f"override {text!r} {said}", mend="write it like seed=1,2,3")
    return tuple(f"{parsed.get_key_element()}={value}" for value in values)


def apply_overrides(recipe: Mapping[str, Any], overrides: Sequence[Override]) -> dict[str, Any]:
    """A copy of the recipe's mapping with the overrides of its keys."""
    changed = copy.deepcopy(dict(recipe))
    for override in overrides:
        if override.key != SEED:
            *parents, name = override.key.split(".")
            target = changed
            for parent in parents:
                target = target[parent]
            target[name] = override.value
    return changed


def _parse(text: str, *, known: Mapping[str, Any]) -> Override:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(text)
        value = _plain(parsed.value())
    except (HydraException, ValueError) as error:
        raise SpecError(f"override {text!r} is not key=value", mend="write it like optim.base_lr=1e-3") from error
    if parsed.type != OverrideType.CHANGE or parsed.is_sweep_override() or parsed.package is not None:
        raise SpecError(
            f"override {text!r} is more than one change of one key", mend="write it like optim.base_lr=1e-3"
        )
    if parsed.key_or_group not in known:
        name = parsed.key_or_group
        raise SpecError(f"override {text!r}: the recipe has no key {name}", mend=_near(name, known))
    return Override(parsed.key_or_group, value, text)


def _near(name: str, known: Mapping[str, Any]) -> str:
    """The nearest key; for a group of keys, the keys in it; for a key inside a value, the value's."""
    above = next((key for key in known if name.startswith(f"{key}.")), None)
    if above is not None:
        return f"set {above} as a whole, to {known[above]['description']}"
    below = [key for key in known if key.startswith(f"{name}.")]
    if below:
        return f"override one of its keys: {', '.join(below)}"
    same = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]]
    if same:
        return f"did you mean {' or '.join(same)}?"
    near = nearest(name, known)
    return f"did you mean {near}?" if near else "the keys stand under `recipe` in experiments/schema.json"


def _check(override: Override, *, schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> None:
    wrapper = {"type": "object", "properties": {override.key: schema}, "additionalProperties": False}
    try:
        validate({override.key: override.value}, schema=wrapper, definitions=definitions, place_of=lambda key: None)
    except SpecError as error:
        raise SpecError(f"override {override.text!r}: {error.message}", mend=error.mend) from error


def _leaves(schema: Mapping[str, Any], definitions: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    """Every dotted key below an object's schema that holds a value, with the value's schema."""
    for name, child in schema["properties"].items():
        child = definitions[child["$ref"].rpartition("/")[2]] if "$ref" in child else child
        dotted = f"{key}.{name}" if key else name
        if "properties" in child:
            yield from _leaves(child, definitions, dotted)
        else:
            yield dotted, child


def _plain(value: Any) -> Any:
    """Hydra's parsed value as plain data: its quoted strings are objects of their own."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    return value.text if hasattr(value, "text") else value
