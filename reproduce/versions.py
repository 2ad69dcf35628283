"""`versions.lock`: the fingerprint of every version of every row, so that no recipe changes under its version.

A JSON object of `row@version` to the first 16 hex digits of the recipe's SHA-256 (`franca.config.recipe_fingerprint`).
"""

import json
from collections.abc import Mapping
from pathlib import Path

from franca.config import Recipe, make_config, recipe_fingerprint
from reproduce.compose import Composed, compose, find_root, row_paths
from reproduce.errors import SpecError


def check_version(composed: Composed, *, fingerprint: str, root: Path) -> None:
    """Raise `SpecError` where the row's recipe is not the one that its version was locked with."""
    row, version = composed.row, composed.mapping["version"]
    locked = load_lock(root).get(f"{row}@{version}")
    place = composed.place_of("version")
    if locked is None:
        raise SpecError(
            f"{row}@{version} is not in versions.lock", path=place.path, line=place.line, mend="reproduce lock"
        )
    if locked != fingerprint:
        raise SpecError(
            f"the recipe of {row}@{version} is not the one that was locked: {fingerprint} is not {locked}",
            path=place.path,
            line=place.line,
            mend=f"undo the change, or write `version: {version + 1}` and run `reproduce lock`",
        )


def write_lock(*, root: Path | None = None) -> tuple[str, ...]:
    """Add the current version of every row to versions.lock; the names that were added.

    A locked version never changes: raises `SpecError` where a recipe did.
    """
    root = find_root(root)
    locked = dict(load_lock(root))
    added = []
    for row in row_paths(root):
        composed = compose(row, root=root)
        fingerprint = recipe_fingerprint(make_config(Recipe, composed.mapping["recipe"]))
        name = f"{row}@{composed.mapping['version']}"
        if name in locked:
            check_version(composed, fingerprint=fingerprint, root=root)
        else:
            locked[name] = fingerprint
            added.append(name)
    if added:
        _lock_path(root).write_text(json.dumps(dict(sorted(locked.items())), indent=2) + "\n", encoding="utf-8")
    return tuple(added)


def load_lock(root: Path) -> Mapping[str, str]:
    """`row@version` to fingerprint; empty where nothing was locked yet."""
    path = _lock_path(root)
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise SpecError(f"not JSON: {error.msg}", path=path, line=error.lineno, mend="git checkout the file") from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise SpecError("not an object of row@version to fingerprint", path=path, mend="git checkout the file")
    return content


def _lock_path(root: Path) -> Path:
    return root / "experiments" / "versions.lock"
