"""Images and archives of the kinds that break loaders: made in a folder, with what is to be said of each.

`python tests/hostile_images.py FOLDER` writes them to look at.
"""

import io
import random
import struct
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def make_photo(px: int = 48) -> Image.Image:
    """Smooth color noise."""
    noise = np.random.default_rng(px).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((px, px), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def readable_images() -> dict[str, bytes]:
    """Odd, but images: each must be read."""
    photo = make_photo()
    gray16 = Image.fromarray((np.arange(48 * 48, dtype=np.uint16) * 28).reshape(48, 48))
    palette = photo.quantize(16)
    broken_exif = b"Exif\0\0" + b"II*\0\xff\xff\xff\xff" + bytes(range(40))
    frames = [make_photo(px).resize((48, 48)) for px in (8, 16, 24)]
    files = {
        "plain.jpg": encode(photo, "JPEG"),
        "gray.jpg": encode(photo.convert("L"), "JPEG"),
        "cmyk.jpg": encode(photo.convert("CMYK"), "JPEG"),
        "cmyk.tif": encode(photo.convert("CMYK"), "TIFF"),
        "ycbcr.tif": encode(photo.convert("YCbCr"), "TIFF"),
        "lab.tif": encode(Image.merge("LAB", photo.split()), "TIFF"),
        "progressive.jpg": encode(photo, "JPEG", progressive=True),
        "gray-16-bit.png": encode(gray16, "PNG"),
        "gray-16-bit.tif": encode(gray16, "TIFF"),
        "palette.png": encode(palette, "PNG"),
        "palette-transparent.png": encode(palette, "PNG", transparency=3),
        "palette-transparencies.png": encode(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        "rgb-transparent-color.png": encode(photo, "PNG", transparency=(1, 2, 3)),
        "rgba.png": encode(photo.convert("RGBA"), "PNG"),
        "gray-alpha.png": encode(photo.convert("LA"), "PNG"),
        "bilevel.png": encode(photo.convert("1"), "PNG"),
        "animated.gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated.png": encode(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "animated.webp": encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "several.jpg": encode(frames[0], "MPO", save_all=True, append_images=frames[1:]),
        "lzw.tif": encode(photo, "TIFF", compression="tiff_lzw"),
        "one-pixel.png": encode(photo.resize((1, 1)), "PNG"),
        "one-pixel-wide.jpg": encode(photo.resize((1, 300)), "JPEG"),
        "one-pixel-high.jpg": encode(photo.resize((300, 1)), "JPEG"),
        "png-named.jpg": encode(photo, "PNG"),
        "jpeg-named.png": encode(photo, "JPEG"),
        "webp-named.JPEG": encode(photo, "WEBP"),
        "exif-broken.jpg": encode(photo, "JPEG", exif=broken_exif),
        "rubbish-after.jpg": encode(photo, "JPEG") + bytes(1000),
        "name with spaces é.jpg": encode(photo, "JPEG"),
    }
    assert len(files) == 30
    return files


def unreadable_images() -> dict[str, tuple[bytes, str]]:
    """No images: bytes, and a part of what must be said of them."""
    photo = make_photo()
    jpeg, png, webp = (encode(photo, kind) for kind in ("JPEG", "PNG", "WEBP"))
    unknown, cut = "no image of a known format", "truncated|cut off|Truncated|not enough|could not|broken"
    files = {
        "empty.jpg": (b"", "empty file"),
        "empty.png": (b"", "empty file"),
        "text.jpg": (b"<html><body>404 Not Found</body></html>\n", unknown),
        "zeros.jpg": (bytes(5000), unknown),
        "noise.jpg": (random.Random(0).randbytes(5000), unknown),
        "archive.jpg": (b"PK\3\4" + bytes(100), unknown),
        "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", unknown),
        "vector.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", unknown),
        "start-only.jpg": (jpeg[:2], unknown),
        "header-only.png": (png[:8], ""),
        "cut-in-header.jpg": (jpeg[:200], ""),
        "cut-in-data.jpg": (jpeg[: len(jpeg) * 2 // 3], cut),
        "cut-in-data.png": (png[: len(png) * 2 // 3], cut),
        "cut-in-data.webp": (webp[: len(webp) * 2 // 3], ""),
        "cut-in-data.tif": (encode(photo, "TIFF")[:2000], ""),
        "cut-in-data.bmp": (encode(photo, "BMP")[:2000], cut),
        "cut-in-data.gif": (encode(photo.quantize(64), "GIF")[:900], ""),
        "cut-in-data.ppm": (encode(photo, "PPM")[:2000], ""),
        "checksum.png": (png[:50] + bytes([png[50] ^ 255]) + png[51:], ""),
        "float.tif": (encode(Image.new("F", (9, 9), 0.5), "TIFF"), "range is not known"),
        "gray-32-bit.tif": (encode(Image.new("I", (9, 9), 70_000), "TIFF"), "range is not known"),
        "bomb.png": (bomb_png(20_000, 20_000), "400,?000,?000|exceeds limit|more than the limit"),
        "bomb-flat.png": (bomb_png(1, 2**31 - 1), "exceeds limit|more than the limit"),
        "bomb.gif": (b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(30), ""),
        "no-pixels.png": (bomb_png(0, 0), ""),
        "no-width.ppm": (b"P6\n0 9\n255\n", ""),
        "text-bomb.png": (text_bomb_png(), ""),
        "reversed.jpg": (jpeg[::-1], unknown),
        "shifted.jpg": (b"\n" + jpeg, unknown),
        "scan-gone.jpg": (jpeg.replace(b"\xff\xda", b"\xff\xfe"), ""),
    }
    assert len(files) == 30
    return files


def bomb_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be enormous."""
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + png_chunk(b"IDAT", zlib.compress(bytes(1000)))
        + png_chunk(b"IEND", b"")
    )


def text_bomb_png() -> bytes:
    """A PNG whose comment unpacks to 256 MB before its pixels come."""
    comment = b"Comment\0\0" + zlib.compress(bytes(1 << 28), 9)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)) + png_chunk(
        b"zTXt", comment
    )  # fmt: skip


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def make_tar(path: Path, members: dict[str, bytes], *, kind: int = tarfile.PAX_FORMAT) -> None:
    """A tar archive of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as archive:
        for name, content in members.items():
            add_member(archive, name, content)


def add_member(archive: tarfile.TarFile, name: str, content: bytes = b"", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in fields.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content) if content else None)


def write_hostile_files(folder: Path) -> None:
    """The 60 images as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in readable_images().items():
        (folder / name).write_bytes(content)
    for name, (content, _) in unreadable_images().items():
        (folder / name).write_bytes(content)


def write_hostile_archives(folder: Path) -> None:
    """Archives of all kinds of damage, the 60 images in one of them."""
    jpeg = encode(make_photo(), "JPEG")
    everything = {**readable_images(), **{name: content for name, (content, _) in unreadable_images().items()}}
    make_tar(folder / "images.tar", everything)
    make_tar(folder / "sound.tar", {f"{number:05d}.jpg": jpeg for number in range(5)})
    (folder / "empty.tar").write_bytes(b"")
    make_tar(folder / "no-members.tar", {})
    (folder / "no-tar.tar").write_bytes(b"<html>404</html>" * 100)
    (folder / "gzip.tar").write_bytes(b"\x1f\x8b\x08" + bytes(2000))
    whole = (folder / "sound.tar").read_bytes()
    second = 512 + -(-len(jpeg) // 512) * 512
    (folder / "cut-in-content.tar").write_bytes(whole[: second + 612])
    (folder / "cut-in-header.tar").write_bytes(whole[:100])
    (folder / "no-end.tar").write_bytes(whole.rstrip(b"\0").ljust(-(-len(whole.rstrip(b"\0")) // 512) * 512, b"\0"))
    (folder / "damaged.tar").write_bytes(whole[:second] + bytes(range(256)) * 2 + whole[second + 512 :])
    make_tar(folder / "long-names-pax.tar", {f"{'x' * 150}/{n}é.jpg": jpeg for n in range(3)})
    make_tar(folder / "long-names-gnu.tar", {f"{'y' * 150}/{n}.jpg": jpeg for n in range(3)}, kind=tarfile.GNU_FORMAT)
    with tarfile.open(folder / "odd-members.tar", "w") as archive:
        add_member(archive, "../../climbs.jpg", jpeg)
        add_member(archive, "/absolute.jpg", jpeg)
        add_member(archive, "a/../../b.jpg", jpeg)
        add_member(archive, "folder", type=tarfile.DIRTYPE)
        add_member(archive, "link.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add_member(archive, "hard.jpg", type=tarfile.LNKTYPE, linkname="good.jpg")
        add_member(archive, "device.jpg", type=tarfile.CHRTYPE)
        add_member(archive, "disk.jpg", type=tarfile.BLKTYPE)
        add_member(archive, "pipe.jpg", type=tarfile.FIFOTYPE)
        add_member(archive, "notes.md", b"no image")
        add_member(archive, "good.txt", b"a caption")
        add_member(archive, "good.jpg", encode(make_photo(24), "JPEG"))
        add_member(archive, "good.jpg", jpeg)
        add_member(archive, "nothing.jpg")
        add_member(archive, "line\nbreak.jpg", jpeg)
    # Old GNU sparse: a member of 1 MB of which 512 bytes are stored
    header = bytearray(tarfile.TarInfo("sparse.jpg").tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[156:157] = b"00000001000\0", b"S"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (folder / "sparse.tar").write_bytes(bytes(header) + bytes([7]) * 512 + whole)


if __name__ == "__main__":
    write_hostile_files(Path(sys.argv[1]) / "files")
    write_hostile_archives(Path(sys.argv[1]) / "archives")
