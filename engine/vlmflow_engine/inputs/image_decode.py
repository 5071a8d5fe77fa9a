"""Bytes of a file to an RGB image, with the limits checked before anything is decoded.

The error texts are ours: what a decoder says may hold addresses of its memory (CVE-2026-22778).
"""

import io
import threading
import warnings
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from vlmflow_engine.errors import (
    ImageCorruptError,
    ImageFormatError,
    ImageTooLargeError,
    ImageTruncatedError,
)

# Decoders with a good record and no scripting, page or font machinery behind them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

_PNG_END = b"IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"


def decode_image(
    data: bytes, *, max_pixels: int, min_side: int = 1, allow_tiff: bool = False
) -> Image.Image:
    """Decode the first frame, upright, as RGB. Raises a MediaError.

    min_side    pixels that width and height must have
    allow_tiff  TIFF too, whose decoder has a longer record of faults
    """
    formats = (*FORMATS, "TIFF") if allow_tiff else FORMATS
    with silence:
        image = open_image(data, max_pixels=max_pixels, formats=formats)
        if min(image.size) < min_side:
            raise ImageFormatError(
                f"image has {image.width:,} x {image.height:,} pixels; a side must have at least "
                f"{min_side:,}"
            )
        try:
            image.load()
        except MemoryError:
            raise _out_of_memory(image) from None
        except Exception as error:
            # Whatever a decoder stumbles over, this image is lost and nothing else.
            raise _broken(image.format, data, error) from None
        # Pillow takes a PNG whose last rows are missing; what follows the end is nobody's concern.
        if image.format == "PNG" and _PNG_END not in data:
            raise _broken(image.format, data, None)
    return to_rgb(image)


def open_image(
    data: bytes, *, max_pixels: int, formats: tuple[str, ...] = FORMATS
) -> ImageFile.ImageFile:
    """Read the header and check its pixels; decode nothing. Raises a MediaError."""
    if (size := _webp_size(data)) is not None:  # Pillow makes room for it as it opens it
        _check_pixels(size, max_pixels)
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        raise _unreadable(data, formats) from None
    except Image.DecompressionBombError:
        allowed = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ImageTooLargeError(f"image has more than {allowed:,} pixels") from None
    except Exception:
        raise ImageCorruptError(f"image of {len(data):,} bytes has a broken header") from None
    _check_pixels(image.size, max_pixels)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image upright (EXIF) and into RGB, transparency on white as transformers does.

    Raises ImageCorruptError.
    """
    if 0 in image.size:
        raise ImageCorruptError(f"image of {image.width} x {image.height} pixels has none")
    with silence:
        try:
            image.load()
        except MemoryError:
            raise _out_of_memory(image) from None
        except Exception:
            raise ImageCorruptError("image cannot be decoded, or is closed") from None
        with suppress(Exception):  # broken metadata; the picture is there
            image = ImageOps.exif_transpose(image)
        try:
            return _convert(image)
        except MemoryError:
            raise _out_of_memory(image) from None
        except ImageFormatError:
            raise
        except Exception:
            raise ImageCorruptError(f"image of mode {image.mode!r} cannot become RGB") from None


def _convert(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):  # Pillow would clip the upper 255 of 256 shades to white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        extremes: Any = image.getextrema()
        low, high = extremes
        # Pillow would clip them without a word: a depth map to white, shares of one to black.
        if not (low >= 0 and high <= 255) or (image.mode == "F" and 0 < high <= 1):
            raise ImageFormatError(
                f"image of mode {image.mode!r} holds values from {low:g} to {high:g}, which are "
                "not those of 8 bits; scale it to 0 ... 255 first"
            )
    if "A" in image.getbands() or "transparency" in image.info:
        background = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


class _Silence:
    """Ignores warnings while any thread is inside: the filters belong to the whole process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._caught: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                # Our own limit of pixels is the one that counts, and we report on our own.
                warnings.simplefilter("ignore")
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self._caught.__exit__()


silence = _Silence()


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"image has {width:,} x {height:,} pixels, more than max_image_pixels={max_pixels:,}"
        )


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that a WebP file claims; None if it is none."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    if data[12:16] == b"VP8X":
        return _whole(data[24:27]) + 1, _whole(data[27:30]) + 1
    if data[12:16] == b"VP8L":
        bits = _whole(data[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return _whole(data[26:28]) & 0x3FFF, _whole(data[28:30]) & 0x3FFF


def _whole(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _out_of_memory(image: Image.Image) -> ImageTooLargeError:
    return ImageTooLargeError(
        f"image of {image.width:,} x {image.height:,} pixels does not fit into the memory"
    )


def _broken(
    kind: str | None, data: bytes, error: Exception | None
) -> ImageCorruptError | ImageTruncatedError:
    is_cut = (
        (kind == "PNG" and _PNG_END not in data)
        or (kind == "JPEG" and _JPEG_END not in data[-64:])
        or "truncated" in str(error)
    )
    if is_cut:
        return ImageTruncatedError(f"{kind} image ends after {len(data):,} bytes, before its end")
    return ImageCorruptError(f"{kind} image of {len(data):,} bytes cannot be decoded")


def _unreadable(data: bytes, formats: tuple[str, ...]) -> ImageCorruptError | ImageFormatError:
    if not data:
        return ImageCorruptError("image has zero bytes")
    head = data[:16].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return ImageFormatError("this is a web page or an XML file, not an image")
    refused = ["HEIC", "AVIF", "PDF"]
    is_refused = data[4:8] == b"ftyp" or data[:4] == b"%PDF"
    if "TIFF" not in formats:
        refused.insert(0, "TIFF")
        is_refused |= data[:4] in (b"II*\0", b"MM\0*")
    if is_refused:
        return ImageFormatError(
            f"{', '.join(refused[:-1])} and {refused[-1]} files are not read; "
            f"allowed are {', '.join(formats)}"
        )
    return ImageCorruptError(
        f"{len(data):,} bytes that are no image; allowed are {', '.join(formats)}"
    )
