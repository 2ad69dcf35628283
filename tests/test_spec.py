"""Loading a row: what is valid loads, and every mistake is named with its file, its line and its mend."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from row_copies import ROOT, ROW, copy_rows, edit, fail, place

from reproduce.compose import find_root
from reproduce.errors import SpecError
from reproduce.spec import list_rows, load_spec


def test_misspelt_key_of_a_row_names_line_and_nearest_key(tmp_path: Path) -> None:
    """A key that the row's own file misspells is named where it stands, with the key that was meant."""
    project = copy_rows(tmp_path)
    line = edit(project, f"{ROW}.yaml", "    base_lr: 7.01e-4", "    base_rl: 7.01e-4")
    error = fail(project)
    assert place(error, project) == (f"{ROW}.yaml", line)
    assert error.message == "unknown key recipe.optim.base_rl"
    assert error.mend == "did you mean base_lr?"


def test_misspelt_key_of_a_group_names_the_group_file(tmp_path: Path) -> None:
    """A mistake in a config group is reported in the group's file, not in the row that uses it."""
    project = copy_rows(tmp_path)
    line = edit(project, "recipe/dinov2.yaml", "  clip_norm: 3.0", "  clip_nrom: 3.0")
    error = fail(project)
    assert place(error, project) == ("recipe/dinov2.yaml", line)
    assert error.mend == "did you mean clip_norm?"


def test_misspelt_key_of_a_model_names_its_line(tmp_path: Path) -> None:
    """A group that is merged under another key, `model@recipe.model`, is found again."""
    project = copy_rows(tmp_path)
    line = edit(project, "model/vit_base_14.yaml", "depth: 12", "deph: 12")
    assert place(fail(project), project) == ("model/vit_base_14.yaml", line)


def test_wrong_type_names_what_belongs_there(tmp_path: Path) -> None:
    """A value of the wrong type is named with its line and the schema's description."""
    project = copy_rows(tmp_path)
    line = edit(project, "recipe/dinov2.yaml", "  momentum_start: 0.994", "  momentum_start: high")
    error = fail(project)
    assert place(error, project) == ("recipe/dinov2.yaml", line)
    assert error.message == "recipe.teacher.momentum_start: 'high' is not a number"
    assert error.mend is not None
    assert "EMA momentum at the first iteration" in error.mend


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  clip_norm: 3.0", "  clip_norm: 0", "recipe.optim.clip_norm: 0 is not more than 0"),
        ("  clip_norm: 3.0", "  clip_norm: true", "recipe.optim.clip_norm: True is not a number"),
        ("  clip_norm: 3.0", "  clip_norm: .nan", "recipe.optim.clip_norm: nan is not a number"),
        ("  clip_norm: 3.0", "  clip_norm:", "recipe.optim.clip_norm: None is not a number"),
        ("  betas: [0.9, 0.999]", "  betas: [0.9]", "recipe.optim.betas: 1 value where 2 belong"),
        ("  betas: [0.9, 0.999]", "  betas: [0.9, 1.5]", "recipe.optim.betas[1]: 1.5 is not less than 1"),
        ("  centering: sinkhorn", "  centering: sinkhron", "recipe.losses.centering: 'sinkhron' is not one of"),
        ("  global_px: 16", "  global_px: 16.0", "recipe.crops.global_px: 16.0 is not a whole number"),
        ("  global_px: 16", "  global_px: 18", "recipe.crops.global_px: 18 px is no multiple of the patch of 4 px"),
        ("  ratio: [0.1, 0.65]", "  ratio: [0.1, 0.65", "not YAML"),
        ("  global_scale: [0.7, 1.0]", "  global_scale: [1.0, 0.7]", "1.0 comes before the smaller 0.7"),
        ("\n  warmup_iterations: 100", "\n  warmup_iterations: 700", "700 iterations are more than the run's"),
        ("  clip_norm: 3.0", "  clip_norm: 3.0\n  clip_norm: 4.0", "optim.clip_norm stands twice"),
        (
            "  nesting: [24, 48, 96]",
            "  nesting: [24, 96, 48]",
            "recipe.heads.nesting: [24, 96, 48] must ascend to the width",
        ),
        ("  nesting: [24, 48, 96]", "  nesting: [24, 48]", "recipe.heads.nesting: [24, 48] must ascend to the width"),
        ("  clip_norm: 3.0", "  clip_norm: ???", "recipe.optim.clip_norm: '???' is not a number"),
        ("  clip_norm: 3.0", "  clip_norm: ${nowhere}", "recipe.optim.clip_norm cannot be composed: Interpolation key"),
        ("  clip_norm: 3.0", "  clip_norm: ${", "recipe.optim.clip_norm cannot be composed"),
    ],
)
def test_mistake_in_a_group_is_named(old: str, new: str, said: str, tmp_path: Path) -> None:
    """Whatever is wrong with a value, the message says it; nothing else is raised."""
    project = copy_rows(tmp_path)
    line = edit(project, "recipe/digits.yaml", old, new)
    error = fail(project, row="digits")
    assert said in error.message
    assert error.mend
    assert place(error, project)[0] == "recipe/digits.yaml"
    assert error.line in (line, line + 1)


def test_missing_key_is_named(tmp_path: Path) -> None:
    """A key that nobody writes is asked for in the mapping that lacks it."""
    project = copy_rows(tmp_path)
    edit(project, f"{ROW}.yaml", "  global_batch: 2048\n", "")
    error = fail(project)
    assert error.message == "missing key recipe.global_batch"
    assert place(error, project)[0] == f"{ROW}.yaml"


def test_unknown_row_names_the_nearest() -> None:
    """A row that does not exist is answered with the one that was meant."""
    error = fail(ROOT, row="franca-b-in21k")
    assert error.message == "unknown row 'franca-b-in21k'"
    assert error.mend == "did you mean franca-B-in21k?"


def test_row_is_named_after_its_file(tmp_path: Path) -> None:
    """A file that was copied and not renamed inside is an error at its `row:` line."""
    project = copy_rows(tmp_path)
    line = edit(project, f"{ROW}.yaml", f"row: {ROW}", "row: franca-C-in21k")
    error = fail(project)
    assert place(error, project) == (f"{ROW}.yaml", line)
    assert error.mend == f"row: {ROW}"


@pytest.mark.parametrize(
    "text", ["a: [1, 2", "a: b: c", "\ta: 1", "- 1", "", "just words", "a: *nothing", "a: 'open", "a: \x00"]
)
def test_broken_yaml_names_file_and_line(text: str, tmp_path: Path) -> None:
    """A file that is no YAML mapping is named with a line, never a traceback."""
    project = copy_rows(tmp_path)
    (project / "experiments" / "recipe" / "digits.yaml").write_text(f"# a comment\n{text}\n")
    error = fail(project, "digits")
    assert place(error, project)[0] == "recipe/digits.yaml"
    assert error.line is not None


def test_file_that_is_no_text_names_its_line(tmp_path: Path) -> None:
    """A byte that is not UTF-8 is found on its line."""
    project = copy_rows(tmp_path)
    (project / "experiments" / "recipe" / "digits.yaml").write_bytes(b"a: 1\nb: \xff\n")
    assert place(fail(project, "digits"), project) == ("recipe/digits.yaml", 2)


def test_mapping_that_contains_itself_is_an_error(tmp_path: Path) -> None:
    """An alias that closes a cycle ends in an error, not in a recursion."""
    project = copy_rows(tmp_path)
    edit(project, "recipe/dinov2.yaml", "  clip_norm: 3.0", "  clip_norm: &loop [*loop]")
    assert "contains itself" in fail(project).message


def test_unknown_group_option_names_the_nearest(tmp_path: Path) -> None:
    """A `defaults` line that names no file is answered with the file that was meant."""
    project = copy_rows(tmp_path)
    line = edit(project, f"{ROW}.yaml", "vit_base_14\n  - data", "vit_bse_14\n  - data")
    error = fail(project)
    assert place(error, project) == (f"{ROW}.yaml", line)
    assert error.mend == "did you mean vit_base_14?"


def test_unknown_group_names_the_nearest(tmp_path: Path) -> None:
    """A `defaults` line that names no folder is answered with the folder that was meant."""
    project = copy_rows(tmp_path)
    line = edit(project, f"{ROW}.yaml", "- recipe: franca", "- recipes: franca")
    error = fail(project)
    assert place(error, project) == (f"{ROW}.yaml", line)
    assert error.mend == "did you mean recipe?"


@pytest.mark.parametrize(
    "entry", ["defaults:\n", "defaults: franca\n", "defaults:\n  - 3\n", "defaults:\n  - {a: b, c: d}\n"]
)
def test_defaults_that_are_no_list_of_groups_are_named(entry: str, tmp_path: Path) -> None:
    """A `defaults` that holds anything but `group: name` is named with its line."""
    project = copy_rows(tmp_path)
    path = project / "experiments" / "recipe" / "digits.yaml"
    path.write_text(entry + path.read_text())
    error = fail(project, "digits")
    assert place(error, project) == ("recipe/digits.yaml", entry.count("\n"))
    assert "defaults" in error.message


def test_group_that_leads_back_to_itself_is_an_error(tmp_path: Path) -> None:
    """A cycle of `defaults` ends in an error."""
    project = copy_rows(tmp_path)
    edit(project, "recipe/franca.yaml", "  - dinov2", "  - franca")
    assert "lead back" in fail(project).message


def test_unknown_source_names_line_and_nearest(tmp_path: Path) -> None:
    """A citation of a source that the list lacks is named where it stands."""
    project = copy_rows(tmp_path)
    line = edit(
        project, "claims/franca.yaml", "sources: [computed, fr.head_jul24]", "sources: [computed, fr.head_jul42]"
    )
    error = fail(project)
    assert place(error, project) == ("claims/franca.yaml", line)
    assert error.mend is not None
    assert "fr.head_jul24" in error.mend


def test_broken_schema_is_named(tmp_path: Path) -> None:
    """A schema that is no JSON is an error with its line."""
    project = copy_rows(tmp_path)
    (project / "experiments" / "schema.json").write_text("{\n  oops\n}")
    assert place(fail(project), project) == ("schema.json", 2)


def test_root_is_found_from_below(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The project is the nearest folder above the working directory that has experiments/schema.json."""
    project = copy_rows(tmp_path)
    (project / "deep" / "below").mkdir(parents=True)
    monkeypatch.chdir(project / "deep" / "below")
    assert find_root() == project.resolve()


def test_root_elsewhere_is_the_package_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Outside any project, the rows beside the package are found."""
    monkeypatch.chdir(tmp_path)
    assert find_root() == ROOT


def test_root_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment names a root; one without rows is an error, not passed over."""
    project = copy_rows(tmp_path)
    monkeypatch.setenv("FRANCA_REPRODUCE_ROOT", str(project))
    assert find_root() == project.resolve()
    monkeypatch.setenv("FRANCA_REPRODUCE_ROOT", str(tmp_path / "nowhere"))
    with pytest.raises(SpecError, match="there"):
        find_root()


def test_loading_leaves_an_outer_hydra_alone() -> None:
    """A process that is itself a Hydra application keeps its state."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    with hydra.initialize_config_dir(str(ROOT / "experiments"), version_base=None):
        outer = GlobalHydra.instance().hydra
        assert load_spec(ROW, root=ROOT).row == ROW
        assert GlobalHydra.instance().hydra is outer
    assert not GlobalHydra.instance().is_initialized()


def test_listing_is_fast_and_imports_little() -> None:
    """A table of the rows needs neither Hydra nor jsonschema, pandas or torch, and half a second."""
    script = (
        "import sys, json; from reproduce.spec import list_rows; rows = list_rows();"
        "print(json.dumps([r.row for r in rows]));"
        "sys.exit(bool({'hydra', 'omegaconf', 'jsonschema', 'pandas', 'torch', 'numpy'} & set(sys.modules)))"
    )
    started = time.process_time_ns()
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert time.process_time_ns() - started < 10**9
    assert done.returncode == 0, done.stderr
    assert ROW in json.loads(done.stdout)


def test_listing_a_broken_row_names_it(tmp_path: Path) -> None:
    """A row that lacks what the table shows is named, with the command that says more."""
    project = copy_rows(tmp_path)
    edit(project, f"{ROW}.yaml", "title: Franca-B, ImageNet-21K\n", "")
    with pytest.raises(SpecError, match="title") as caught:
        list_rows(root=project)
    assert caught.value.mend == f"reproduce audit {ROW}"
