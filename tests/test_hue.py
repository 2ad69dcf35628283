"""Turning a hue gives the bytes of Pillow's conversions, on every color there is."""

import numpy as np
import pytest
from PIL import Image

from franca.data.hue import turn_hue


def turn_with_pillow(pixels: np.ndarray, steps: int) -> np.ndarray:
    hsv = np.array(Image.fromarray(pixels).convert("HSV"))
    hsv[..., 0] += np.uint8(steps % 256)
    return np.asarray(Image.frombytes("HSV", hsv.shape[1::-1], hsv.tobytes()).convert("RGB"))


@pytest.mark.parametrize("steps", [0, 13, -25])
def test_every_color_is_turned_as_pillow_turns_it(steps: int) -> None:
    """All 16,777,216 colors, byte for byte."""
    green, blue = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8), indexing="ij")
    for red in range(0, 256, 8):
        reds = np.repeat(np.arange(red, red + 8, dtype=np.uint8), 256)[:, None].repeat(256, axis=1)
        pixels = np.stack([reds, np.tile(green, (8, 1)), np.tile(blue, (8, 1))], axis=-1)
        assert np.array_equal(turn_hue(pixels, steps=steps), turn_with_pillow(pixels, steps))


@pytest.mark.parametrize("steps", [*range(-128, 256, 37), 255])
def test_every_turn_is_pillows(steps: int) -> None:
    """Any number of steps, around the circle and back."""
    pixels = np.random.default_rng(0).integers(0, 256, (61, 47, 3), dtype=np.uint8)
    pixels[:20] = pixels[:20] // 16 * 16  # grays and equal channels
    assert np.array_equal(turn_hue(pixels, steps=steps), turn_with_pillow(pixels, steps))
    assert turn_hue(pixels[:1, :1], steps=steps).shape == (1, 1, 3)
