"""A plain mapping and a schema in, nothing or one `SpecError` out: the first mistake, its file and line, its mend."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from reproduce.errors import SpecError
from reproduce.places import Place, did_you_mean, nearest

COMPARISONS = {
    "minimum": "less than",
    "maximum": "more than",
    "exclusiveMinimum": "not more than",
    "exclusiveMaximum": "not less than",
}


def validate(
    mapping: Mapping[str, Any],
    *,
    schema: Mapping[str, Any],
    definitions: Mapping[str, Any],
    place_of: Callable[[str], Place | None],
) -> None:
    """Check `mapping` against a JSON Schema (draft 2020-12) whose `$ref`s point into `definitions` (`$defs`).

    Stricter than JSON: 3.0 is no integer, and a number is finite. `place_of` gives the place of a dotted key,
    or None for a value that stands in no file.
    """
    import jsonschema

    base = jsonschema.Draft202012Validator
    checker = base.TYPE_CHECKER.redefine("integer", _is_integer).redefine("number", _is_number)
    kind: Any = jsonschema.validators.extend(base, type_checker=checker)  # type: ignore[no-untyped-call]
    errors = list(kind({**schema, "$defs": definitions}).iter_errors(mapping))
    if errors:
        raise min((_spec_error(error, place_of) for error in errors), key=_order)


def dotted(path: Any) -> str:
    """`recipe.crops.global_scale[0]` for the path of a JSON Schema error."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _order(error: SpecError) -> tuple[bool, str, int]:
    """Unknown keys first: a misspelt key is also a missing one, and the misspelling is the mistake."""
    return ("unknown key" not in error.message, str(error.path), error.line or 0)


def _spec_error(error: Any, place_of: Callable[[str], Place | None]) -> SpecError:
    key = dotted(error.absolute_path)
    if error.validator == "anyOf" and (within := _of_its_kind(error)):
        inner = min((_spec_error(cause, place_of) for cause in within), key=_order)
        place = Place(inner.path, inner.line) if inner.path and inner.line else None
        return _at(place, inner.message, f"{inner.mend}; {_wanted(error, key)}")
    if error.validator == "additionalProperties":
        return _unknown_key(error, key, place_of)
    if error.validator == "required":
        missing = next(name for name in error.validator_value if name not in error.instance)
        name = f"{key}.{missing}" if key else missing
        return _at(place_of(key), f"missing key {name}", f"add `{missing}:`{_explain(error.schema, missing)}")
    if "propertyNames" in error.absolute_schema_path:
        place = place_of(f"{key}.{error.instance}")
        return _at(place, f"{key}: {error.instance!r} is no name", "use lower-case letters, digits and _")
    return _at(place_of(key), f"{key}: {_complaint(error)}", _wanted(error, key))


def _of_its_kind(error: Any) -> list[Any]:
    """The mistakes inside the choice whose type the value has; none where it has that of no choice."""
    kinds = {cause.schema_path[0] for cause in error.context if cause.validator == "type" and not cause.relative_path}
    return [cause for cause in error.context if cause.schema_path[0] not in kinds]


def _unknown_key(error: Any, key: str, place_of: Callable[[str], Place | None]) -> SpecError:
    known = list(error.schema["properties"])
    name = next(str(name) for name in error.instance if name not in known)
    full = f"{key}.{name}" if key else name
    taken = [word for word in known if word not in error.instance]
    near = nearest(name, taken)
    mend = f"did you mean {near}?" if near else f"remove it; {did_you_mean(name, known)}"
    return _at(place_of(full), f"unknown key {full}", mend)


def _complaint(error: Any) -> str:
    """What is wrong with the value, in words."""
    value, limit = error.instance, error.validator_value
    match error.validator:
        case "type":
            return f"{value!r} is not {_type_name(limit)}"
        case "enum":
            return f"{value!r} is not one of {', '.join(map(str, limit))}"
        case "minItems" | "maxItems":
            return f"{len(value)} {'value' if len(value) == 1 else 'values'} where {limit} belong"
        case "minLength":
            return "the text is empty"
        case "uniqueItems":
            return f"{value} holds a value twice"
        case "pattern":
            return f"{value!r} does not have the form {limit}"
        case "anyOf":
            kinds = [cause.validator_value for cause in error.context if cause.validator == "type"]
            return f"{value!r} is not {_type_name(kinds)}"
    return f"{value} is {COMPARISONS[error.validator]} {limit}"


def _wanted(error: Any, key: str) -> str:
    """What belongs there: the nearest choice, or the schema's own description."""
    if error.validator == "enum" and (near := nearest(str(error.instance), map(str, error.validator_value))):
        return f"did you mean {near}?"
    description = error.schema.get("description")
    if error.validator == "anyOf":
        return f"{key} is {description}"
    kind = _type_name(error.schema["type"]) if "type" in error.schema else "one of the choices"
    return f"{key} is {kind}: {description}" if description else f"{key} is {kind}"


def _explain(schema: Mapping[str, Any], name: str) -> str:
    description = schema["properties"].get(name, {}).get("description")
    return f" ({description})" if description else ""


def _type_name(kind: Any) -> str:
    names = {
        "object": "a mapping",
        "array": "a list",
        "string": "a text",
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "null": "null",
    }
    kinds = kind if isinstance(kind, list) else [kind]
    return " or ".join(names.get(item, str(item)) for item in kinds)


def _at(place: Place | None, message: str, mend: str) -> SpecError:
    if place is None:
        return SpecError(message, mend=mend)
    return SpecError(message, path=place.path, line=place.line, mend=mend)


def _is_integer(checker: Any, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(checker: Any, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def load_schema(root: Path) -> Mapping[str, Any]:
    """`experiments/schema.json` of the project at `root`."""
    import json

    path = root / "experiments" / "schema.json"
    try:
        schema: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise SpecError(f"not JSON: {error.msg}", path=path, line=error.lineno, mend="mend the syntax") from error
    return schema
