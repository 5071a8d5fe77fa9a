"""The engine's own media fetcher: files and data URLs.

http(s) is refused until the guarded fetch exists: a fetch without a guard reaches into the
network of whoever runs it.
"""

import base64
import binascii
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import MediaFetchError
from vlmflow_engine.inputs.image_decode import decode_image, to_rgb

MAX_IMAGE_BYTES = 256 << 20


def load_image(source: Any) -> Image.Image:
    """Load an RGB image from a path, a file: or data: URL, bytes or a PIL image.

    Raises MediaError; a picture that cannot be had is never replaced by another one.
    """
    fetched = fetch_image(source)
    if isinstance(fetched, Image.Image):
        return to_rgb(fetched)
    return decode_image(fetched, max_pixels=PytorchEngineConfig().max_image_pixels)


def fetch_image(source: Any) -> bytes | Image.Image:
    """Get an image's bytes, or the PIL image itself. Raises MediaFetchError."""
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, os.PathLike):
        return _read(Path(source))
    if not isinstance(source, str):
        raise MediaFetchError(
            f"an image is a path, a file: or data: URL, bytes or a PIL image, "
            f"got {type(source).__name__}"
        )
    scheme = source.split(":", 1)[0].lower() if ":" in source[:16] else ""
    if scheme == "data":
        return _data_url(source)
    if scheme == "file":
        return _read(Path(unquote(urlsplit(source).path)))
    if scheme in ("http", "https", "s3", "gs", "ftp"):
        raise MediaFetchError(
            f"{scheme}: images are not fetched by the engine; load them yourself "
            "and hand in the bytes, a path or a PIL image"
        )
    return _read(Path(source))


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_IMAGE_BYTES:
            raise MediaFetchError(f"{str(path)!r} has {size:,} bytes, allowed {MAX_IMAGE_BYTES:,}")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaFetchError(f"cannot read {str(path)!r}: {reason}") from error


def _data_url(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise MediaFetchError(f"not a data URL of base64: {head[:40]!r}")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise MediaFetchError(f"data URL {head!r} holds no valid base64: {error}") from error
