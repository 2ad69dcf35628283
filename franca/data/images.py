"""An encoded image of any origin in, an RGB image out, or one line that says why there is none.

Nothing here makes an image up: what cannot be decoded whole is an `UnreadableImageError`.
"""

import io
import os
import warnings

import numpy as np
from PIL import Image

from franca.data.errors import UnreadableImageError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

# The decoders that hostile bytes may reach; others of Pillow's start programs (EPS) or have no image to give (HDF5).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

BYTES_MAX = 1 << 30  # of an encoded image; what is larger is something else and would not fit into a worker


def read_image(path: str) -> Image.Image:
    """The image file at `path` as RGB. Raises `UnreadableImageError`."""
    name = printable(os.fsencode(path))
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a hot path
            content = file.read(BYTES_MAX)
    except OSError as error:
        raise UnreadableImageError(f"{name}: {error.strerror}") from error
    return decode_image(content, name=name)


def decode_image(content: bytes, *, name: str) -> Image.Image:
    """The first frame of an encoded image as RGB; `name` is for the message. Raises `UnreadableImageError`.

    Transparency is dropped, not blended, orientation tags are not followed, and 16-bit grays keep their upper byte. The
    most pixels are those that Pillow opens at all, 178,956,970: no image that the published trainings took is refused.
    """
    if len(content) >= BYTES_MAX:
        raise UnreadableImageError(f"{name}: {BYTES_MAX:,} bytes or more")
    if not content:
        raise UnreadableImageError(f"{name}: empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged tags and of sizes between Pillow's two limits
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return _to_rgb(image)
        except Image.UnidentifiedImageError as error:
            raise UnreadableImageError(f"{name}: no image of a known format") from error
        # Hostile bytes make a decoder raise whatever its parser stumbles over: struct.error, KeyError, MemoryError, …
        except Exception as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise UnreadableImageError(f"{name}: {said}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Three bytes a pixel. Pillow would cut 16-bit grays at 255, which makes nearly all of them white."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits (mode {image.mode}), whose range is not known")
    return image.convert("RGB")


def printable(name: bytes) -> str:
    """A name of any bytes as one line of text."""
    text = name.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else ascii(text)[1:-1]
