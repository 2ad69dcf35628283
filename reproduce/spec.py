"""One row of a published table: what it claims, what is run, and what it is judged against."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from franca.config import Recipe

Value = Any  # a number, text, truth value, or a list or mapping of them: what a source states, verbatim


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
        return f"{self.title} {self.locator}" if self.locator else self.title


@dataclass(frozen=True)
class ClaimedValue:
    """One published value, never alone: with its sources, and the condition under which it was stated."""

    value: Value
    sources: tuple[Source, ...]
    condition: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Claim:
    """All that was published of one fact. `recipe_key` is a dotted key of the recipe, where the fact has one."""

    field: str
    label: str
    unit: str | None
    values: tuple[ClaimedValue, ...]
    recipe_key: str | None
    run_value: Value
    why: str


@dataclass(frozen=True)
class Metric:
    """A result. `target` is the value that a run is judged against; none where no published value is trustworthy."""

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


@dataclass(frozen=True)
class Weights:
    """One file of released weights; `grid_px` is the side of the image that its position embedding was made for."""

    url: str | None
    grid_px: int | None
    status: Literal["published", "withdrawn", "incomplete", "identical to DINOv2-L"]
    sources: tuple[Source, ...]
    note: str | None


@dataclass(frozen=True)
class Resources:
    """What the documents say the row was run on. No part of the recipe: it must not change the result."""

    gpus: int
    nodes: int | None
    batch_per_gpu: int
    gpu: str | None
    gpu_hours: float | None


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
    """What a table of rows shows; read from the row's file alone."""

    row: str
    version: int
    title: str
    summary: str
    gpus: int
    gpu_hours: float | None
    log: str
    path: Path


@dataclass(frozen=True)
class Spec:
    """A composed and validated row. `variant` is True where overrides changed the recipe, as `changes` lists."""

    row: str
    version: int
    title: str
    summary: str
    seed: int
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
