"""A row's name in, its `Spec` out: what a published table claims, what is run, and what it is judged against."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from franca.config import Recipe, make_config, recipe_fingerprint
from reproduce.compose import Composed, compose, find_root, row_path, row_paths
from reproduce.errors import SpecError
from reproduce.overrides import SEED, Override, apply_overrides, parse_overrides
from reproduce.places import load_document
from reproduce.rules import BrokenRule, broken_rules, broken_start
from reproduce.sources import Source, cite, load_sources
from reproduce.validate import load_schema
from reproduce.versions import check_version

Value = Any  # a number, text, truth value, or a list or mapping of them: what a source states, verbatim


@dataclass(frozen=True)
class ClaimedValue:
    """One published value, never alone: with its sources, and the condition under which it was stated.

    assumed: the sources speak of another row, so this is a fallback and no claim on this one.
    """

    value: Value
    sources: tuple[Source, ...]
    condition: str | None = None
    note: str | None = None
    assumed: bool = False


@dataclass(frozen=True)
class Claim:
    """All that was published of one fact. `recipe_key` is a dotted key of the recipe, where the fact has one.

    run_value: None where the fact is no setting of a run. why: empty where the sources leave no choice.
    tolerance_relative: values this close count as equal, e.g. because one was rounded for print.
    """

    field: str
    label: str
    unit: str | None
    values: tuple[ClaimedValue, ...]
    recipe_key: str | None
    run_value: Value
    why: str
    tolerance_relative: float


@dataclass(frozen=True)
class Metric:
    """A result. `target` is the value that a run is judged against; none where no published value is trustworthy.

    target_why: empty where the metric is not measured here.
    """

    name: str
    label: str
    unit: str
    condition: str | None
    values: tuple[ClaimedValue, ...]
    target: float | None
    target_why: str


@dataclass(frozen=True)
class PublishedLog:
    """The log that a run is held against. `local` lists files and folders, relative to the project's root."""

    state: Literal["published", "never published", "ours"]
    repository: str | None
    commit: str | None
    path: str | None
    blob_sha1: str | None
    local: tuple[str, ...]
    note: str | None

    def here(self, root: Path) -> dict[str, tuple[Path, ...]]:
        """What of each of `local` lies in the project."""
        return {pattern: tuple(sorted(root.glob(pattern))) for pattern in self.local}


@dataclass(frozen=True)
class Weights:
    """One file of released weights; `grid_px` is the side of the image that its position embedding was made for.

    sha256: of the file, where it is known.
    """

    url: str | None
    grid_px: int | None
    status: Literal["published", "withdrawn", "incomplete", "identical to DINOv2-L"]
    sources: tuple[Source, ...]
    note: str | None
    sha256: str | None = None


@dataclass(frozen=True)
class Resources:
    """What the documents say the row was run on. No part of the recipe: it must not change the result.

    gpus: 0 for a row that runs on a CPU. batch_per_gpu: images per process and step.
    """

    gpus: int
    nodes: int | None
    batch_per_gpu: int
    gpu: str | None
    gpu_hours: float | None
    checkpoint_period_iterations: int
    checkpoints_kept: int


@dataclass(frozen=True)
class Margins:
    """What counts as equal, fixed before the launch: false-alarm rate, share of the loss, percentage points of k-NN."""

    alpha: float
    loss_relative: float
    knn_points: float


@dataclass(frozen=True)
class Change:
    """One key of the recipe that the overrides changed."""

    key: str
    old: Value
    new: Value

    def __str__(self) -> str:
        return f"{self.key}: {self.old} → {self.new}"


@dataclass(frozen=True)
class RowSummary:
    """What a table of rows shows; read from the row's file alone. log_here: nothing of the log's files is missing."""

    row: str
    version: int
    title: str
    summary: str
    gpus: int
    gpu_hours: float | None
    log: str
    log_here: bool
    path: Path


@dataclass(frozen=True)
class Spec:
    """A composed and validated row. `variant` is True where overrides changed the recipe, as `changes` lists.

    seed: of the run; `row_seed` is the row's own. fingerprint: of the recipe as it is run.
    """

    row: str
    version: int
    title: str
    summary: str
    seed: int
    row_seed: int
    recipe: Recipe
    fingerprint: str
    resources: Resources
    claims: tuple[Claim, ...]
    metrics: tuple[Metric, ...]
    published_log: PublishedLog
    weights: tuple[Weights, ...]
    margins: Margins
    notes: tuple[str, ...]
    sources: Mapping[str, Source]
    overrides: tuple[str, ...]
    variant: bool
    changes: tuple[Change, ...]
    path: Path

    @property
    def name(self) -> str:
        """`row@version`: the identity of the row."""
        return f"{self.row}@{self.version}"

    @property
    def root(self) -> Path:
        """The project's root, which holds `experiments/`, `runs/` and `logfiles/`."""
        return self.path.parent.parent


def list_rows(*, root: Path | None = None) -> tuple[RowSummary, ...]:
    """Every row's summary, in alphabetical order, from the rows' own files alone: nothing is composed or validated.

    Raises `SpecError` on the first file that is no row.
    """
    summaries, broken = find_rows(root=root)
    if broken:
        raise broken[0]
    return summaries


def find_rows(*, root: Path | None = None) -> tuple[tuple[RowSummary, ...], tuple[SpecError, ...]]:
    """The summaries of the rows whose files can be read, and an error for each of the others."""
    summaries, broken = list[RowSummary](), list[SpecError]()
    for path in row_paths(find_root(root)).values():
        try:
            summaries.append(_summary(path))
        except SpecError as error:
            broken.append(error)
    return tuple(summaries), tuple(broken)


def load_spec(row: str, *, overrides: Sequence[str] = (), root: Path | None = None) -> Spec:
    """Compose, validate and build a row. Raises `SpecError` with the file and line of the first mistake.

    `overrides` are `key=value` texts in Hydra's grammar, with keys relative to the recipe, or `seed=3`.
    """
    root = find_root(root)
    row_path(row, root=root)
    parsed = parse_overrides(overrides, schema=load_schema(root))
    composed = compose(row, root=root)
    recipe = _make_recipe(composed.mapping["recipe"], composed=composed, overrides=())
    check_version(composed, fingerprint=recipe_fingerprint(recipe), root=root)
    changed = apply_overrides(composed.mapping["recipe"], parsed)
    changes = tuple(_changes(composed.mapping["recipe"], changed))
    if changes:
        recipe = _make_recipe(changed, composed=composed, overrides=parsed)
    seed = next((override.value for override in parsed if override.key == SEED), composed.mapping["seed"])
    return _make_spec(composed, recipe=recipe, seed=seed, overrides=tuple(overrides), changes=changes, root=root)


def _summary(path: Path) -> RowSummary:
    content = load_document(path).content
    try:
        resources, log = content["resources"], content["published_log"]
        return RowSummary(
            row=path.stem,
            version=content["version"],
            title=content["title"],
            summary=content["summary"],
            gpus=resources["gpus"],
            gpu_hours=resources["gpu_hours"],
            log=log["state"],
            log_here=all(any(path.parent.parent.glob(pattern.lstrip("/"))) for pattern in log["local"]),
            path=path,
        )
    except (KeyError, TypeError) as error:
        raise SpecError(f"no {error} in the row", path=path, line=1, mend=f"reproduce audit {path.stem}") from error


def _make_recipe(mapping: Mapping[str, Any], *, composed: Composed, overrides: Sequence[Override]) -> Recipe:
    """The recipe of a validated mapping; contradictions between its keys are errors at the place of one of them."""
    recipe = make_config(Recipe, mapping)
    for rule in (*broken_rules(recipe), *_broken_start(recipe, root=composed.path.parent.parent)):
        if overrides:
            texts = " ".join(override.text for override in overrides)
            raise SpecError(f"with the overrides {texts}, recipe.{rule.key}: {rule.message}", mend=rule.mend)
        place = composed.place_of(f"recipe.{rule.key}")
        raise SpecError(f"recipe.{rule.key}: {rule.message}", path=place.path, line=place.line, mend=rule.mend)
    return recipe


def _broken_start(recipe: Recipe, *, root: Path) -> Iterator[BrokenRule]:
    """Contradictions with the row that the recipe starts from; none where the project has no such row."""
    if recipe.start in row_paths(root):
        theirs = make_config(Recipe, compose(recipe.start, root=root).mapping["recipe"])
        yield from broken_start(recipe.model, row=recipe.start, theirs=theirs.model)


def _changes(old: Any, new: Any, key: str = "") -> Iterator[Change]:
    """The keys at which two recipes differ. A number is the same whether written 1 or 1.0."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in {**old, **new}:
            yield from _changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield Change(key, old, new)


def _make_spec(
    composed: Composed,
    *,
    recipe: Recipe,
    seed: int,
    overrides: tuple[str, ...],
    changes: tuple[Change, ...],
    root: Path,
) -> Spec:
    content = composed.mapping
    cited = _Citations(composed, load_sources(root))
    return Spec(
        row=composed.row,
        version=content["version"],
        title=content["title"],
        summary=content["summary"],
        seed=seed,
        row_seed=content["seed"],
        recipe=recipe,
        fingerprint=recipe_fingerprint(recipe),
        resources=Resources(**content["resources"]),
        claims=tuple(
            _make_claim(field, content["claims"][field], cited, recipe=recipe) for field in _own_first(composed)
        ),
        metrics=tuple(_make_metric(name, metric, cited) for name, metric in content["metrics"].items()),
        published_log=PublishedLog(**{**content["published_log"], "local": tuple(content["published_log"]["local"])}),
        weights=tuple(_make_weights(index, file, cited) for index, file in enumerate(content["weights"])),
        margins=Margins(**content["margins"]),
        notes=tuple(content["notes"]),
        sources=cited.sources,
        overrides=overrides,
        variant=bool(changes),
        changes=changes,
        path=composed.path,
    )


@dataclass(frozen=True)
class _Citations:
    """The sources that a row's values cite, and where the row cites them."""

    composed: Composed
    sources: Mapping[str, Source]

    def of(self, mapping: Mapping[str, Any], key: str) -> tuple[Source, ...]:
        return tuple(
            cite(citation, sources=self.sources, place=self.composed.place_of(f"{key}.sources[{index}]"))
            for index, citation in enumerate(mapping["sources"])
        )

    def values(self, mapping: Mapping[str, Any], key: str) -> tuple[ClaimedValue, ...]:
        return tuple(
            ClaimedValue(
                value=item["value"],
                sources=self.of(item, f"{key}.values[{index}]"),
                condition=item.get("condition"),
                note=item.get("note"),
                assumed=item.get("assumed", False),
            )
            for index, item in enumerate(mapping["values"])
        )


def _own_first(composed: Composed) -> list[str]:
    """The claims' fields: those that the row's own file writes, then those of its groups."""
    return sorted(
        composed.mapping["claims"], key=lambda field: composed.place_of(f"claims.{field}").path != composed.path
    )


def _has(recipe: Recipe, key: str) -> bool:
    value: Any = recipe
    for name in key.split("."):
        if name not in getattr(value, "__dataclass_fields__", ()):
            return False
        value = getattr(value, name)
    return True


def _make_claim(field: str, claim: Mapping[str, Any], cited: _Citations, *, recipe: Recipe) -> Claim:
    key = claim.get("recipe_key")
    if key is not None and not _has(recipe, key):
        place = cited.composed.place_of(f"claims.{field}.recipe_key")
        message = f"claims.{field}.recipe_key: the recipe has no key {key}"
        raise SpecError(
            message, path=place.path, line=place.line, mend=f"reproduce show {cited.composed.row} lists them"
        )
    return Claim(
        field=field,
        label=claim["label"],
        unit=claim.get("unit"),
        values=cited.values(claim, f"claims.{field}"),
        recipe_key=claim.get("recipe_key"),
        run_value=claim.get("run"),
        why=claim.get("why", ""),
        tolerance_relative=claim.get("tolerance_relative", 0.0),
    )


def _make_metric(name: str, metric: Mapping[str, Any], cited: _Citations) -> Metric:
    return Metric(
        name=name,
        label=metric["label"],
        unit=metric["unit"],
        condition=metric.get("condition"),
        values=cited.values(metric, f"metrics.{name}"),
        target=metric.get("target"),
        target_why=metric.get("target_why", ""),
    )


def _make_weights(index: int, file: Mapping[str, Any], cited: _Citations) -> Weights:
    sources = cited.of(file, f"weights[{index}]")
    return Weights(file["url"], file["grid_px"], file["status"], sources, file.get("note"), file.get("sha256"))
