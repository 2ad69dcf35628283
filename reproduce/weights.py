"""A row's released weights evaluated by the published protocol: a spec and a site in, a verdict in `reports/` out.

The trainer's own evaluation runs as a process of its own, so nothing here needs torch.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from franca.config import Execution, TrainConfig, dump_config
from reproduce.errors import FailedEvaluationError, SiteError, WeightsFileError
from reproduce.files import short_path, write_whole
from reproduce.released import Release, Say, choose_release, get_files, unpack
from reproduce.resolve import visible_gpus
from reproduce.sites import Site
from reproduce.spec import Spec
from reproduce.terminal import printable_lines
from reproduce.weights_verdict import EvaluatedFile, WeightsVerdict, judge_weights, verdict_path

PUBLISHED_BATCH = 1024  # images: dinov2 trains its linear probe on eight GPUs with 128 each
PROTOCOLS = ("knn", "linear", "logreg")
NO_ROOT = ("digits",)  # ships with a package


@dataclass(frozen=True)
class Protocol:
    """How the weights are evaluated. `px` is the side of the images; None is what the file's positions are made for."""

    names: tuple[str, ...] = ("knn", "linear")
    px: int | None = None
    device: str | None = None
    linear_iterations: int = 12_500
    linear_batch: int = PUBLISHED_BATCH


def evaluate_weights(
    spec: Spec, *, site: Site, protocol: Protocol, given: Sequence[Path], anyway: bool, say: Say
) -> tuple[WeightsVerdict, Path]:
    """Get the row's released weights, evaluate them and write the verdict; returns it and its path.

    `given` are files in place of a download. Raises `WeightsFileError` on weights that cannot be had, or that were
    withdrawn unless `anyway`; `SiteError` where the evaluation's images are not here.
    """
    release = choose_release(spec, px=protocol.px)
    _check_protocol(protocol)
    if release.doubts and not anyway:
        listed = "; ".join(release.doubts)
        raise WeightsFileError(f"{release.names[0]}: {listed}", mend="--anyway evaluates it nevertheless")
    for doubt in release.doubts:
        say(f"warning: {release.names[0]}: {doubt}")
    # One level below the row's runs: it is none of them
    folder = spec.root / "runs" / spec.name / "weights" / str(protocol.px or release.grid_px or "own")
    try:
        config = make_config(spec, site=site, device=protocol.device)
    except SiteError:
        if given:  # what is wrong with a file costs less to mend than what the site lacks, and is said first
            check_weights(spec, release, given=given, folder=folder, say=say)
        raise
    files = get_files(release, root=spec.root, given=given, say=say)
    file = unpack(release, files, folder=spec.root / "weights" / spec.row, say=say)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.yaml", dump_config(config))
    say(f"{short_path(file)}: evaluating")
    evaluation = run_evaluation(file, folder=folder, protocol=protocol)
    evaluated = tuple(
        EvaluatedFile(item.name, item.url, item.sha256, item.known, listed.status)
        for item, listed in zip(files, release.files, strict=True)
    )
    verdict = judge_weights(
        spec, evaluation, files=evaluated, listed_px=release.grid_px, grid_px=evaluation.get("grid_px")
    )
    path = verdict_path(spec.row, px=verdict.px, root=spec.root)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, verdict.to_json())
    return verdict, path


def _check_protocol(protocol: Protocol) -> None:
    unknown = [name for name in protocol.names if name not in PROTOCOLS]
    if unknown or "knn" not in protocol.names:
        raise WeightsFileError(
            f"--protocol {','.join(protocol.names)}", mend=f"knn, and if you like {' and '.join(PROTOCOLS[1:])}"
        )


def check_weights(spec: Spec, release: Release, *, given: Sequence[Path], folder: Path, say: Say) -> None:
    """Raise `WeightsFileError` unless files hold a model of the row. No images are needed."""
    files = get_files(release, root=spec.root, given=given, say=say)
    file = unpack(release, files, folder=spec.root / "weights" / spec.row, say=say)
    folder.mkdir(parents=True, exist_ok=True)
    config = TrainConfig(
        spec.row, spec.version, spec.fingerprint, spec.seed, spec.recipe, _make_execution(device="cpu", workers=0)
    )
    write_whole(folder / "config.yaml", dump_config(config))
    _run_trainer([str(file.resolve()), "--config", str(folder / "config.yaml"), "--check"], file=file, folder=folder)


def make_config(spec: Spec, *, site: Site, device: str | None) -> TrainConfig:
    """The configuration that the evaluation is given: the row's recipe, one process, the site's evaluation images.

    Raises `SiteError` where the site does not say where those lie.
    """
    dataset = spec.recipe.data.evaluation_dataset
    root = site.data_roots.get(dataset)
    if root is None and dataset not in NO_ROOT:
        mend = f"write under {site.name}: in {site.paths[0]}: data_roots: {{{dataset}: /path/to/{dataset}}}"
        raise SiteError(f"data_roots.{dataset} is not set: the images that weights are evaluated on", mend=mend)
    on_cuda = site.device == "cuda" or (site.device == "auto" and spec.resources.gpus > 0 and visible_gpus() > 0)
    execution = _make_execution(
        device="cuda" if (device or ("cuda" if on_cuda else "cpu")) == "cuda" else "cpu",
        workers=site.workers,
        evaluation_root=str(spec.root / Path(root).expanduser()) if root else "",
    )
    return TrainConfig(spec.row, spec.version, spec.fingerprint, spec.seed, spec.recipe, execution)


def run_evaluation(file: Path, *, folder: Path, protocol: Protocol) -> dict[str, Any]:
    """Run `franca evaluate` on a weights file; returns the content of its `evaluation.json`.

    Its progress goes to the screen. Raises `WeightsFileError` where it refuses the file, `FailedEvaluationError` where
    it fails otherwise.
    """
    words = [str(file.resolve()), "--config", str(folder / "config.yaml")]
    words += ["--out", str(folder), "--protocol", ",".join(protocol.names), "--augment"]
    words += ["--linear-iterations", str(protocol.linear_iterations), "--linear-batch", str(protocol.linear_batch)]
    words += ["--size", str(protocol.px)] if protocol.px else []
    _run_trainer(words, file=file, folder=folder)
    content: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return content


def _make_execution(*, device: Literal["cpu", "cuda"], workers: int, evaluation_root: str = "") -> Execution:
    """How one process evaluates; what only training asks for is of no account."""
    return Execution(
        device=device,
        processes=1,
        batch_per_process=1,
        accumulation=1,
        workers=workers,
        threads=0,
        data_root="",
        evaluation_root=evaluation_root,
        checkpoint_period_iterations=1,
        checkpoints_kept=1,
        log_period_iterations=1,
        until_iteration=0,
    )


def _run_trainer(words: Sequence[str], *, file: Path, folder: Path) -> None:
    """Run `franca evaluate`, showing what it says; what it refuses and what it fails of are raised."""
    command = [sys.executable, "-m", "franca.evaluate", *words]
    said = ""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said = line.strip() or said
            if not line.startswith("error: "):
                print(line, end="", file=sys.stderr)
    code = process.returncode
    if code == 2:
        mend = "give a file of this row's released weights, as it was released; one that came damaged has to come again"
        raise WeightsFileError(said.removeprefix("error: ") or f"{file}: the evaluation was refused", mend=mend)
    if code:
        raise FailedEvaluationError(f"the evaluation failed: {said or f'exit code {code}'}", path=folder)


def render_verdict(verdict: WeightsVerdict) -> str:
    """A verdict as lines to read: the outcome, every published value beside the measured one, what is wrong."""
    lines = [f"{verdict.outcome.upper()}  {verdict.sentence}"]
    for item in verdict.comparisons:
        mine = f"{item.mine:.2f} ({item.difference:+.2f})" if item.difference is not None else "–"
        where = f"{item.sources}{f', {item.condition}' if item.condition else ''}"
        trusted = " trusted" if item.target else ""
        lines.append(f"  {item.metric:<12} {item.published:6.2f}{trusted:<8}  {mine:<16} {item.state:<13} {where}")
    return printable_lines("\n".join([*lines, *(f"  note: {problem}" for problem in verdict.problems)]))
