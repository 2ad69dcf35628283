"""Jobs in a container: how it is entered, to the word, and a run that goes through a program called as apptainer is."""

import dataclasses
import sys
from pathlib import Path

import pytest
import yaml
from row_copies import copy_rows
from small_runs import IMAGE, LOCAL, ROOT, make_resolved, make_runtime

from reproduce.containers import python_command
from reproduce.errors import SiteError
from reproduce.phases import evaluate, render_launch, train
from reproduce.resolve import load_site
from reproduce.screen import PlainScreen
from reproduce.sites import Container


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A program that is called as apptainer is."""
    return make_runtime(tmp_path / "bin")


def test_this_python_runs_where_there_is_no_container() -> None:
    """A site without a container uses the Python that runs now."""
    assert python_command(LOCAL, root=ROOT) == (sys.executable,)


def test_container_sees_all_that_a_run_reads_and_writes(tmp_path: Path) -> None:
    """Project, data, weights' folders, scratch and what the site adds are mounted, each once and at its own place."""
    site = dataclasses.replace(
        LOCAL,
        data_roots={"imagenet1k": "/data/imagenet1k", "imagenet21k": "/data", "laion600m": None},
        weights={"dinov2-B-in21k": "weights/b.safetensors", "franca-G-in21k": "/teachers/g.safetensors"},
        scratch="/scratch/me",
        container=Container(IMAGE, options=("--nv",), mounts=("/opt/certificates",)),
    )
    binds = [
        word
        for folder in (tmp_path, "/data", "/opt/certificates", "/scratch/me", "/teachers")
        for word in ("--bind", str(folder))
    ]
    assert python_command(site, root=tmp_path) == ("apptainer", "exec", "--nv", *binds, IMAGE, "python3")


def test_folder_that_cannot_be_mounted_is_refused(tmp_path: Path) -> None:
    """Apptainer cannot be told of a folder with a comma or a colon in its name: said before anything is launched."""
    site = dataclasses.replace(LOCAL, data_roots={"folder": "/data/a,b"}, container=Container(IMAGE), paths=(tmp_path,))
    with pytest.raises(SiteError, match="/data/a,b cannot be mounted"):
        python_command(site, root=tmp_path)


def test_site_names_its_container_and_scratch(tmp_path: Path) -> None:
    """Both come from site.yaml; what is not a key of a container is an error with its line."""
    copy_rows(tmp_path)
    mine = {"image": IMAGE, "options": ["--nv"]}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"slurm": {"container": mine, "scratch": "/scratch"}}))
    site = load_site("slurm", root=tmp_path)
    assert site.container == Container(IMAGE, runtime="apptainer", python="python3", options=("--nv",), mounts=())
    assert site.scratch == "/scratch"
    (tmp_path / "site.yaml").write_text("slurm:\n  container:\n    images: /a.sif\n")
    with pytest.raises(SiteError, match="image"):
        load_site("slurm", root=tmp_path)


def test_run_goes_through_its_container(runtime: Path, tmp_path: Path) -> None:
    """Trainer and evaluation are processes of the container's program, and the dry run shows the line, quoted."""
    resolved = make_resolved(tmp_path / "run", until_iteration=20)
    container = Container(IMAGE, runtime=str(runtime), python=sys.executable, options=("--nv",))
    resolved = dataclasses.replace(resolved, site=dataclasses.replace(resolved.site, container=container))
    assert f"{runtime} exec --nv --bind {ROOT} '{IMAGE}' {sys.executable} -m franca.train" in render_launch(resolved)
    assert train(resolved, command=("reproduce", "train", "digits"), screen=PlainScreen(sys.stderr)).iteration == 20
    assert evaluate(resolved, screen=PlainScreen(sys.stderr)) is not None
    called = Path(f"{runtime}.called").read_text().splitlines()
    assert [word for word in called if word.startswith("franca.")] == ["franca.train", "franca.evaluate"]
