"""`dvc.yaml` is fresh, DVC takes it, and a change reruns what depends on it and nothing else."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml

from reproduce.pipeline import JUDGING_CODE, make_stages, render_pipeline
from reproduce.spec import list_rows

ROOT = Path(__file__).parents[1]
DVC = Path(sys.executable).parent / "dvc"
STAGES = ("digits-train", "digits-evaluate", "digits-judge", "digits")


def dvc(project: Path, *arguments: str) -> str:
    result = subprocess.run([DVC, *arguments], cwd=project, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_pipeline_is_fresh() -> None:
    """dvc.yaml is what the rows make of it."""
    assert (ROOT / "dvc.yaml").read_text() == render_pipeline(list_rows(root=ROOT), root=ROOT), (
        "run: reproduce pipeline --write"
    )


def test_every_row_has_its_stages() -> None:
    """Each row can be reproduced by its name, and only rows with a published log fetch one."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for row in list_rows(root=ROOT):
        own = {name.removeprefix(row.row).lstrip("-") for name in make_stages(row, root=ROOT)}
        assert own == {"", "train", "evaluate", "judge"} | ({"fetch"} if row.log == "published" else set())
        assert stages.keys() >= {f"{row.row}-{stage}".rstrip("-") for stage in own}


def modules_behind(names: Iterable[str]) -> Iterator[str]:
    """The files of this project that these modules import, directly or through others."""
    todo, seen = list(names), set[Path]()
    while todo:
        parts = todo.pop().split(".")
        for path in (ROOT.joinpath(*parts).with_suffix(".py"), ROOT.joinpath(*parts, "__init__.py")):
            if path.is_file() and path not in seen:
                seen.add(path)
                yield path.relative_to(ROOT).as_posix()
                for node in ast.walk(ast.parse(path.read_text())):
                    if isinstance(node, ast.ImportFrom) and node.module:
                        todo += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]


def test_judging_depends_on_all_of_its_code() -> None:
    """Every module that a verdict goes through is a dependency of judging, but for those that only read the row."""
    needed = set(modules_behind(["reproduce.verdict"])) - set(modules_behind(["reproduce.spec"]))
    assert {file for file in needed if not file.startswith(JUDGING_CODE)} == set()
    assert all((ROOT / file).exists() for file in JUDGING_CODE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git checkout of the files that the pipeline of the digits row names, as if that row had been run there."""
    tmp_path = tmp_path_factory.mktemp("finished")
    for file in (".dvc/config", ".dvcignore", "dvc.yaml", ".gitignore"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    for folder in ("experiments", "reproduce", "franca"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    stages = yaml.safe_load((tmp_path / "dvc.yaml").read_text())["stages"]
    for name in STAGES:
        outs = [next(iter(out)) for key in ("outs", "metrics") for out in stages[name].get(key, ())]
        for path in (tmp_path / file for file in (*stages[name].get("deps", ()), *outs)):
            if not path.exists():
                folder = path.suffix == ""
                (path if folder else path.parent).mkdir(parents=True, exist_ok=True)
                (path / "file" if folder else path).write_text('{"knn": {"10": 90.0}}')
    dvc(tmp_path, "commit", "--force", *STAGES)
    return tmp_path


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished project."""
    return shutil.copytree(finished, tmp_path / "project")


def stages_to_run(project: Path) -> list[str]:
    """The stages of the digits row that `dvc repro digits` would run."""
    said = dvc(project, "repro", "--dry", "digits")
    return [stage for stage in STAGES if f"Running stage '{stage}'" in said]


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_finished_row_is_left_alone(project: Path) -> None:
    """With nothing changed nothing runs, and DVC can say so without a network, though rows were never run."""
    assert stages_to_run(project) == []
    assert "digits" not in dvc(project, "status", "digits")
    assert "dinov2-B-in21k-train" in dvc(project, "status")
    assert "90" in dvc(project, "metrics", "show", "runs/digits@1/main/evaluation.json")


@pytest.mark.parametrize(
    ("file", "old", "new", "first"),
    [
        ("reproduce/report/report.html", "<", "\n<", "digits"),
        ("reproduce/report/report.css", "{", " {", "digits"),
        ("reproduce/layers/losses.py", "\n", "\n\n", "digits-judge"),
        ("experiments/digits.yaml", "knn_points: 0.5", "knn_points: 0.6", "digits-judge"),
        ("experiments/digits.yaml", "label: ", "label: The ", "digits-judge"),
        ("experiments/digits.yaml", "gpus: 0", "gpus: 1", "digits-judge"),
        ("experiments/recipe/digits.yaml", "\n", "\n# a comment\n", "digits-judge"),
        ("experiments/digits.yaml", "seed: 0", "seed: 1", "digits-train"),
        ("experiments/digits.yaml", "global_batch: 64", "global_batch: 32", "digits-train"),
        ("experiments/recipe/digits.yaml", "koleo_weight: 0.1", "koleo_weight: 0.2", "digits-train"),
        ("experiments/model/vit_digits.yaml", "depth: 4", "depth: 5", "digits-train"),
    ],
)
def test_change_reruns_what_depends_on_it(project: Path, file: str, old: str, new: str, first: str) -> None:
    """A template costs a report, a margin a verdict, and only a value of the recipe a training."""
    replace(project / file, old, new)
    assert stages_to_run(project)[:1] == [first]
