"""Whatever bytes claim to be an image become RGB pixels or a line that names them and says why not."""

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hostile_images import encode, make_photo, readable_images, unreadable_images
from PIL import Image

from franca.data.errors import UnreadableImageError
from franca.data.images import decode_image, read_image

READABLE, UNREADABLE = readable_images(), unreadable_images()


@pytest.mark.parametrize("name", READABLE)
def test_odd_images_are_read(name: str) -> None:
    """Every color mode, palettes, animations, single pixels, wrong names and broken tags give RGB and no warning."""
    image = decode_image(READABLE[name], name=name)
    assert image.mode == "RGB"
    assert min(image.size) >= 1


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_image_is_named_with_its_reason(name: str) -> None:
    """One line with the name and the reason; never pixels that nobody photographed."""
    content, reason = UNREADABLE[name]
    with pytest.raises(UnreadableImageError, match=f"^{re.escape(name)}: .*({reason})") as caught:
        decode_image(content, name=name)
    assert "\n" not in str(caught.value)


def test_gray_of_16_bits_keeps_its_upper_byte() -> None:
    """Levels 0..65535 become 0..255; Pillow alone would make everything from 256 on white."""
    levels = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    for kind in ("PNG", "TIFF"):
        found = np.asarray(decode_image(encode(Image.fromarray(levels), kind), name="x"))
        assert np.array_equal(found[..., 0], levels >> 8)
    image = decode_image(b"P5\n2 1\n65535\n" + bytes([0x75, 0x30, 0xFF, 0xFF]), name="x")
    assert [image.getpixel((column, 0))[0] for column in range(2)] == [0x75, 0xFF]


def test_animation_is_its_first_frame() -> None:
    """Of several frames the first one counts, as the published trainings had it."""
    first = make_photo(8).resize((48, 48))
    assert decode_image(READABLE["animated.png"], name="x").tobytes() == first.tobytes()
    assert decode_image(READABLE["several.jpg"], name="x").tobytes() == (
        Image.open(io.BytesIO(encode(first, "JPEG"))).convert("RGB").tobytes()
    )


def test_common_modes_have_pillows_pixels() -> None:
    """Where Pillow converts without loss of range, its own conversion is what comes out."""
    for name in ("plain.jpg", "gray.jpg", "cmyk.jpg", "progressive.jpg", "palette.png", "rgba.png", "bilevel.png"):
        expected = Image.open(io.BytesIO(READABLE[name])).convert("RGB")
        assert decode_image(READABLE[name], name=name).tobytes() == expected.tobytes()


def test_name_of_any_bytes_is_said_in_one_line_of_text(tmp_path: Path) -> None:
    """It goes to the log and to unreadable.txt, which hold lines of UTF-8: the run must not end over a name."""
    path = os.fsencode(tmp_path) + b"/\xe9\n.jpg"
    Path(os.fsdecode(path)).write_bytes(b"no image")
    for name in (path, path + b".absent"):
        with pytest.raises(UnreadableImageError) as raised:
            read_image(os.fsdecode(name))
        said = str(raised.value)
        assert "\\xe9" in said
        assert said.isprintable()
        said.encode()
