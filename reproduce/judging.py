"""A run in, its verdict and report out: what `reproduce judge` and `reproduce report` do. Nothing is trained."""

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reproduce.errors import RunError
from reproduce.files import write_whole
from reproduce.lineage import History, load_history
from reproduce.references import load_references
from reproduce.report.badge import render_badge
from reproduce.report.index import IndexEntry, IndexRun, render_index
from reproduce.report.page import render_report
from reproduce.report.provenance import load_provenance
from reproduce.resolve import run_name
from reproduce.runs import margins_sha256, read_provenance, read_state
from reproduce.signatures import load_signed
from reproduce.spec import Spec, list_rows, load_spec
from reproduce.verdict import Verdict, judge
from reproduce.weights_verdict import WeightsVerdict, load_weights_verdicts

MAIN = "main"


@dataclass(frozen=True)
class RunFiles:
    """One run of a row and where its verdict and report lie: those of other runs than the row's own bear its name."""

    spec: Spec
    run: str

    @property
    def folder(self) -> Path:
        return self.spec.root / "runs" / self.spec.name / self.run

    def report(self, suffix: str) -> Path:
        """A file of `reports/` of this run: `json` the verdict, `html` the report, `svg` the badge."""
        name = self.spec.row if self.run == MAIN else f"{self.spec.row}.{self.run}"
        return self.spec.root / "reports" / f"{name}.{suffix}"

    @property
    def command(self) -> str:
        """The line that repeats the run."""
        return shlex.join(("reproduce", "run", self.spec.row, *self.spec.overrides))


def load_run_spec(row: str, *, changes: Sequence[str], seed: int | None) -> Spec:
    """A row with `key=value` changes of its recipe; `seed` is one of them."""
    return load_spec(row, overrides=(*changes, *(() if seed is None else (f"seed={seed}",))))


def find_files(spec: Spec) -> RunFiles:
    """The run of a spec, whether or not it was made yet."""
    return RunFiles(spec, run_name(spec, seed=spec.seed))


def judge_run(files: RunFiles) -> Verdict:
    """Hold the run against the row's reference logs and write the verdict. Raises `RunError` where it has no log."""
    mine, references = _load_histories(files)
    verdict = judge(mine, references, spec=files.spec)
    doubt = _doubt_of_declaration(files)
    if doubt:
        verdict = dataclasses.replace(verdict, problems=(*verdict.problems, doubt))
    path = files.report("json")
    path.parent.mkdir(exist_ok=True)
    write_whole(path, verdict.to_json())
    return verdict


def write_report(files: RunFiles) -> Path:
    """Write report, badge and the index of all rows; the path of the report.

    A row that was never run gets a report of what its documents say. Raises `RunError` for a run that was not judged.
    """
    path = files.report("html")
    path.parent.mkdir(exist_ok=True)
    commands = [files.command] if files.run != MAIN else [files.command, f"dvc repro {files.spec.row}"]
    verdict = load_verdict(files)
    if verdict is None and files.folder.is_dir():
        command = shlex.join(("reproduce", "judge", files.spec.row, *files.spec.overrides))
        raise RunError("the run was not judged yet", path=files.folder, mend=command)
    weights = _load_weights(files.spec)
    if verdict is None:
        text = render_report(None, spec=files.spec, commands=commands, weights=weights)
    else:
        mine, references = _load_histories(files)
        text = render_report(
            verdict,
            mine=mine,
            references=references,
            spec=files.spec,
            provenance=load_provenance(mine, references=references),
            commands=commands,
            vouch=shlex.join(("reproduce", "sign", files.spec.row, *files.spec.overrides, "--name", "YOU")),
            weights=weights,
        )
    write_whole(path, text)
    write_whole(files.report("svg"), render_badge(verdict, name=files.spec.name))
    write_whole(path.parent / "index.html", _render_all(files.spec.root))
    return path


def write_comparison(
    verdict: Verdict, *, mine: History, references: Sequence[History], path: Path, command: Sequence[str]
) -> None:
    """Write the report of logs that were held against one another without a row."""
    provenance = load_provenance(mine, references=references)
    text = render_report(
        verdict, mine=mine, references=references, provenance=provenance, commands=[shlex.join(command)]
    )
    try:
        write_whole(path, text)
    except OSError as error:
        raise RunError(f"cannot be written: {error.strerror}", path=path) from error


def load_verdict(files: RunFiles) -> Verdict | None:
    """The verdict that was written last, or None. Raises `RunError` where its file is damaged or of an older form."""
    path = files.report("json")
    if not path.is_file():
        return None
    try:
        return Verdict.from_json(path.read_text())
    except ValueError as error:
        raise RunError(str(error), path=path, mend=f"reproduce judge {files.spec.row}") from error


def _load_weights(spec: Spec) -> tuple[WeightsVerdict, ...]:
    """What was found of the row's released weights."""
    try:
        return load_weights_verdicts(spec.row, root=spec.root)
    except ValueError as error:
        reports = spec.root / "reports"
        raise RunError(f"a verdict on weights: {error}", path=reports, mend=f"reproduce weights {spec.row}") from error


def _load_histories(files: RunFiles) -> tuple[History, tuple[History, ...]]:
    if not files.folder.is_dir():
        raise RunError("no run here", path=files.folder, mend=files.command)
    return load_history(files.folder), load_references(files.spec.published_log, root=files.spec.root)


def _doubt_of_declaration(files: RunFiles) -> str | None:
    """What is wrong where the margins are not those that were declared before the launch."""
    if not (files.folder / "provenance.json").is_file():
        return f"{files.folder}: no provenance.json: nothing shows what was declared before the launch"
    if read_provenance(files.folder).get("margins_sha256") == margins_sha256(files.spec.margins):
        return None
    return f"{files.folder / 'provenance.json'}: the margins were changed after this run was declared"


def _render_all(root: Path) -> str:
    """The index: every row with the verdicts of its runs and released weights, and what others signed."""
    entries = []
    for row in list_rows(root=root):
        spec = load_spec(row.row, root=root)
        main = RunFiles(spec, MAIN)
        folders = sorted(path.parent for path in main.folder.parent.glob("*/config.yaml"))
        others = tuple(_index_run(RunFiles(spec, path.name)) for path in folders if path.name != MAIN)
        entries.append(
            IndexEntry(
                spec=spec,
                run=_index_run(main) if main.folder.is_dir() or main.report("json").is_file() else None,
                report=_beside(main.report("html")),
                command=f"dvc repro {row.row}",
                others=others,
                weights=_load_weights(spec),
            )
        )
    return render_index(entries, signed=load_signed(root))


def _index_run(files: RunFiles) -> IndexRun:
    """A run as the index shows it. What is damaged in one must not keep the others from being shown."""
    try:
        verdict, state = load_verdict(files), read_state(files.folder)
    except RunError as error:
        return IndexRun(files.run, None, _beside(files.report("html")), str(error))
    how = "not begun" if state is None else f"{state.state}, {state.iteration:,} of {state.of:,} iterations done"
    return IndexRun(files.run, verdict, _beside(files.report("html")), how)


def _beside(report: Path) -> str | None:
    """The name of a report beside the index, if it is there."""
    return report.name if report.is_file() else None
