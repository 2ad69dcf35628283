"""The plan of a run: for every row on a bare machine, at the published counts, with all that is missing."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from reproduce.compose import row_paths
from reproduce.errors import SpecError
from reproduce.plan import make_plan, render_plan
from reproduce.resolve import resolve
from reproduce.sites import Site, load_site
from reproduce.spec import load_spec

ROOT = Path(__file__).parents[1]
ROWS = tuple(row_paths(ROOT))
LOCAL = dataclasses.replace(load_site("local", root=ROOT), gpus_per_node=0)
FRANCA_B = load_spec("franca-B-in21k", root=ROOT)


@pytest.fixture
def cluster(tmp_path: Path) -> Site:
    """Two nodes of eight GPUs, with a folder for the data."""
    (tmp_path / "train").mkdir()
    roots = {name: str(tmp_path) for name in ("imagenet1k", "imagenet21k", "laion600m")}
    return dataclasses.replace(load_site("slurm", root=ROOT), data_roots=roots, nodes=2, gpus_per_node=8)


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_planned_without_its_machine(row: str) -> None:
    """Without GPUs and data a row is planned for its documented machine, and what is missing is listed."""
    spec = load_spec(row, root=ROOT)
    plan = make_plan(spec, site=LOCAL)
    published = {claim.field: claim.run_value for claim in spec.claims}
    assert plan.parameters["backbone"] == published.get("backbone_parameters", plan.parameters["backbone"])
    assert plan.parameters["trainable"] == published.get("trainable_parameters", plan.parameters["trainable"])
    assert plan.layout.documented == bool(plan.missing) == (row != "digits")
    assert plan.layout.processes == max(spec.resources.gpus, 1)
    assert plan.layout.processes * plan.layout.batch_per_process * plan.layout.accumulation == spec.recipe.global_batch
    assert (plan.cost.gpu_hours is None) == (row == "digits")
    assert plan.memory["total"] == sum(size for part, size in plan.memory.items() if part != "total")
    assert plan.memory_recomputed["total"] <= plan.memory["total"]
    assert spec.name in render_plan(plan, width=100)


def test_plan_is_of_the_layout_that_would_be_launched(cluster: Site) -> None:
    """On a site that has all, processes, batch and accumulation are those of the resolved run."""
    plan, resolved = make_plan(FRANCA_B, site=cluster), resolve(FRANCA_B, site=cluster)
    execution = resolved.config.execution
    assert (plan.layout.documented, plan.missing) == (False, ())
    assert (plan.layout.nodes, plan.layout.processes) == (resolved.nodes, execution.processes) == (2, 16)
    assert plan.layout.batch_per_process * plan.layout.accumulation == 2048 // 16
    assert plan.layout.accumulation == execution.accumulation


def test_time_follows_from_peak_share_and_flops(cluster: Site) -> None:
    """GPU-hours are FLOPs over the peak's share; twice the share takes half, and more GPUs take fewer hours alone."""
    plan, faster = (make_plan(FRANCA_B, site=cluster, gpu="NVIDIA H200", mfu=mfu) for mfu in (0.25, 0.5))
    expected = plan.flops_per_image["total"] * 625_000 * 2048 / (989.4e12 * 0.25) / 3600
    assert plan.cost.gpu_hours == pytest.approx(expected)
    assert faster.cost.gpu_hours == pytest.approx(expected / 2)
    assert plan.cost.hours == pytest.approx(expected / 16)


def test_unknown_card_is_refused() -> None:
    """A card without a known peak is a mistake that says what to write."""
    with pytest.raises(SpecError, match="no peak is known of 'Voodoo 2'") as caught:
        make_plan(FRANCA_B, site=LOCAL, gpu="Voodoo 2")
    assert caught.value.mend


def test_command_prints_json_without_torch() -> None:
    """`reproduce plan --json` answers with 0 on a machine that lacks everything, and never imports torch."""
    script = (
        "import sys; from reproduce.cli import app; sys.argv[1:] = ['plan', 'franca-B-in21k', 'seed=2', '--json']\n"
        "try: app()\nexcept SystemExit as end: sys.exit(9 if 'torch' in sys.modules else end.code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"]["trainable"] == 305_699_360


def test_planned_variant_is_planned_as_changed() -> None:
    """Overrides change the plan: two blocks fewer, two blocks' parameters fewer."""
    plain, changed = (
        make_plan(load_spec("digits", overrides=overrides, root=ROOT), site=LOCAL)
        for overrides in ((), ("model.depth=2",))
    )
    assert changed.parameters["backbone"] < plain.parameters["backbone"]
    assert changed.parameters["heads"] == plain.parameters["heads"]
