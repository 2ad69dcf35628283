"""Components equal those of a naive decomposition; planted objects become foreground; pictures repeat themselves."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from PIL import Image
from test_evaluate import make_run

from franca.evaluate.pca import (
    GAP_PX,
    PANEL_PX,
    RESAMPLING,
    Coloring,
    color_patches,
    fit_components,
    fit_image,
    main,
    otsu_threshold,
    render_panels,
    score_foreground,
    stretch,
)
from franca.export import main as export

GRID = (6, 8)


def make_tokens(*, seed: int = 0) -> Float[np.ndarray, "48 5"]:
    """Patches of an image whose middle is of another kind than its border."""
    tokens = np.random.default_rng(seed).normal(0, 0.3, (*GRID, 5))
    tokens[2:4, 2:6] += (4, -3, 0, 0, 0)
    return tokens.reshape(-1, 5)


def in_the_middle() -> np.ndarray:
    middle = np.zeros(GRID, bool)
    middle[2:4, 2:6] = True
    return middle.ravel()


def save_photograph(path: Path, *, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 5, size[0] // 5, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size).save(path)
    return path


@given(st.integers(0, 99), st.integers(4, 30), st.integers(3, 6))
def test_components_equal_those_of_the_singular_value_decomposition(seed: int, patches: int, dim: int) -> None:
    """Each axis is a right singular vector of the centered tokens, its largest loading positive."""
    tokens = np.random.default_rng(seed).normal(size=(patches, dim)) * np.arange(1, dim + 1)
    found = fit_components(tokens, count=3)
    _, _, expected = np.linalg.svd(tokens - tokens.mean(axis=0), full_matrices=False)
    for own, theirs in zip(found.axes, expected, strict=False):
        assert abs(own @ theirs) == pytest.approx(1, abs=1e-6)
        assert own[np.abs(own).argmax()] > 0
    np.testing.assert_allclose(found.project(tokens), (tokens - tokens.mean(axis=0)) @ found.axes.T)


@given(st.integers(0, 99))
def test_threshold_is_the_best_of_all(seed: int) -> None:
    """No edge of the histogram parts the values into groups of less variance within."""
    generator = np.random.default_rng(seed)
    values = np.concatenate([generator.normal(0, 1, 40), generator.normal(6, 1, 20)])

    def within(threshold: float) -> float:
        groups = values[values <= threshold], values[values > threshold]
        return sum(float(((group - group.mean()) ** 2).sum()) for group in groups if len(group))

    best = min(within(edge) for edge in np.histogram_bin_edges(values, bins=256)[1:-1])
    assert within(otsu_threshold(values)) <= 1.02 * best


@pytest.mark.parametrize("sign", [1, -1])
def test_what_stands_in_the_middle_is_foreground(sign: int) -> None:
    """The planted object scores positive and all else negative, whichever way the tokens point."""
    assert np.array_equal(score_foreground(sign * make_tokens(), grid=GRID) > 0, in_the_middle())


def test_equal_tokens_have_equal_colors_in_every_image() -> None:
    """Components are shared: what is in two images has one color, and an image alone has others."""
    tokens = make_tokens(seed=0), make_tokens(seed=1)
    tokens[1][7] = tokens[0][3]
    first, second = color_patches(tokens, grids=[GRID, GRID])
    np.testing.assert_allclose(first.all_patches[3], second.all_patches[7])
    np.testing.assert_allclose(first.foreground[3], second.foreground[7])
    alone = color_patches([tokens[1]], grids=[GRID])[0]
    assert not np.allclose(alone.all_patches, second.all_patches)
    assert np.array_equal(alone.score, second.score)


def test_colors_span_their_range() -> None:
    """The 1st and 99th percentile of the reference become 0 and 1, what lies beyond is cut, constants are no NaN."""
    reference = np.arange(101.0)[:, None]
    found = stretch(np.array([[-5.0], [1.0], [50.0], [99.0], [300.0]]), reference)
    np.testing.assert_allclose(found[:, 0], [0, 0, 0.5, 1, 1])
    assert np.array_equal(stretch(np.ones((3, 2)), np.ones((3, 2))), np.zeros((3, 2)))


def test_image_is_fitted_to_whole_patches() -> None:
    """The shorter side has the pixels asked for; both sides hold whole patches."""
    assert fit_image(Image.new("RGB", (640, 427)), px=56, patch_px=14).size == (84, 56)
    assert fit_image(Image.new("RGB", (30, 500)), px=28, patch_px=14).size == (28, 462)


@pytest.mark.parametrize("upsample", RESAMPLING)
def test_panels_stand_side_by_side(upsample: str) -> None:
    """Image, colors of all and of the foreground; by nearest neighbors a patch is one block of its color."""
    image = Image.new("RGB", (80, 60), (250, 128, 4))
    colors = np.random.default_rng(0).random((48, 3))
    score = np.where(in_the_middle(), 1.0, -1.0)
    picture = render_panels(image, Coloring(colors, 1 - colors, score), grid=GRID, resampling=RESAMPLING[upsample])
    width = round(80 * PANEL_PX / 60)
    assert picture.size == (3 * width + 2 * GAP_PX, PANEL_PX)
    assert picture.getpixel((5, 5)) == (250, 128, 4)
    assert picture.getpixel((width + GAP_PX // 2, 100)) == (255, 255, 255)
    row, column = 3, 4  # of a patch in the foreground
    center = (round((column + 0.5) * width / 8), round((row + 0.5) * PANEL_PX / 6))
    tolerance = 1 if upsample == "nearest" else 40
    expected = colors[row * 8 + column] * 255
    second = picture.getpixel((center[0] + width + GAP_PX, center[1]))
    third = picture.getpixel((center[0] + 2 * (width + GAP_PX), center[1]))
    np.testing.assert_allclose(second, expected, atol=tolerance)
    np.testing.assert_allclose(third, 255 - expected, atol=tolerance)
    corner = picture.getpixel((2 * (width + GAP_PX) + 3, 3))
    assert len(set(corner)) == 1
    assert corner[0] < 80


def test_command_draws_every_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A PNG an image, in their order, the same bytes each time, with the hash of the weights in it."""
    run = make_run(tmp_path / "run")
    images = [str(save_photograph(tmp_path / name, seed=seed)) for seed, name in enumerate(("x/a.png", "y/a.png"))]
    for out in ("one", "two"):
        assert main([str(run), *images, "--out", str(tmp_path / out), "--device", "cpu", "--size", "24"]) == 0
    names = [path.name for path in sorted((tmp_path / "one").iterdir())]
    assert names == ["01_a.png", "02_a.png"]
    assert [Path(line).name for line in capsys.readouterr().out.splitlines()] == names * 2
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with Image.open(tmp_path / "one" / "01_a.png") as picture:
        assert re.fullmatch("[0-9a-f]{64}", picture.text["checkpoint_sha256"])
    assert (
        main([str(run), *images, "--out", str(tmp_path / "three"), "--device", "cpu", "--size", "24", "--apart"]) == 0
    )
    assert (tmp_path / "three" / "02_a.png").read_bytes() != (tmp_path / "one" / "02_a.png").read_bytes()


def test_image_that_cannot_be_read_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are drawn under their numbers, it is named; where none is left, nothing is drawn and the code is 2."""
    run, image = make_run(tmp_path / "run"), save_photograph(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(image.read_bytes()[:60])
    options = ["--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([str(run), str(tmp_path / "broken.png"), str(image), *options]) == 0
    shown = capsys.readouterr()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["02_a.png"]
    assert shown.err.startswith(f"left out: {tmp_path}/broken.png: ")
    assert main([str(run), str(tmp_path / "broken.png"), str(tmp_path / "absent.png"), *options]) == 2
    assert "error: none of the 2 images can be read, the last: " in capsys.readouterr().err


def test_exported_folder_draws_what_its_run_draws(tmp_path: Path) -> None:
    """`franca export` wrote the same weights, mean and size: the same bytes."""
    run, image = make_run(tmp_path / "run"), str(save_photograph(tmp_path / "a.png"))
    assert export([str(run), "--out", str(tmp_path / "exported")]) == 0
    for name in ("run", "exported"):
        assert main([str(tmp_path / name), image, "--out", str(tmp_path / f"of-{name}"), "--device", "cpu"]) == 0
    assert (tmp_path / "of-run" / "01_a.png").read_bytes() == (tmp_path / "of-exported" / "01_a.png").read_bytes()


@pytest.mark.parametrize(
    ("more", "said"),
    [(("--size", "25"), "--size: 25"), (("--rasa", "absent"), "absent")],
)
def test_what_cannot_be_drawn_is_named(
    more: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2 and one line; no picture is written."""
    image = save_photograph(tmp_path / "a.png")
    command = [str(make_run(tmp_path / "run")), str(image), *more, "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(command) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
