"""L0, the images that a run counted when it opened its training set: against its recipe and the reference runs.

And those that it saw again: upstream's trainer starts its data anew with every process.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reproduce.checks import Check, Evidence, plural, the_references
from reproduce.layers.configuration import known_recipe
from reproduce.lineage import History
from reproduce.log_head import flatten
from reproduce.problems import Problem
from reproduce.spec import Spec

TOLERANCE = 1e-3  # relative: lists of the web's images are never downloaded to the last one
BLANK = Check(
    id="data",
    layer="L0",
    title="Training images",
    state="unknown",
    finding="No environment.json says what the run trained on.",
    value=None,
    limit=TOLERANCE,
    unit="relative",
    iteration=None,
    evidence=(),
    says="As many images and classes as the recipe states; the references' own, where fingerprints are known.",
    cannot_say="Whether they are the published images: counts do not tell images apart.",
)


def check_data(mine: History, *, references: Sequence[History], spec: Spec | None) -> tuple[Check, ...]:
    """What the run's environment.json says of its data; no check where nobody says anything of data."""
    if mine.data is None:
        return (BLANK,) if spec is not None else ()
    stated = {"images": spec.recipe.data.images, "classes": spec.recipe.data.classes} if spec else _stated(mine)
    found = [*_miscounted(mine.data, stated), *_others(mine.data, references)]
    images = f"{mine.data['images']:,} images of {mine.data['dataset']}"
    value = abs(mine.data["images"] / stated["images"] - 1) if stated.get("images") else None
    evidence = (Evidence(str(mine.path / "environment.json"), None, f"data: {dict(_plain(mine.data))}"),)
    if found:
        finding = f"Trained on {'; '.join(found)}."
        return (dataclasses.replace(BLANK, state="warn", finding=finding, value=value, evidence=evidence),)
    same = [run for run in references if _fingerprint(run.data) == _fingerprint(mine.data) is not None]
    whose = f", those of {the_references(len(same))}" if same else ""
    known = dataclasses.replace(BLANK, state="pass" if stated or same else "unknown", value=value)
    return (dataclasses.replace(known, finding=f"{images}{whose}.", evidence=evidence),)


def find_replay(history: History, *, spec: Spec | None) -> Problem | None:
    """The resumes after which a run saw its first samples again, by its own recipe; without one, by its row's.

    Of upstream's configurations Franca's alone has the key `dino.MRL`; DINOv2 draws other samples after a resume.
    """
    replayed = known_recipe(history).get("quirks.data_replayed_on_resume")
    if replayed is None and history.head.config is not None:
        replayed = "dino.MRL" in flatten(history.head.config)
    if replayed is None and spec is not None:
        replayed = spec.recipe.quirks.data_replayed_on_resume
    resumed = [launch for launch in history.lineage.launches if launch.kind == "resume"]
    if not replayed or not resumed:
        return None
    message = (
        f"the trainer starts its data again with the first sample on every resume, so it saw again what it had begun "
        f"with: {plural(len(resumed), 'resume')}, the first at iteration {resumed[0].start:,}"
    )
    return Problem(str(history.log_path or history.path), resumed[0].first_line, message)


def _stated(mine: History) -> dict[str, Any]:
    recipe = known_recipe(mine)
    return {name: recipe[f"data.{name}"] for name in ("images", "classes") if recipe.get(f"data.{name}")}


def _miscounted(data: Mapping[str, Any], stated: Mapping[str, Any]) -> Iterator[str]:
    images, classes = stated.get("images"), stated.get("classes")
    if images and abs(data["images"] / images - 1) > TOLERANCE:
        yield f"{data['images']:,} images, not {images:,} ({data['images'] / images - 1:+.1%})"
    if classes and data["classes"] not in (0, classes):
        yield f"{data['classes']:,} classes, not {classes:,}"


def _others(data: Mapping[str, Any], references: Sequence[History]) -> Iterator[str]:
    """Reference runs that say that they trained on other images of the same name."""
    known = [run.data for run in references if run.data and run.data["dataset"] == data["dataset"]]
    prints = {str(other["fingerprint"]) for other in known if _fingerprint(other)}
    if prints and _fingerprint(data) and str(data["fingerprint"]) not in prints:
        yield f"images with the fingerprint {data['fingerprint']}, not {' or '.join(sorted(prints))} as the references"


def _fingerprint(data: Mapping[str, Any] | None) -> str | None:
    return data.get("fingerprint") if data else None


def _plain(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Without the manifest, which lists a dataset's files."""
    return ((name, value) for name, value in data.items() if not isinstance(value, (Mapping, list)))
