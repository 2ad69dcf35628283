"""A row's name in, its composed and validated mapping out, with the place where every key was written.

Hydra composes `experiments/<row>.yaml` with the config groups that its `defaults` list names; JSON Schema validates.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduce.errors import SpecError
from reproduce.places import Document, Place, did_you_mean, load_document
from reproduce.validate import load_schema, validate

ROOT_VARIABLE = "FRANCA_REPRODUCE_ROOT"
NOT_ROWS = {"sources"}  # files beside the rows that are none


@dataclass(frozen=True)
class Composed:
    """A row as plain nested dicts and lists. `documents` are its files with the key each is merged under, in order."""

    row: str
    mapping: Mapping[str, Any]
    documents: tuple[tuple[str, Document], ...]

    @property
    def path(self) -> Path:
        """The row's own file."""
        return self.documents[-1][1].path

    def place_of(self, key: str) -> Place:
        """Where the value of a dotted key was written: the last file that writes it, or the nearest key above it."""
        return find_place(key, documents=self.documents)


def find_place(key: str, *, documents: Sequence[tuple[str, Document]]) -> Place:
    """The place of a dotted key of the composed row; the row's own file, the last document, where none writes it."""
    while key:
        for package, document in reversed(documents):
            local = key.removeprefix(f"{package}.") if package else key
            if (not package or key.startswith(f"{package}.")) and local in document.lines:
                return Place(document.path, document.lines[local])
        key = key.rpartition("[" if key.endswith("]") else ".")[0]
    return Place(documents[-1][1].path, 1)


def find_root(root: Path | None = None) -> Path:
    """The project's root, which holds `experiments/`.

    An explicit `root`, else the environment variable FRANCA_REPRODUCE_ROOT, else the nearest folder above the working
    directory that has `experiments/schema.json`, else the folder that this package lies in.
    """
    named = root or (Path(os.environ[ROOT_VARIABLE]) if os.environ.get(ROOT_VARIABLE) else None)
    here = Path.cwd()
    candidates = [named] if named else [here, *here.parents, Path(__file__).resolve().parent.parent]
    for candidate in candidates:
        if (candidate / "experiments" / "schema.json").is_file():
            return candidate.resolve()
    if named:
        raise SpecError(
            "no experiments/schema.json there",
            path=named,
            mend=f"set {ROOT_VARIABLE} to the project's root, or unset it",
        )
    raise SpecError("no experiments/schema.json above this folder", path=here, mend="change to the project's folder")


def row_paths(root: Path) -> dict[str, Path]:
    """The file of every row, by name, in alphabetical order."""
    folder = root / "experiments"
    return {path.stem: path for path in sorted(folder.glob("*.yaml")) if path.stem not in NOT_ROWS}


def row_path(row: str, *, root: Path) -> Path:
    """The file of a row. Raises `SpecError` naming the nearest row."""
    paths = row_paths(root)
    if row not in paths:
        mend = did_you_mean(row, paths) if paths else "write experiments/<row>.yaml"
        raise SpecError(f"unknown row {row!r}", path=root / "experiments", mend=mend)
    return paths[row]


def compose(row: str, *, root: Path) -> Composed:
    """Compose and validate a row. Raises `SpecError` with the file and line of the first mistake."""
    path = row_path(row, root=root)
    documents = tuple(_documents(load_document(path), package="", group="", root=root, above=()))
    composed = Composed(row, _compose_with_hydra(row, documents=documents), documents)
    schema = load_schema(root)
    validate(composed.mapping, schema=schema, definitions=schema["$defs"], place_of=composed.place_of)
    if composed.mapping["row"] != row:
        place = composed.place_of("row")
        raise SpecError(
            f"the file calls itself {composed.mapping['row']}", path=place.path, line=place.line, mend=f"row: {row}"
        )
    return composed


def _compose_with_hydra(row: str, *, documents: Sequence[tuple[str, Document]]) -> Mapping[str, Any]:
    """Hydra's composition as plain data, whatever Hydra application this process may be in; nothing is logged."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(documents[-1][1].path.parent), version_base=None):
            content = OmegaConf.to_container(hydra.compose(row), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise _spec_error(error, documents=documents) from error
    finally:
        GlobalHydra.instance().clear()
        GlobalHydra.instance().hydra = outer
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _spec_error(error: Exception, *, documents: Sequence[tuple[str, Document]]) -> SpecError:
    """Hydra's error with its place: where it names no key, the files are read one by one to find the one at fault."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key = getattr(error, "full_key", None) or ""
    place = find_place(key, documents=documents)
    for package, document in documents if not key else ():
        try:
            OmegaConf.create(dict(document.content))
        except OmegaConfBaseException as cause:
            local, error = cause.full_key or "", cause
            key = f"{package}.{local}" if package else local
            place = Place(document.path, document.lines.get(local, 1))
            break
    said = (str(error) or type(error).__name__).strip().splitlines()[0]
    mend = "mend the ${...}, or write it without the $" if key else "check the file's `defaults` list"
    message = f"{key or 'the row'} cannot be composed: {said}"
    return SpecError(message, path=place.path, line=place.line, mend=mend)


def _documents(
    document: Document, *, package: str, group: str, root: Path, above: tuple[Path, ...]
) -> Iterator[tuple[str, Document]]:
    """The files of a `defaults` list in the order in which they are merged, with the key each is merged under."""
    if document.path in above:
        raise SpecError("the file's defaults lead back to it", path=document.path, line=1, mend="remove one of them")
    entries = document.content.get("defaults", [])
    if not isinstance(entries, list):
        line = document.lines["defaults"]
        raise SpecError("defaults is no list", path=document.path, line=line, mend="write `- group: name` lines")
    own_placed = False
    for index, entry in enumerate(entries):
        if entry == "_self_":
            own_placed = True
            yield package, document
            continue
        line = document.lines.get(f"defaults[{index}]", 1)
        for name, child_package in _options(entry, document=document, line=line, package=package, group=group):
            path = _group_file(name, document=document, line=line, root=root)
            child_group = name.rpartition("/")[0]
            yield from _documents(
                load_document(path), package=child_package, group=child_group, root=root, above=(*above, document.path)
            )
    if not own_placed:
        yield package, document


def _options(entry: Any, *, document: Document, line: int, package: str, group: str) -> Iterator[tuple[str, str]]:
    """(file below experiments/, key it is merged under) of one entry: `name`, `group: name`, `group@key: [names]`."""
    if isinstance(entry, str):
        yield (f"{group}/{entry}" if group else entry), package
        return
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise SpecError(
            f"defaults: {entry!r} is no entry",
            path=document.path,
            line=line,
            mend="write `- group: name` or `- _self_`",
        )
    key, names = next(iter(entry.items()))
    below, _, target = str(key).partition("@")
    for name in names if isinstance(names, list) else [names]:
        parts = (package, target or below.replace("/", "."))
        yield f"{group}/{below}/{name}".lstrip("/"), ".".join(part for part in parts if part)


def _group_file(name: str, *, document: Document, line: int, root: Path) -> Path:
    folder = root / "experiments" / Path(name).parent
    path = folder / f"{Path(name).name}.yaml"
    if not path.is_file():
        there = [file.stem for file in sorted(folder.glob("*.yaml"))]
        if there:
            raise SpecError(f"no config {name}", path=document.path, line=line, mend=did_you_mean(path.stem, there))
        groups = [child.name for child in sorted((root / "experiments").iterdir()) if child.is_dir()]
        mend = did_you_mean(folder.name, groups)
        raise SpecError(f"no config group {folder.name}", path=document.path, line=line, mend=mend)
    return path
