"""One weights file of a checkpoint: its tensors bit for bit, equal bytes of equal weights, nothing of a damaged one."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_checkpoint import CONFIG, Run, file_size_limit
from test_damaged_checkpoints import flip_bit
from test_distributed import run_processes
from test_resharding import CONFIG as UNEVEN
from test_resharding import make_values, pass_on

from franca.__main__ import main
from franca.config import dump_config
from franca.train.checkpoint import list_checkpoints
from franca.train.self_distillation import SelfDistillation


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with two checkpoints."""
    (tmp_path / "config.yaml").write_text(dump_config(CONFIG))
    Run(1).save(tmp_path, done=10)
    Run(2).save(tmp_path, done=20)
    return tmp_path


def run_command(folder: Path, *options: str) -> int:
    return main(["consolidate", str(folder), *options])


def read_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_teacher_of_the_newest_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without options it is the teacher of the newest checkpoint, in the names of the bare networks."""
    assert run_command(folder) == 0
    path = folder / "teacher_000020.safetensors"
    teacher = Run(2).model.teacher.state_dict()
    written = load_file(path)
    assert written.keys() == teacher.keys()
    assert {"backbone.blocks.0.attn.qkv.weight", "dino_head.last_layer.weight_v", "ibot_head.mlp.0.bias"} <= set(
        written
    )
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in written.items())
    assert read_metadata(path) == {
        "format": "pt",
        "row": "digits",
        "version": "1",
        "fingerprint": CONFIG.fingerprint,
        "seed": "0",
        "iteration": "20",
        "network": "teacher",
    }
    assert f"{path}: teacher of digits@1 after 20 iterations, {len(teacher)} tensors" in capsys.readouterr().out


@pytest.mark.parametrize("network", ["student", "both"])
def test_network_and_checkpoint_are_chosen(folder: Path, tmp_path: Path, network: str) -> None:
    """The student of an older checkpoint, or both networks under their names."""
    out = tmp_path / "new" / "weights.safetensors"
    assert run_command(folder, "--network", network, "--checkpoint", "10", "--out", str(out)) == 0
    model = Run(1).model
    expected = model.student.state_dict()
    if network == "both":
        expected = {
            name: tensor
            for name, tensor in model.state_dict().items()
            if name.startswith(("student.", "teacher."))  # centers are of neither
        }
    written = load_file(out)
    assert written.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in written.items())
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_equal_weights_give_equal_bytes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Written twice, the files are one another's bytes; `--json` says their digest, size and origin."""
    digests = []
    for name in ("one", "two"):
        assert run_command(folder, "--out", str(tmp_path / name), "--json") == 0
        said = json.loads(capsys.readouterr().out)
        assert said["bytes"] == (tmp_path / name).stat().st_size
        assert said["parameters"] == sum(tensor.numel() for tensor in Run(1).model.teacher.state_dict().values())
        assert (said["row"], said["iteration"], said["network"]) == ("digits", 20, "teacher")
        digests.append(said["sha256"])
    assert digests[0] == digests[1]
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_shards_of_several_processes_are_put_together(tmp_path: Path) -> None:
    """What two processes hold in uneven parts, some of them empty, is whole in the file."""
    (tmp_path / "config.yaml").write_text(dump_config(UNEVEN))
    run_processes(functools.partial(pass_on, "fsdp", tmp_path, 10), processes=2, folder=tmp_path)
    assert run_command(tmp_path, "--network", "both") == 0
    written = load_file(tmp_path / "both_000010.safetensors")
    state = SelfDistillation(UNEVEN.recipe).state_dict()
    assert written.keys() == {name for name in state if name.startswith(("student.", "teacher."))}
    for name, tensor in written.items():
        assert torch.equal(tensor, make_values(state[name].shape, name)), name


def delete_configuration(folder: Path) -> None:
    (folder / "config.yaml").unlink()


def change_configuration(folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace(CONFIG.fingerprint, "0123456789abcdef"))


def damage_newest(folder: Path) -> None:
    flip_bit(next((folder / "checkpoints" / "000020").glob("*.safetensors")))


def damage_only(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints" / "000010")
    damage_newest(folder)


def delete_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def delete_checkpoints(folder: Path) -> None:
    for path in list_checkpoints(folder):
        path.rename(path.with_name(f".{path.name}.incomplete"))


def put_folder_in_the_way(folder: Path) -> None:
    (folder / "teacher_000020.safetensors").mkdir()


@pytest.mark.parametrize(
    ("harm", "options", "said"),
    [
        (None, ["--checkpoint", "15"], "no checkpoint after 15 iterations; there are 000020, 000010"),
        (damage_newest, [], "is not as it was written; consolidate an earlier one with --checkpoint 10"),
        (damage_only, [], "is not as it was written; there is no other one: train the run again"),
        (delete_folder, [], ": no such folder; name a run's"),
        (delete_checkpoints, [], "no checkpoint; a run saves one"),
        (delete_configuration, [], "config.yaml: no such file"),
        (change_configuration, [], f"000020 is of recipe {CONFIG.fingerprint}, but"),
        (put_folder_in_the_way, [], "teacher_000020.safetensors could not be written"),
    ],
)
def test_mistake_is_said_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], harm: Any, options: list[str], said: str
) -> None:
    """What is missing, damaged or in the way is named, with code 2, and nothing is written."""
    if harm:
        harm(folder)
    assert run_command(folder, *options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not [path for path in folder.glob("*") if path.is_file() and "safetensors" in path.name]


def test_full_disk_leaves_no_torn_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that could not be written to its end is not there, and one that was there before stays."""
    assert run_command(folder) == 0
    before = (folder / "teacher_000020.safetensors").read_bytes()
    with file_size_limit(10_000):
        assert run_command(folder) == 2
    assert "could not be written: [Errno 27] File too large; make room" in capsys.readouterr().err
    assert (folder / "teacher_000020.safetensors").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "teacher_000020.safetensors",
    ]
