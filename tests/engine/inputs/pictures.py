"""Pictures to put into prompts, and the files that hold them."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Return a picture of random colours: no two places, sizes or seeds look alike."""
    rng = np.random.default_rng([seed, width, height])
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the bytes of the file that Pillow makes of an image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """Return a PNG whose header has this size and whose pixels are missing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )


def oriented(orientation: int) -> Image.Exif:
    """Return EXIF data that says how the camera was held, 1 to 8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif
