"""`experiments/sources.yaml` in, what a row may cite out: every source by its id."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reproduce.errors import SpecError
from reproduce.places import Document, Place, did_you_mean, load_document
from reproduce.validate import load_schema, validate

LOCATORS = {"T": "Table ", "S": "§", "App": "Appendix ", "Alg": "Algorithm ", "Fig": "Figure "}


@dataclass(frozen=True)
class Source:
    """Where a value stands. `ref` is `owner/name:path@commit` or a paper's number; `locator` its table or section."""

    id: str
    kind: Literal["document", "config", "code", "script", "log", "paper", "review", "release", "computed", "ours"]
    ref: str
    title: str
    commit: str | None
    blob_sha1: str | None
    note: str | None
    locator: str | None = None

    def __str__(self) -> str:
        return f"{self.title}, {self.locator}" if self.locator else self.title


def load_sources(root: Path) -> dict[str, Source]:
    """Every source by id. Raises `SpecError` with file and line where the list is not what the schema says."""
    document = load_document(root / "experiments" / "sources.yaml")
    definitions = load_schema(root)["$defs"]
    validate(
        document.content,
        schema=definitions["sources"],
        definitions=definitions,
        place_of=lambda key: Place(document.path, document.lines.get(key, 1)),
    )
    sources = [
        _in_repository(id_, file, release)
        for release in document.content["repositories"]
        for id_, file in release["files"].items()
    ]
    sources += [_elsewhere(id_, source) for id_, source in document.content["others"].items()]
    _check_unique(sources, document)
    return {source.id: source for source in sources}


def cite(citation: str, *, sources: Mapping[str, Source], place: Place) -> Source:
    """The source of `id` or `id#locator`, e.g. `paper.franca#T8`. Raises `SpecError` naming the nearest id."""
    id_, _, locator = citation.partition("#")
    if id_ not in sources:
        mend = f"{did_you_mean(id_, sources)} or add it to experiments/sources.yaml"
        raise SpecError(f"unknown source {id_}", path=place.path, line=place.line, mend=mend)
    return dataclasses.replace(sources[id_], locator=_spell_out(locator) if locator else None)


def _in_repository(id_: str, file: Mapping[str, Any], release: Mapping[str, Any]) -> Source:
    at = f"{file['path']}@{release['commit'][:8]}"
    return Source(
        id=id_,
        kind=file["kind"],
        ref=f"{release['repository']}:{at}",
        title=f"{release['name']} {at}",
        commit=release["commit"],
        blob_sha1=file.get("blob_sha1"),
        note=release.get("note"),
    )


def _elsewhere(id_: str, source: Mapping[str, Any]) -> Source:
    return Source(
        id=id_,
        kind=source["kind"],
        ref=source["ref"],
        title=source["title"],
        commit=None,
        blob_sha1=None,
        note=source.get("note"),
    )


def _check_unique(sources: list[Source], document: Document) -> None:
    ids = [source.id for source in sources]
    for id_ in ids:
        if ids.count(id_) > 1:
            line = max(line for key, line in document.lines.items() if key.endswith(f".{id_}"))
            raise SpecError(f"{id_} stands twice", path=document.path, line=line, mend="rename one of the two")


def _spell_out(locator: str) -> str:
    """`T8` as `Table 8`, `S2.1` as `§2.1`."""
    match = re.match(r"(T|S|App|Alg|Fig)(?=[A-Z0-9])", locator)
    return LOCATORS[match[1]] + locator[match.end() :] if match else locator
