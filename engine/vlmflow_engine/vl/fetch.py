"""The engine's own media fetcher: files and data URLs.

http(s) is refused until the guarded fetch exists: a fetch without a guard reaches into the
network of whoever runs it.
"""

import base64
import errno
import os
import stat
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
    source = source.strip() if "://" in source[:64] else source
    scheme = source.split(":", 1)[0].lower() if ":" in source[:16] else ""
    if scheme == "data":
        return _data_url(source)
    if scheme == "file":
        try:
            url = urlsplit(source)
        except ValueError as error:
            raise MediaFetchError(f"not a file: URL: {_brief(source)}") from error
        if url.netloc not in ("", "localhost"):
            raise MediaFetchError(f"a file: URL of another host: {_brief(source)}")
        return _read(Path(unquote(url.path)))
    if "://" in source[:64] or scheme in ("http", "https", "s3", "gs", "ftp"):
        raise MediaFetchError(
            f"{scheme[:20] or 'URL'}: images are not fetched by the engine; load them yourself "
            "and hand in the bytes, a path or a PIL image"
        )
    return _read(Path(source))


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        size = status.st_size
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise MediaFetchError(f"{_brief(str(path))} is a device or a pipe, not a file")
        if size > MAX_IMAGE_BYTES:
            raise MediaFetchError(
                f"{_brief(str(path))} has {size:,} bytes, allowed {MAX_IMAGE_BYTES:,}"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaFetchError(f"cannot read {_brief(str(path))}: {reason}") from error


def _data_url(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise MediaFetchError(f"not a data URL of base64: {head[:40]!r}")
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as error:
        raise MediaFetchError(f"data URL {_brief(head)} holds no valid base64: {error}") from error


def _brief(text: str) -> str:
    return repr(text) if len(text) <= 200 else f"{text[:200]!r}..."
