"""Loading a row: what is valid loads, and every mistake is named with its file, its line and its mend."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from franca.config import Recipe, make_config, peak_lr
from reproduce.compose import compose, find_root
from reproduce.errors import SpecError
from reproduce.overrides import apply_overrides, parse_overrides
from reproduce.spec import list_rows, load_spec
from reproduce.validate import load_schema
from reproduce.versions import load_lock, write_lock

ROOT = Path(__file__).parents[1]
ROW = "franca-B-in21k"

SCHEMA = load_schema(ROOT)
MAPPING = compose(ROW, root=ROOT).mapping["recipe"]
PLAIN = make_config(Recipe, MAPPING)

Edit = Callable[[str, str, str], int]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the rows that a test may spoil."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    return tmp_path


@pytest.fixture
def edit(project: Path) -> Edit:
    """Replace a line's text in a file below experiments/; returns the line's number."""

    def replace(file: str, old: str, new: str) -> int:
        path = project / "experiments" / file
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}"
        path.write_text(text.replace(old, new))
        return text[: text.index(old)].count("\n") + 1

    return replace


def fail(project: Path, row: str = ROW, **options: object) -> SpecError:
    """The error of loading a row."""
    with pytest.raises(SpecError) as caught:
        load_spec(row, root=project, **options)  # type: ignore[arg-type]
    return caught.value


def place(error: SpecError, project: Path) -> tuple[str, int | None]:
    """The error's file, relative to experiments/, and line."""
    assert error.path is not None
    return error.path.relative_to(project / "experiments").as_posix(), error.line


def test_misspelt_key_of_a_row_names_line_and_nearest_key(project: Path, edit: Edit) -> None:
    """A key that the row's own file misspells is named where it stands, with the key that was meant."""
    line = edit(f"{ROW}.yaml", "    base_lr: 7.01e-4", "    base_rl: 7.01e-4")
    error = fail(project)
    assert place(error, project) == (f"{ROW}.yaml", line)
    assert error.message == "unknown key recipe.optim.base_rl"
    assert error.mend == "did you mean base_lr?"


def test_misspelt_key_of_a_group_names_the_group_file(project: Path, edit: Edit) -> None:
    """A mistake in a config group is reported in the group's file, not in the row that uses it."""
    line = edit("recipe/dinov2.yaml", "  clip_norm: 3.0", "  clip_nrom: 3.0")
    error = fail(project)
    assert place(error, project) == ("recipe/dinov2.yaml", line)
    assert error.mend == "did you mean clip_norm?"


def test_misspelt_key_of_a_model_names_its_line(project: Path, edit: Edit) -> None:
    """A group that is merged under another key, `model@recipe.model`, is found again."""
    line = edit("model/vit_base_14.yaml", "depth: 12", "deph: 12")
    assert place(fail(project), project) == ("model/vit_base_14.yaml", line)


def test_wrong_type_names_what_belongs_there(project: Path, edit: Edit) -> None:
    """A value of the wrong type is named with its line and the schema's description."""
    line = edit("recipe/dinov2.yaml", "  momentum_start: 0.994", "  momentum_start: high")
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
        ("  global_px: 224", "  global_px: 224.0", "recipe.crops.global_px: 224.0 is not a whole number"),
        ("  global_px: 224", "  global_px: 220", "recipe.crops.global_px: 220 px is no multiple of the patch of 14 px"),
        ("  ratio: [0.1, 0.5]", "  ratio: [0.1, 0.5", "not YAML"),
        ("  global_scale: [0.32, 1.0]", "  global_scale: [1.0, 0.32]", "1.0 comes before the smaller 0.32"),
        ("  warmup_iterations: 100_000", "  warmup_iterations: 700_000", "700000 iterations are more than the run's"),
        ("  clip_norm: 3.0", "  clip_norm: 3.0\n  clip_norm: 4.0", "optim.clip_norm stands twice"),
        ("  clip_norm: 3.0", "  clip_norm: ???", "recipe.optim.clip_norm: '???' is not a number"),
        ("  clip_norm: 3.0", "  clip_norm: ${nowhere}", "recipe.optim.clip_norm cannot be composed: Interpolation key"),
        ("  clip_norm: 3.0", "  clip_norm: ${", "recipe.optim.clip_norm cannot be composed"),
    ],
)
def test_mistake_in_a_group_is_named(old: str, new: str, said: str, project: Path, edit: Edit) -> None:
    """Whatever is wrong with a value, the message says it; nothing else is raised."""
    line = edit("recipe/dinov2.yaml", old, new)
    error = fail(project, row="dinov2-B-in21k")
    assert said in error.message
    assert error.mend
    assert place(error, project)[0] == "recipe/dinov2.yaml"
    assert error.line in (line, line + 1)


def test_missing_key_is_named(project: Path, edit: Edit) -> None:
    """A key that nobody writes is asked for in the mapping that lacks it."""
    edit(f"{ROW}.yaml", "  global_batch: 2048\n", "")
    error = fail(project)
    assert error.message == "missing key recipe.global_batch"
    assert place(error, project)[0] == f"{ROW}.yaml"


def test_unknown_row_names_the_nearest() -> None:
    """A row that does not exist is answered with the one that was meant."""
    error = fail(ROOT, row="franca-b-in21k")
    assert error.message == "unknown row 'franca-b-in21k'"
    assert error.mend == "did you mean franca-B-in21k?"


def test_row_is_named_after_its_file(project: Path, edit: Edit) -> None:
    """A file that was copied and not renamed inside is an error at its `row:` line."""
    line = edit(f"{ROW}.yaml", f"row: {ROW}", "row: franca-C-in21k")
    error = fail(project)
    assert place(error, project) == (f"{ROW}.yaml", line)
    assert error.mend == f"row: {ROW}"


@pytest.mark.parametrize("text", ["a: [1, 2", "a: b: c", "\ta: 1", "- 1", "", "just words", "a: *nothing", "a: 'open", "a: \x00"])
def test_broken_yaml_names_file_and_line(text: str, project: Path) -> None:
    """A file that is no YAML mapping is named with a line, never a traceback."""
    (project / "experiments" / "recipe" / "dinov2.yaml").write_text(f"# a comment\n{text}\n")
    error = fail(project)
    assert place(error, project)[0] == "recipe/dinov2.yaml"
    assert error.line is not None


def test_file_that_is_no_text_names_its_line(project: Path) -> None:
    """A byte that is not UTF-8 is found on its line."""
    (project / "experiments" / "recipe" / "dinov2.yaml").write_bytes(b"a: 1\nb: \xff\n")
    assert place(fail(project), project) == ("recipe/dinov2.yaml", 2)


def test_mapping_that_contains_itself_is_an_error(project: Path, edit: Edit) -> None:
    """An alias that closes a cycle ends in an error, not in a recursion."""
    edit("recipe/dinov2.yaml", "  clip_norm: 3.0", "  clip_norm: &loop [*loop]")
    assert "contains itself" in fail(project).message


def test_unknown_group_option_names_the_nearest(project: Path, edit: Edit) -> None:
    """A `defaults` line that names no file is answered with the file that was meant."""
    line = edit(f"{ROW}.yaml", "vit_base_14\n  - data", "vit_bse_14\n  - data")
    error = fail(project)
    assert place(error, project) == (f"{ROW}.yaml", line)
    assert error.mend == "did you mean vit_base_14?"


def test_unknown_group_names_the_nearest(project: Path, edit: Edit) -> None:
    """A `defaults` line that names no folder is answered with the folder that was meant."""
    line = edit(f"{ROW}.yaml", "- recipe: franca", "- recipes: franca")
    error = fail(project)
    assert place(error, project) == (f"{ROW}.yaml", line)
    assert error.mend == "did you mean recipe?"


def test_group_that_leads_back_to_itself_is_an_error(project: Path, edit: Edit) -> None:
    """A cycle of `defaults` ends in an error."""
    edit("recipe/franca.yaml", "  - dinov2", "  - franca")
    assert "lead back" in fail(project).message


def test_unknown_source_names_line_and_nearest(project: Path, edit: Edit) -> None:
    """A citation of a source that the list lacks is named where it stands."""
    line = edit("claims/franca.yaml", "sources: [computed, fr.head_jul24]", "sources: [computed, fr.head_jul42]")
    error = fail(project)
    assert place(error, project) == ("claims/franca.yaml", line)
    assert error.mend is not None
    assert "fr.head_jul24" in error.mend


def test_changed_recipe_without_a_new_version_is_refused(project: Path, edit: Edit) -> None:
    """A recipe that changed under its version is an error at the version's line that says what to do."""
    edit(f"{ROW}.yaml", "    base_lr: 7.01e-4", "    base_lr: 7.02e-4")
    error = fail(project)
    line = (project / "experiments" / f"{ROW}.yaml").read_text().splitlines().index("version: 1") + 1
    assert place(error, project) == (f"{ROW}.yaml", line)
    assert error.mend is not None
    assert "version: 2" in error.mend
    assert "reproduce lock" in error.mend


def test_changed_recipe_with_a_new_version_is_locked(project: Path, edit: Edit) -> None:
    """A new version is refused until it is locked, loads then, and the old one's fingerprint stays."""
    before = dict(load_lock(project))
    edit(f"{ROW}.yaml", "    base_lr: 7.01e-4", "    base_lr: 7.02e-4")
    edit(f"{ROW}.yaml", "version: 1", "version: 2")
    assert fail(project).mend == "reproduce lock"
    assert write_lock(root=project) == (f"{ROW}@2",)
    assert load_spec(ROW, root=project).name == f"{ROW}@2"
    assert before.items() <= load_lock(project).items()


def test_lock_refuses_a_changed_recipe(project: Path, edit: Edit) -> None:
    """Locking is no way around: a version that is locked keeps its recipe."""
    edit(f"{ROW}.yaml", "    base_lr: 7.01e-4", "    base_lr: 7.02e-4")
    before = (project / "experiments" / "versions.lock").read_bytes()
    with pytest.raises(SpecError, match="not the one that was locked"):
        write_lock(root=project)
    assert (project / "experiments" / "versions.lock").read_bytes() == before


def test_comments_margins_and_resources_need_no_new_version(project: Path, edit: Edit) -> None:
    """What does not determine the result may change under a version."""
    edit(f"{ROW}.yaml", "  base_lr: 7.01e-4  #", "  base_lr: 0.000701  # the same number;")
    edit(f"{ROW}.yaml", "  knn_points: 0.5", "  knn_points: 0.4")
    edit(f"{ROW}.yaml", "  checkpoints_kept: 2", "  checkpoints_kept: 3")
    assert load_spec(ROW, root=project).margins.knn_points == 0.4


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}'])
def test_broken_lock_is_named(text: str, project: Path) -> None:
    """A lock that is no object of texts is an error of that file."""
    (project / "experiments" / "versions.lock").write_text(text)
    assert place(fail(project), project)[0] == "versions.lock"


def test_broken_schema_is_named(project: Path) -> None:
    """A schema that is no JSON is an error with its line."""
    (project / "experiments" / "schema.json").write_text("{\n  oops\n}")
    assert place(fail(project), project) == ("schema.json", 2)


def test_spec_without_overrides_is_the_row() -> None:
    """The unchanged row is no variant and has the row's own seed."""
    spec = load_spec(ROW, root=ROOT)
    assert (spec.variant, spec.changes, spec.seed, spec.name) == (False, (), 0, f"{ROW}@1")
    assert peak_lr(spec.recipe) == pytest.approx(9.91e-4, rel=1e-3)
    assert str(spec.claims[0].values[0].sources[0]) == "Franca training.md@24f8c60a"


def test_override_makes_a_variant_with_its_changes() -> None:
    """An override of the recipe makes a variant that lists what changed and has another fingerprint."""
    plain, spec = load_spec(ROW, root=ROOT), load_spec(ROW, root=ROOT, overrides=["optim.base_lr=1e-3", "seed=3"])
    assert spec.variant
    assert [str(change) for change in spec.changes] == ["optim.base_lr: 0.000701 → 0.001"]
    assert (spec.seed, spec.row_seed) == (3, 0)
    assert spec.recipe.optim.base_lr == 1e-3
    assert spec.fingerprint != plain.fingerprint


def test_override_that_changes_nothing_makes_no_variant() -> None:
    """A seed, or a value that the recipe already has, leaves the row what it is."""
    plain = load_spec(ROW, root=ROOT)
    for overrides in (["seed=7"], ["optim.base_lr=7.01e-4"], ["optim.clip_norm=3"]):
        spec = load_spec(ROW, root=ROOT, overrides=overrides)
        assert not spec.variant
        assert spec.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("override", "said", "mend"),
    [
        ("optim.base_rl=1", "no key optim.base_rl", "optim.base_lr"),
        ("base_lr=1", "no key base_lr", "optim.base_lr"),
        ("recipe.optim.base_lr=1", "no key recipe.optim.base_lr", "optim.base_lr"),
        ("recpie=1", "no key recpie", "schema.json"),
        ("optim=1", "no key optim", "optim.base_lr"),
        ("optim.base_lr=fast", "'fast' is not a number", "Learning rate after warm-up"),
        ("optim.base_lr=-1", "-1 is not more than 0", "Learning rate after warm-up"),
        ("optim.base_lr=null", "None is not a number", "Learning rate after warm-up"),
        ("iterations=1e3", "1000.0 is not a whole number", "Optimizer steps"),
        ("masking.kind=blok", "'blok' is not one of", "block"),
        ("seed=-1", "-1 is less than 0", "Seed"),
        ("crops.global_px=220", "no multiple of the patch", "224"),
        ("iterations=100", "optim.warmup_iterations: 100000 iterations are more", "100 or less"),
        ("losses.centering=softmax", "no Sinkhorn-Knopp", "false"),
        ("optim.base_lr", "not key=value", "key"),
        ("=1", "", "key"),
        ("", "not key=value", "key"),
        ("a b", "not key=value", "key"),
        ("+optim.base_lr=1", "more than one change", "key"),
        ("~optim.base_lr", "more than one change", "key"),
        ("optim.base_lr=1,2", "more than one change", "key"),
        ("optim.base_lr=range(1,3)", "more than one change", "key"),
        ("optim.base_lr=${seed}", "is not a number", "Learning rate"),
    ],
)
def test_mistaken_override_is_answered(override: str, said: str, mend: str) -> None:
    """An override that will not do is quoted with what is wrong and what was meant."""
    error = fail(ROOT, overrides=[override])
    assert override in error.message
    assert said in error.message
    assert mend in (error.mend or "").replace("optim.base_lr=1e-3", "key")


def test_override_given_twice_is_refused() -> None:
    """Two values for one key are a mistake, not a choice."""
    assert "given twice" in fail(ROOT, overrides=["seed=1", "seed=2"]).message


@given(
    base_lr=st.floats(min_value=1e-5, max_value=10, allow_nan=False),
    iterations=st.integers(min_value=100_000, max_value=10**9),
    ratio=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    kind=st.sampled_from(["block", "inverse_block", "cyclic"]),
    half=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_overrides_arrive_as_they_were_given(
    base_lr: float, iterations: int, ratio: list[float], kind: str, half: bool, seed: int
) -> None:
    """Whatever valid value is written as an override is the value in the recipe, exactly."""
    overrides = [
        f"optim.base_lr={base_lr!r}",
        f"iterations={iterations}",
        f"masking.ratio={ratio}",
        f"masking.kind={kind}",
        f"quirks.koleo_half={str(half).lower()}",
        f"seed={seed}",
    ]
    parsed = parse_overrides(overrides, schema=SCHEMA)
    assert [override.value for override in parsed] == [base_lr, iterations, ratio, kind, half, seed]
    recipe = make_config(Recipe, apply_overrides(MAPPING, parsed))
    assert (recipe.optim.base_lr, recipe.iterations, recipe.masking.ratio) == (base_lr, iterations, tuple(ratio))
    assert (recipe.masking.kind, recipe.quirks.koleo_half) == (kind, half)
    assert (
        dataclasses.replace(
            recipe, optim=PLAIN.optim, iterations=PLAIN.iterations, masking=PLAIN.masking, quirks=PLAIN.quirks
        )
        == PLAIN
    )


def test_root_is_found_from_below(monkeypatch: pytest.MonkeyPatch, project: Path) -> None:
    """The project is the nearest folder above the working directory that has experiments/schema.json."""
    (project / "deep" / "below").mkdir(parents=True)
    monkeypatch.chdir(project / "deep" / "below")
    assert find_root() == project.resolve()


def test_root_elsewhere_is_the_package_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Outside any project, the rows beside the package are found."""
    monkeypatch.chdir(tmp_path)
    assert find_root() == ROOT


def test_root_can_be_named(monkeypatch: pytest.MonkeyPatch, project: Path, tmp_path: Path) -> None:
    """The environment names a root; one without rows is an error, not passed over."""
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


def test_listing_a_broken_row_names_it(project: Path, edit: Edit) -> None:
    """A row that lacks what the table shows is named, with the command that says more."""
    edit(f"{ROW}.yaml", "title: Franca-B, ImageNet-21K\n", "")
    with pytest.raises(SpecError, match="title") as caught:
        list_rows(root=project)
    assert caught.value.mend == f"reproduce audit {ROW}"
