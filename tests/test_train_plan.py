"""`python -m franca.train --plan`: what the built model has is what `reproduce plan` says by formula, for all rows."""

import dataclasses
import json
from pathlib import Path

import pytest
from recipes import make_recipe, make_train_config

from franca.config import TrainConfig, dump_config, recipe_fingerprint
from franca.train.__main__ import main
from reproduce.compose import row_paths
from reproduce.plan import make_plan
from reproduce.sites import load_site
from reproduce.spec import load_spec

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("row", row_paths(ROOT))
def test_built_model_is_planned_as_by_formula(row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parameters counted on the meta device, FLOPs and memory are those of the harness, which builds nothing."""
    spec = load_spec(row, root=ROOT)
    plan = make_plan(spec, site=dataclasses.replace(load_site("local", root=ROOT), gpus_per_node=0))
    execution = dataclasses.replace(
        make_train_config(make_recipe()).execution,
        device=plan.layout.device,
        processes=plan.layout.processes,
        batch_per_process=plan.layout.batch_per_process,
        accumulation=plan.layout.accumulation,
    )
    config = TrainConfig(row, spec.version, recipe_fingerprint(spec.recipe), 0, spec.recipe, execution)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert main(["--plan", str(tmp_path / "config.yaml")]) == 0
    printed = json.loads(capsys.readouterr().out)
    parts = ("backbone", "dino_head", "ibot_head", "trainable")
    assert {part: printed["parameters"][part] for part in parts} == {part: plan.parameters[part] for part in parts}
    assert printed["parameters"]["total"] == 2 * plan.parameters["trainable"]
    assert printed["flops_per_image"] == plan.flops_per_image
    assert printed["memory"] == plan.memory
    assert printed["checkpoint_bytes"] == plan.checkpoint_bytes
    assert list(tmp_path.iterdir()) == [tmp_path / "config.yaml"]
