"""Bytes of a file to an RGB image, with the limits checked before anything is decoded.

The error texts are ours: what a decoder says may hold addresses of its memory (CVE-2026-22778).
"""

import io
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from vlmflow_engine.errors import (
    ImageCorruptError,
    ImageFormatError,
    ImageTooLargeError,
    ImageTruncatedError,
)

# Decoders with a good record and no scripting, page or font machinery behind them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

# Where a JPEG, PNG or GIF ends. A file without it was cut off, whatever its decoder can save.
_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b"\x3b"}


def decode_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """Decode the first frame, upright, as RGB. Raises a MediaError.

    Transparent pixels keep the colour that the file gives them, as in transformers' processors.
    """
    try:
        with warnings.catch_warnings():
            # Our own limit is the one that counts.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise _unreadable(data) from None
    except Image.DecompressionBombError:
        raise ImageTooLargeError(
            f"image has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
        ) from None
    except Exception:
        raise ImageCorruptError(f"image of {len(data):,} bytes has a broken header") from None
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"image has {width:,} x {height:,} pixels, more than max_image_pixels={max_pixels:,}"
        )
    ending = _ENDINGS.get(image.format or "")
    is_cut = ending is not None and ending not in data[-64:]
    try:
        image.load()
    except Exception:
        # Whatever a decoder stumbles over, this image is lost and nothing else.
        raise _broken(image.format, data, is_cut) from None
    if is_cut:
        raise _broken(image.format, data, is_cut)
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image upright (EXIF) and into RGB."""
    upright = ImageOps.exif_transpose(image)
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _broken(kind: str | None, data: bytes, is_cut: bool) -> ImageCorruptError | ImageTruncatedError:
    if is_cut:
        return ImageTruncatedError(f"{kind} image ends after {len(data):,} bytes, before its end")
    return ImageCorruptError(f"{kind} image of {len(data):,} bytes cannot be decoded")


def _unreadable(data: bytes) -> ImageCorruptError | ImageFormatError:
    if not data:
        return ImageCorruptError("image has zero bytes")
    head = data[:16].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return ImageFormatError("this is a web page or an XML file, not an image")
    if data[:4] in (b"II*\0", b"MM\0*") or data[4:8] == b"ftyp" or data[:4] == b"%PDF":
        return ImageFormatError(
            f"TIFF, HEIC, AVIF and PDF files are not read; allowed are {', '.join(FORMATS)}"
        )
    return ImageCorruptError(
        f"{len(data):,} bytes that are no image; allowed are {', '.join(FORMATS)}"
    )
