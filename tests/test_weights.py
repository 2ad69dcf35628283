"""Upstream's weights files, in every spelling of their names, load into our backbone exactly or not at all."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from recipes import make_recipe
from safetensors.torch import save_file
from test_vit import make_images, tokens_of
from torch import Tensor

from franca.config import Head, Quirks
from franca.models.heads import ProjectionHead, make_head
from franca.models.layers import interpolate_positions
from franca.models.vit import VisionTransformer
from franca.models.weights import WeightsError, load_backbone, load_head, load_weights, rename_upstream

MODEL = dataclasses.replace(make_recipe().model, embed_dim=8, depth=4)
StateDict = dict[str, Tensor]


def make_vit(*, seed: int = 0, grid: int = 3) -> VisionTransformer:
    vit = VisionTransformer(MODEL, grid=grid)
    vit.init_weights(torch.Generator().manual_seed(seed))
    return vit


def chunked(state: StateDict) -> StateDict:
    """Blocks in two chunks, numbered through, as upstream's sharded runs save them."""
    return {re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}", k): v for k, v in state.items()}


def prefixed(prefix: str) -> Callable[[StateDict], StateDict]:
    return lambda state: {prefix + name: value for name, value in state.items()}


def with_heads(state: StateDict) -> StateDict:
    """A teacher's checkpoint: the backbone beside its heads."""
    return prefixed("backbone.")(chunked(state)) | {"dino_head.mlp.0.weight": torch.ones(2)}


def whole_checkpoint(state: StateDict) -> StateDict:
    """Student and teacher in one file, the student's values wrong."""
    student = {f"student.backbone.{name}": torch.zeros_like(value) for name, value in state.items()}
    return student | prefixed("teacher.backbone.")(state) | {"teacher.ibot_head.mlp.0.bias": torch.ones(2)}


def with_rasa(state: StateDict) -> StateDict:
    return state | {"rasa_head.pre_pos_layers.0.weight": torch.ones(2)}


SPELLINGS: dict[str, Callable[[StateDict], StateDict]] = {
    "ours": dict,
    "chunked": chunked,
    "backbone": prefixed("backbone."),
    "module": prefixed("module."),
    "module.backbone": prefixed("module.backbone."),
    "module.module": prefixed("module.module."),
    "teacher": with_heads,
    "whole": whole_checkpoint,
    "rasa": with_rasa,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_loads_exactly(spelling: str) -> None:
    """Prefixes, chunks and parts that are no backbone change nothing of what arrives."""
    source, target = make_vit(seed=0), make_vit(seed=1)
    state = SPELLINGS[spelling](source.state_dict())
    assert set(rename_upstream(state)) == set(source.state_dict())
    load_backbone(target, state)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)


def test_renaming_is_idempotent() -> None:
    """Names that are ours already stay as they are."""
    state = chunked(make_vit().state_dict())
    assert set(rename_upstream(rename_upstream(state))) == set(make_vit().state_dict())


def test_missing_and_unexpected_names_are_told() -> None:
    """Nothing loads in part: the error counts and names the tensors on both sides, and the model stays untouched."""
    target = make_vit(seed=1)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state = make_vit(seed=0).state_dict()
    del state["norm.bias"]
    state["blocks.4.norm1.weight"] = torch.ones(8)
    with pytest.raises(WeightsError, match=r"1 missing: norm\.bias; 1 unexpected: blocks\.4\.norm1\.weight"):
        load_backbone(target, state)
    assert all(torch.equal(target.state_dict()[name], value) for name, value in before.items())


def test_many_names_are_cut_in_their_order() -> None:
    """A message stays readable: the first eight, blocks in the order of their numbers."""
    state = {f"blocks.{i}.extra": torch.ones(1) for i in (10, 2, 1, 3, 4, 5, 6, 7, 8, 9)} | make_vit().state_dict()
    with pytest.raises(WeightsError, match=r"10 unexpected: blocks\.1\.extra, blocks\.2\.extra.*blocks\.8\.extra, …"):
        load_backbone(make_vit(), state)


def test_nothing_of_a_backbone_is_told() -> None:
    """An empty file, or a head's, is missing everything."""
    with pytest.raises(WeightsError, match="missing: blocks"):
        load_backbone(make_vit(), {"dino_head.mlp.0.weight": torch.ones(2)})


def test_another_shape_is_told() -> None:
    """A tensor of another size is named with both shapes."""
    state = make_vit().state_dict()
    state["norm.weight"] = torch.ones(9)
    with pytest.raises(WeightsError, match=re.escape("1 of another shape: norm.weight is (9,) for (8,)")):
        load_backbone(make_vit(), state)


def test_positions_of_another_grid_are_refused_unless_asked_for() -> None:
    """A 518 px release is not taken for a 224 px one in silence: here 20 px for 12."""
    source, target = make_vit(grid=5), make_vit(seed=1, grid=3)
    message = r"grid of 5 × 5 patches \(20 px\), the model one of 3 × 3 \(12 px\); make the model with grid=5"
    with pytest.raises(WeightsError, match=message):
        load_backbone(target, source.state_dict())
    load_backbone(target, source.state_dict(), interpolate=True)
    positions = interpolate_positions(source.pos_embed, rows=3, columns=3, offset=MODEL.interpolate_offset)
    assert torch.equal(target.pos_embed, positions)


def test_interpolated_weights_see_as_the_larger_grid_does() -> None:
    """On a small crop, resampling at loading equals upstream's resampling in the forward pass."""
    source, target = make_vit(grid=5), make_vit(seed=1, grid=3)
    load_backbone(target, source.state_dict(), interpolate=True)
    images = make_images((2, 12, 12))[0].float()
    torch.testing.assert_close(tokens_of(target(images)), tokens_of(source(images)))


def test_positions_that_are_no_square_grid_are_another_shape() -> None:
    """Only a class token and a square of patches can be resampled."""
    state = make_vit().state_dict()
    state["pos_embed"] = torch.ones(1, 12, 8)
    with pytest.raises(WeightsError, match=re.escape("pos_embed is (1, 12, 8) for (1, 10, 8)")):
        load_backbone(make_vit(), state, interpolate=True)


@pytest.mark.parametrize("wrapper", [None, "teacher", "model"])
def test_files_of_torch_load(wrapper: str | None, tmp_path: Path) -> None:
    """A bare state dict, and one in upstream's wrappers, with whatever else lies beside it."""
    state = make_vit().state_dict()
    path = tmp_path / "weights.pth"
    torch.save(state if wrapper is None else {wrapper: state, "iteration": 5}, path)
    loaded = load_weights(path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_files_of_safetensors_load(tmp_path: Path) -> None:
    """Our own teachers are safetensors files."""
    state = make_vit().state_dict()
    save_file(state, tmp_path / "teacher.safetensors")
    loaded = load_weights(tmp_path / "teacher.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


class Intruder:
    """An object that would run code as it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("intruded"),)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights come from strangers: nothing in them is executed."""
    monkeypatch.chdir(tmp_path)
    torch.save({"teacher": Intruder()}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"weights\.pth: holds more than tensors"):
        load_weights(tmp_path / "weights.pth")
    assert not (tmp_path / "intruded").exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", bytes(1000)])
def test_a_damaged_file_is_told_in_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    """Whatever its bytes, the message is one line that names the file."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=re.escape(name)) as caught:
        load_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_text_for_weights_is_told_with_what_was_raised(tmp_path: Path) -> None:
    """A bare number, which is all that the unpickler says of a text, would tell nobody anything."""
    (tmp_path / "notes.txt").write_text("hello\n")
    with pytest.raises(WeightsError, match=r"notes\.txt: not a weights file, or damaged: [A-Z]\w+: .*\d+"):
        load_weights(tmp_path / "notes.txt")


@pytest.mark.parametrize(("name", "save"), [("weights.pth", torch.save), ("weights.safetensors", save_file)])
def test_a_torn_file_is_told(name: str, save: Callable[[StateDict, Path], None], tmp_path: Path) -> None:
    """Half of a download is no weights file."""
    path = tmp_path / name
    save(make_vit().state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match=re.escape(name)):
        load_weights(path)


def test_an_absent_file_is_told(tmp_path: Path) -> None:
    """The path is in the message."""
    with pytest.raises(WeightsError, match=r"absent\.pth: no such file"):
        load_weights(tmp_path / "absent.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "holds a list"),
        ({"epoch": 3}, "not named tensors: epoch"),
        ({3: torch.ones(1)}, "not named tensors: 3"),
    ],
)
def test_a_file_without_named_tensors_is_told(content: object, message: str, tmp_path: Path) -> None:
    """Something else that torch wrote is not weights."""
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=message):
        load_weights(tmp_path / "other.pth")


def make_loaded_head(*, layers: int, nesting: tuple[int, ...], seed: int) -> ProjectionHead:
    head = make_head(
        Head(prototypes=16, hidden=6, bottleneck=5, layers=layers), embed_dim=8, nesting=nesting, quirks=Quirks()
    )
    head.init_weights(torch.Generator().manual_seed(seed))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(seed))
    return head


def upstream_head(state: StateDict, *, layers: int) -> StateDict:
    """Upstream's names: an MLP of one layer is a plain layer."""
    return {re.sub(r"^(mlp|mlps\.\d+)\.0\.", r"\1.", k) if layers == 1 else k: v for k, v in state.items()}


def parametrized(state: StateDict) -> StateDict:
    """The weight-normed layers as newer versions of torch write them."""
    renamed = {}
    for name, value in state.items():
        name = name.replace(".weight_g", ".parametrizations.weight.original0")
        renamed[name.replace(".weight_v", ".parametrizations.weight.original1")] = value
    return renamed


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("nesting", [(), (2, 4, 8)])
@pytest.mark.parametrize("spell", [dict, parametrized])
def test_heads_of_a_whole_checkpoint_load_exactly(layers: int, nesting: tuple[int, ...], spell) -> None:
    """The teacher's head of that name arrives to the bit; the student's and the other head are left out."""
    source, target = (make_loaded_head(layers=layers, nesting=nesting, seed=seed) for seed in (0, 1))
    state = spell(upstream_head(source.state_dict(), layers=layers))
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    checkpoint = {
        **prefixed("module.teacher.dino_head.")(state),
        **prefixed("module.teacher.ibot_head.")(zeros),
        **prefixed("module.student.dino_head.")(zeros),
        **prefixed("module.teacher.backbone.")(make_vit().state_dict()),
    }
    load_head(target, checkpoint, name="dino_head")
    assert all(torch.equal(target.state_dict()[name], value) for name, value in source.state_dict().items())
    load_head(target, checkpoint, name="ibot_head")
    assert not any(value.any() for value in target.state_dict().values())


def test_a_loaded_head_computes_what_torchs_own_layers_compute() -> None:
    """Weights of a head made of torch's linear, GELU and weight-normed layers give the same logits here."""
    torch.manual_seed(0)
    mlp = torch.nn.Sequential(
        torch.nn.Linear(8, 6), torch.nn.GELU(), torch.nn.Linear(6, 6), torch.nn.GELU(), torch.nn.Linear(6, 5)
    )
    last = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(5, 16, bias=False))
    reference = torch.nn.ModuleDict({"mlp": mlp, "last_layer": last})
    head = make_loaded_head(layers=3, nesting=(), seed=1)
    load_head(head, prefixed("dino_head.")(reference.state_dict()), name="dino_head")
    x = torch.randn(4, 8)
    expected = last(torch.nn.functional.normalize(mlp(x), dim=-1))
    torch.testing.assert_close(head(x)[0], expected, rtol=1e-5, atol=1e-5)


def test_a_head_of_another_kind_is_told() -> None:
    """A Matryoshka head is no plain head, nor is one of other widths, nor a file without any."""
    nested = prefixed("dino_head.")(make_loaded_head(layers=3, nesting=(2, 4, 8), seed=0).state_dict())
    with pytest.raises(WeightsError, match=r"missing: last_layer\.weight_g.*unexpected: last_layers\.0\.weight_g"):
        load_head(make_loaded_head(layers=3, nesting=(), seed=1), nested, name="dino_head")
    wrong = dict(nested) | {"dino_head.matryoshka_projections.0.weight": torch.ones(3, 3)}
    with pytest.raises(WeightsError, match=r"of another shape: .*is \(3, 3\) for \(2, 2\)"):
        load_head(make_loaded_head(layers=3, nesting=(2, 4, 8), seed=1), wrong, name="dino_head")
    with pytest.raises(WeightsError, match="missing"):
        load_head(make_loaded_head(layers=3, nesting=(), seed=1), make_vit().state_dict(), name="dino_head")
