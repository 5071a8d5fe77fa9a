"""A row of a request to a served model: from its cells to a prompt of the engine.

An image is bytes, base64, or an http(s) or data: URL. Whoever may ask a served model is not thereby
one who may read the server's files or its buckets, so paths, file: and s3:// are refused.
"""

import base64
import binascii
import re
from typing import Any

from vlmflow.job.store.locate import scheme, without_query

_URLS = ("http", "https", "data")
_ADVICE = "send the bytes, base64, or an http(s) or data: URL"
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")


class RowError(ValueError):
    """What is wrong with one row."""


def prompt_of(row: dict[str, Any]) -> Any:
    """Return the row as the engine's pipeline takes it. Raises RowError.

    row  `prompt` (str) and `image`: bytes, str, a list of these, or None
    """
    prompt, images = row.get("prompt"), _images(row.get("image"))
    if not isinstance(prompt, str) or not prompt.strip():
        raise RowError(f"prompt must be a text, got {_shown(prompt)}")
    return (prompt, images) if images else prompt


def _images(value: Any) -> list[Any]:
    if value is None or isinstance(value, float) or value == "":  # pandas puts NaN for None
        return []
    if isinstance(value, list | tuple):
        return [_image(item) for item in value]
    return [_image(value)]


def _image(value: Any) -> bytes | str:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        raise RowError(f"image must be bytes or a text, got {_shown(value)}; {_ADVICE}")
    kind = scheme(value)
    if kind in _URLS:
        return value
    if kind:
        raise RowError(
            f"image {without_query(value)!r}: a served model reads no {kind}: URI, whose rights "
            f"would be the server's; {_ADVICE}"
        )
    # base64 of 16 letters would hold no image; what is shorter is a name.
    if len(value) >= 16 and _BASE64.fullmatch(value):
        try:
            return base64.b64decode(value)
        except binascii.Error:
            pass
    raise RowError(
        f"image {_shown(value)} is neither base64 nor a URL; a served model reads no files of its "
        f"machine: {_ADVICE}"
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
