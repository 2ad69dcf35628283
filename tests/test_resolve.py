"""Laying a row out on a site: processes, batches and folders, and everything that is missing said at once."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from row_copies import copy_rows

from franca.config import dump_config, load_config
from reproduce.errors import SiteError, SpecError
from reproduce.resolve import Site, load_site, resolve, run_name, until_iteration, visible_gpus
from reproduce.spec import Spec, load_spec

ROOT = Path(__file__).parents[1]
ROW = "franca-B-in21k"
FRANCA_B = load_spec(ROW, root=ROOT)
DIGITS = load_spec("digits", root=ROOT)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the rows and sites, without a site.yaml."""
    return copy_rows(tmp_path)


@pytest.fixture
def cluster(tmp_path: Path) -> Site:
    """A SLURM cluster of 32 nodes with four GPUs each, and folders for the data."""
    folders = {}
    for name in ("imagenet1k", "imagenet21k", "laion600m"):
        (tmp_path / name / "train").mkdir(parents=True)
        folders[name] = str(tmp_path / name)
    return dataclasses.replace(load_site("slurm", root=ROOT), data_roots=folders)


def write_site(project: Path, content: dict[str, Any]) -> None:
    (project / "site.yaml").write_text(yaml.safe_dump(content))


def with_folder(spec: Spec, folder: Path) -> Spec:
    """The spec as if its file lay in another project."""
    return dataclasses.replace(spec, path=folder / "experiments" / spec.path.name)


def test_digits_run_on_this_machine() -> None:
    """The row of our own needs no site.yaml, no data and no GPU."""
    resolved = resolve(DIGITS, site=load_site("local", root=ROOT))
    execution = resolved.config.execution
    assert (execution.device, execution.processes, execution.accumulation) == ("cpu", 1, 1)
    assert (execution.data_root, execution.evaluation_root) == ("", "")
    assert (execution.until_iteration, execution.log_period_iterations) == (0, 10)
    assert (execution.checkpoint_period_iterations, execution.checkpoints_kept) == (100, 2)
    assert resolved.run == "main"
    assert resolved.folder == ROOT / "runs" / "digits@1" / "main"
    assert resolved.notes == ()


def test_resolved_run_survives_its_file(tmp_path: Path) -> None:
    """The configuration that is written for the trainer is read back as it was."""
    config = resolve(DIGITS, site=load_site("local", root=ROOT), seed=3, until="50%").config
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert (config.seed, config.fingerprint, config.recipe) == (3, DIGITS.fingerprint, DIGITS.recipe)


def test_cluster_has_the_documented_layout(cluster: Site) -> None:
    """On the documented machine a row runs as documented: 8 nodes of 4 GPUs, 64 images each, no accumulation."""
    resolved = resolve(FRANCA_B, site=cluster)
    execution = resolved.config.execution
    assert (resolved.nodes, resolved.tasks_per_node) == (8, 4)
    assert (execution.device, execution.processes, execution.batch_per_process, execution.accumulation) == (
        "cuda",
        32,
        64,
        1,
    )
    assert execution.data_root == cluster.data_roots["imagenet21k"]
    assert execution.evaluation_root == cluster.data_roots["imagenet1k"]
    assert resolved.notes == ()


@pytest.mark.parametrize(
    ("nodes", "gpus_per_node", "batch_max", "expected"),
    [
        (1, 8, None, (1, 8, 64, 4)),
        (1, 1, None, (1, 1, 64, 32)),
        (1, 1, 20, (1, 1, 16, 128)),
        (2, 6, None, (2, 4, 64, 4)),
        (64, 8, None, (4, 8, 64, 1)),
    ],
)
def test_smaller_machines_accumulate(
    nodes: int, gpus_per_node: int, batch_max: int | None, expected: tuple[int, ...], cluster: Site
) -> None:
    """Fewer GPUs keep the global batch and the images per GPU, and take more steps for each iteration."""
    site = dataclasses.replace(cluster, nodes=nodes, gpus_per_node=gpus_per_node, batch_per_gpu_max=batch_max)
    resolved = resolve(FRANCA_B, site=site)
    execution = resolved.config.execution
    assert (
        resolved.nodes,
        resolved.tasks_per_node,
        execution.batch_per_process,
        execution.accumulation,
    ) == expected
    assert any("times per iteration" in note for note in resolved.notes) == (expected[0] * expected[1] < 32)
    assert any("KoLeo" in note for note in resolved.notes) == (expected[2] != 64)


@pytest.mark.parametrize(
    ("nodes", "processes_per_node", "expected"),
    [(1, None, (1, 1)), (4, None, (1, 1)), (1, 2, (1, 2)), (2, 2, (2, 2)), (2, 3, (2, 2)), (3, 8, (2, 8))],
)
def test_row_without_gpus_is_shared_as_the_site_says(
    nodes: int, processes_per_node: int | None, expected: tuple[int, int]
) -> None:
    """A run on CPUs takes the most processes that divide its batch of 64, each its share; one where none is said."""
    site = dataclasses.replace(
        load_site("slurm", root=ROOT), device="auto", nodes=nodes, processes_per_node=processes_per_node
    )
    resolved = resolve(DIGITS, site=site)
    execution = resolved.config.execution
    assert (resolved.nodes, resolved.tasks_per_node) == expected
    assert execution.processes * execution.batch_per_process * execution.accumulation == 64
    assert execution.processes == expected[0] * expected[1]


@given(
    nodes=st.integers(1, 40),
    gpus_per_node=st.integers(1, 16),
    batch_max=st.one_of(st.none(), st.integers(1, 200)),
    gpus=st.integers(1, 200),
    batch_per_gpu=st.integers(1, 100),
    global_batch=st.integers(1, 5000),
)
def test_layout_keeps_the_global_batch(
    nodes: int, gpus_per_node: int, batch_max: int | None, gpus: int, batch_per_gpu: int, global_batch: int
) -> None:
    """Whatever the machine: the global batch is whole, no limit is passed, no more GPUs are taken than documented."""
    site = dataclasses.replace(
        load_site("slurm", root=ROOT),
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        batch_per_gpu_max=batch_max,
        data_roots={"imagenet1k": "/", "imagenet21k": "/", "laion600m": "/"},
    )
    spec = dataclasses.replace(
        FRANCA_B,
        recipe=dataclasses.replace(FRANCA_B.recipe, global_batch=global_batch),
        resources=dataclasses.replace(FRANCA_B.resources, gpus=gpus, batch_per_gpu=batch_per_gpu),
    )
    resolved = resolve(spec, site=site)
    execution = resolved.config.execution
    assert execution.processes * execution.batch_per_process * execution.accumulation == global_batch
    assert execution.batch_per_process <= min(batch_per_gpu, batch_max or batch_per_gpu)
    assert resolved.nodes * resolved.tasks_per_node == execution.processes <= min(gpus, nodes * gpus_per_node)
    assert resolved.nodes <= nodes
    assert resolved.tasks_per_node <= gpus_per_node


def test_everything_missing_is_said_at_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row on a machine that has nothing for it lists data, evaluation data and GPUs in one message."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (project / "file").touch()
    site = {"data_roots": {"imagenet21k": "/nowhere/at/all"}, "nodes": 2, "scratch": "file/below"}
    write_site(project, {"local": site})
    with pytest.raises(SiteError) as caught:
        resolve(with_folder(FRANCA_B, project), site=load_site("local", root=project))
    error = caught.value
    assert error.path == project / "site.yaml"
    for said in (
        "data_roots.imagenet21k is no folder: /nowhere/at/all",
        "data_roots.imagenet1k is not set",
        "no GPU is seen; the documents have 32 × H100 80GB",
        "nodes: 2",
        "scratch cannot be written: file/below: Not a directory",
    ):
        assert said in error.message


def test_archives_without_an_index_are_found_before_the_launch(project: Path, cluster: Site) -> None:
    """A root of archives that were never indexed is refused with the command that indexes them."""
    root = project / "in21k"
    root.mkdir()
    (root / "n01440764.tar").touch()
    site = dataclasses.replace(cluster, data_roots={**cluster.data_roots, "imagenet21k": str(root)})
    with pytest.raises(SiteError, match=f"run `franca data prepare imagenet21k --root {root}`"):
        resolve(FRANCA_B, site=site)
    (root / ".franca-index").mkdir()
    (root / ".franca-index" / "train.json").touch()
    assert resolve(FRANCA_B, site=site).config.execution.data_root == str(root)


def test_empty_data_root_is_found_before_the_launch(tmp_path: Path, cluster: Site) -> None:
    """A folder that nothing was copied into is as good as none."""
    (tmp_path / "empty").mkdir()
    site = dataclasses.replace(cluster, data_roots={**cluster.data_roots, "imagenet1k": str(tmp_path / "empty")})
    with pytest.raises(SiteError, match=r"data_roots\.imagenet1k is an empty folder"):
        resolve(FRANCA_B, site=site)


def test_site_may_name_a_folder_of_ones_own(project: Path) -> None:
    """The data set `folder` has its root in site.yaml like any other."""
    write_site(project, {"local": {"data_roots": {"folder": "/my/images"}}})
    assert load_site("local", root=project).data_roots["folder"] == "/my/images"


def test_mend_of_a_missing_site_is_a_site(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines that the error offers, with true folders in them, make the row run."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    spec = with_folder(FRANCA_B, project)
    with pytest.raises(SiteError) as caught:
        resolve(spec, site=load_site("local", root=project))
    assert caught.value.mend is not None
    offered = yaml.safe_load(caught.value.mend.partition("\n")[2])
    for name in offered["local"]["data_roots"]:
        offered["local"]["data_roots"][name] = str(project)
    write_site(project, offered)
    assert resolve(spec, site=load_site("local", root=project)).config.execution.device == "cuda"


def test_row_with_gpus_is_refused_on_a_cpu(cluster: Site) -> None:
    """A site without GPUs says so before anything starts."""
    with pytest.raises(SiteError, match="device: cpu, but the row needs a GPU"):
        resolve(FRANCA_B, site=dataclasses.replace(cluster, device="cpu"))


def test_slurm_without_its_section_is_refused(cluster: Site) -> None:
    """A site that is reached through sbatch must say how."""
    with pytest.raises(SiteError, match="needs a slurm section"):
        resolve(FRANCA_B, site=dataclasses.replace(cluster, slurm=None))


def test_small_row_takes_one_gpu_of_a_cluster(cluster: Site) -> None:
    """A row that documents no GPU uses a single one where the site computes on GPUs."""
    resolved = resolve(DIGITS, site=cluster)
    assert (resolved.config.execution.device, resolved.nodes, resolved.tasks_per_node) == ("cuda", 1, 1)


def test_own_site_file_overrides_the_shipped_one(project: Path) -> None:
    """site.yaml changes what it names, mapping by mapping, and names the default site."""
    write_site(
        project,
        {"default": "slurm", "slurm": {"nodes": 2, "slurm": {"partition": "a100"}, "data_roots": {"imagenet1k": "/x"}}},
    )
    site = load_site(root=project)
    shipped = load_site("slurm", root=ROOT)
    assert site.slurm is not None
    assert shipped.slurm is not None
    assert (site.name, site.nodes, site.slurm.partition) == ("slurm", 2, "a100")
    assert site.slurm.timeout_min == shipped.slurm.timeout_min
    assert site.data_roots == {"imagenet1k": "/x", "imagenet21k": None, "laion600m": None}
    assert load_site("local", root=project).nodes == 1


def test_site_file_of_comments_changes_nothing(project: Path) -> None:
    """A site.yaml in which everything is commented out is as none."""
    plain = load_site("local", root=project)
    (project / "site.yaml").write_text("# local:\n#   workers: 4\n\n")
    assert load_site("local", root=project).workers == plain.workers


@pytest.mark.parametrize(
    ("text", "line", "said", "mend"),
    [
        ("local:\n  worker: 4\n", 2, "unknown key worker", "did you mean workers?"),
        ("local:\n  workers: many\n", 2, "workers: 'many' is not a whole number", "Data-loading"),
        (
            "local:\n  data_roots:\n    imagenet21: /x\n",
            3,
            "unknown key data_roots.imagenet21",
            "did you mean imagenet21k?",
        ),
        ("locale:\n  workers: 4\n", 1, "unknown site locale", "did you mean local?"),
        ("evaluate: apart\n", 1, "unknown site evaluate", "write it below `local:`"),
        ("default: slrum\n", 1, "unknown site slrum", "did you mean slurm?"),
        ("local: 4\n", 1, "local is no mapping", "local.yaml"),
        ("local:\n  executor: ssh\n", 2, "'ssh' is not one of", "local"),
        ("local: [\n", 2, "not YAML", "syntax"),
    ],
)
def test_mistaken_site_file_is_answered(text: str, line: int, said: str, mend: str, project: Path) -> None:
    """A mistake in site.yaml is named with its line and mend."""
    (project / "site.yaml").write_text(text)
    with pytest.raises(SiteError) as caught:
        load_site(root=project)
    error = caught.value
    assert (error.path, error.line) == (project / "site.yaml", line)
    assert said in error.message
    assert mend in (error.mend or "")


def test_unknown_site_names_the_nearest() -> None:
    """A site that does not exist is answered with the one that was meant."""
    with pytest.raises(SiteError) as caught:
        load_site("slrm", root=ROOT)
    assert caught.value.mend == "did you mean slurm?"


@pytest.mark.parametrize(
    ("until", "expected"),
    [(None, 0), ("5%", 30), ("0.1%", 1), ("100%", 0), ("500", 500), ("600", 0), (" 7 ", 7), ("33.4%", 201)],
)
def test_until_is_an_iteration(until: str | None, expected: int) -> None:
    """A share is rounded up, and the run's end is no early stop."""
    assert until_iteration(until, iterations=600) == expected


@pytest.mark.parametrize("until", ["0", "0%", "601", "101%", "-5", "5.5", "half", "", "%", "5 percent", "1e2", "nan"])
def test_until_outside_the_run_is_refused(until: str) -> None:
    """Anything but a point of the run is an error that says what would do."""
    with pytest.raises(SpecError, match="no point of a run of 600") as caught:
        until_iteration(until, iterations=600)
    assert caught.value.mend == "write a share like 5%, or a number from 1 to 600"


def test_run_is_named_after_what_differs() -> None:
    """The unchanged row is `main`; else the sorted overrides name the run, as a folder can be named."""
    assert run_name(FRANCA_B, seed=0) == "main"
    assert run_name(FRANCA_B, seed=3) == "seed=3"
    overrides = ["seed=3", "optim.base_lr=6e-3", "crops.global_scale=[0.5,1.0]", "quirks.koleo_half=false"]
    spec = load_spec(ROW, root=ROOT, overrides=overrides)
    name = run_name(spec, seed=spec.seed)
    assert name == "crops.global_scale=0.5+1.0,optim.base_lr=0.006,quirks.koleo_half=false,seed=3"
    assert run_name(load_spec(ROW, root=ROOT, overrides=overrides[::-1]), seed=3) == name
    assert run_name(load_spec("digits", root=ROOT, overrides=["heads.nesting=[]"]), seed=0) == "heads.nesting=none"


def test_run_of_a_mapping_is_called_after_its_row() -> None:
    """A frozen teacher is named by its row; another model of it by another digest."""
    model = "{patch_px: 4, embed_dim: 192, depth: DEPTH, heads: 3, ffn: swiglu, ffn_ratio: 4.0, registers: 0, "
    model += "layerscale: 1.0, drop_path: 0.0, interpolate_offset: 0.1}"
    names = []
    for text in (model.replace("DEPTH", "4"), model.replace("DEPTH", "5")):
        overrides = ["masking.sample_probability=0", f"frozen_teacher={{row: digits, model: {text}}}"]
        names.append(run_name(load_spec("digits", root=ROOT, overrides=overrides), seed=0))
    expected = r"frozen_teacher=digits-[0-9a-f]{8},masking.sample_probability=0(\.0)?"
    assert all(re.fullmatch(expected, name) for name in names), names
    assert len(set(names)) == 2


def test_long_run_names_stay_apart() -> None:
    """A name over 80 characters is cut and told from others by a hash."""
    overrides = ["teacher.temperature_warmup_iterations=1000", "optim.freeze_last_layer_iterations=100"]
    names = {
        run_name(load_spec(ROW, root=ROOT, overrides=[*overrides, f"optim.warmup_iterations={count}"]), seed=0)
        for count in (100, 101)
    }
    assert len(names) == 2
    assert all(len(name) == 80 for name in names)


def test_driver_is_asked_for_its_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs are those that the environment allows, else those that the driver's own tool lists, else none."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: H100'\necho 'GPU 1: H100'\necho '  MIG 1g.10gb'\n")
    tool.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == 2
    for value, count in (("0", 1), ("3,5", 2), ("", 0), ("-1", 0)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert visible_gpus() == count
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert visible_gpus() == 0
