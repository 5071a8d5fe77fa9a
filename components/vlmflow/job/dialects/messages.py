"""The parts of a prompt: texts, and images taken out of it into a list of URIs."""

import re
from typing import Any

from vlmflow.job.dialects.item import LineError
from vlmflow_engine.wire import IMAGE_KEY

_MEDIA_TYPE = re.compile(r"image/[a-z0-9.+-]{1,40}")


class Messages:
    """A prompt while it is put together."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.uris: list[str] = []  # of the images, in the order of their parts

    def add(self, role: str, content: str | list[dict[str, Any]]) -> None:
        self.messages.append({"role": role, "content": content})

    def image(self, uri: str) -> dict[str, Any]:
        """The part that stands for an image."""
        self.uris.append(uri)
        return image_part(len(self.uris) - 1)


def text_part(text: Any, where: str) -> dict[str, Any]:
    """Raises LineError."""
    if not isinstance(text, str):
        raise LineError(f"{where} must be a string")
    return {"type": "text", "text": text}


def image_part(index: int) -> dict[str, Any]:
    return {"type": "image", "image": {IMAGE_KEY: index}}


def images_then_text(num_images: int, text: str) -> list[dict[str, Any]]:
    """The messages of a prompt that is one text beside its images."""
    parts = [image_part(index) for index in range(num_images)]
    parts.append({"type": "text", "text": text})
    return [{"role": "user", "content": parts}]


def uri_of(value: Any, where: str) -> str:
    """Raises LineError."""
    if not isinstance(value, str) or not value:
        raise LineError(f"{where} must be a URI")
    return value


def data_uri(media_type: Any, data: Any, where: str) -> str:
    """Make a data URI of base64, which is decoded only where images are fetched."""
    if not isinstance(media_type, str) or not _MEDIA_TYPE.fullmatch(media_type):
        raise LineError(f"{where}: the media type must be that of an image, such as image/png")
    if not isinstance(data, str) or not data:
        raise LineError(f"{where} must be base64")
    return f"data:{media_type};base64,{data}"
