"""The hue of an image turned: bytes in, bytes out, those of Pillow's RGB to HSV and back, in less than half the time.

Of a color only the largest and the smallest channel, their difference, and which of six orders the channels come in
decide: tables of 64 K entries hold what Pillow's arithmetic gives, and gathering from them is what numpy does fast.
That every one of the 16.7 million colors comes out as Pillow's is a test.
"""

import functools

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

Table = NDArray[np.uint8]
LEVELS = np.arange(256)


def turn_hue(pixels: UInt8[np.ndarray, "h w 3"], *, steps: int) -> UInt8[np.ndarray, "h w 3"]:
    """Turn the hue by `steps` of 256 in a circle; saturation and value stay, up to Pillow's rounding."""
    red, green, blue = np.ascontiguousarray(pixels.reshape(-1, 3).T)
    high = np.maximum(np.maximum(red, green), blue)
    low = np.minimum(np.minimum(red, green), blue)
    spread = high - low
    # The distance of the middle channel from the largest; sums of bytes wrap around and come back
    distance = high + high + low - (red + green + blue)
    not_red, is_blue = red != high, (blue == high) & (green != high) & (red != high)
    order = 2 * (not_red.view(np.uint8) + is_blue.view(np.uint8)) + np.where(is_blue, red == low, blue == low)
    hue = _hues().take(_join(order, distance, spread)) + np.uint8(steps % 256)
    place = _join(hue, _saturations().take(_join(spread, high)))
    turned = np.empty((len(high), 3), np.uint8)
    value = high.astype(np.float32)
    for channel, shares in enumerate(_shares()):
        turned[:, channel] = shares.take(place) * value + np.float32(0.5)
    return turned.reshape(pixels.shape)


def _join(*parts: Table) -> NDArray[np.intp]:
    """Bytes put side by side, the first one highest, as places in a table."""
    place = parts[0].astype(np.intp)
    for part in parts[1:]:
        place <<= 8
        place |= part
    return place


@functools.cache
def _hues() -> Table:
    """Hue by order of the channels, distance of the middle one from the largest, and spread: 6 * 256 * 256 bytes."""
    distance, spread = np.meshgrid(LEVELS, LEVELS, indexing="ij")
    high = np.full_like(distance, 255)
    low, middle = high - spread, high - np.minimum(distance, spread)
    orders = (
        (high, low, middle),
        (high, middle, low),
        (low, high, middle),
        (middle, high, low),
        (middle, low, high),
        (low, middle, high),
    )
    return np.concatenate([_to_hsv(channels)[0] for channels in orders])


@functools.cache
def _saturations() -> Table:
    """Saturation by spread and largest channel: 256 * 256 bytes."""
    spread, high = np.meshgrid(LEVELS, LEVELS, indexing="ij")
    low = high - np.minimum(spread, high)
    return _to_hsv((high, low, low))[1]


@functools.cache
def _shares() -> tuple[NDArray[np.float32], ...]:
    """Which share of the value each channel has, by hue and saturation (Pillow `Convert.c`, `hsv2rgb`)."""
    sixth, rest = np.divmod(LEVELS * 6.0 / 255.0, 1.0)
    saturation, rest = (LEVELS / 255).astype(np.float32), rest.astype(np.float32)[:, None]
    whole, none = np.ones((256, 256)), np.broadcast_to(1.0 - saturation.astype(np.float64), (256, 256))
    falling = 1.0 - (saturation * rest).astype(np.float64)
    rising = 1.0 - saturation.astype(np.float64) * (1.0 - rest.astype(np.float64))
    of_sixths = (
        (whole, falling, none, none, rising, whole),  # red
        (rising, whole, whole, falling, none, none),
        (none, none, rising, whole, whole, falling),
    )
    sector = sixth.astype(int)[:, None] % 6
    return tuple(np.choose(sector, of_channel).astype(np.float32).ravel() for of_channel in of_sixths)


def _to_hsv(channels: tuple[NDArray[np.int64], ...]) -> tuple[Table, ...]:
    """Colors as Pillow converts them, channel by channel."""
    colors = np.stack([channel.ravel() for channel in channels], axis=1).astype(np.uint8)
    converted = Image.frombytes("RGB", (len(colors), 1), colors.tobytes()).convert("HSV")
    return tuple(np.asarray(band).ravel() for band in converted.split())
