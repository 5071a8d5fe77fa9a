"""Frames between the engine and a preprocessing worker (`wire.py` carries them).

    parent -> worker  start    folder, image_format, fetcher, max_image_pixels     once, first
                      prompt   request_id, body, pictures                          a PackedPrompt
    worker -> parent  ready                                                        once, first
                      failed   message                                             instead of ready
                      done     request_id, token_ids, images
                      error    request_id, class, message

A prompt may hold tuples, paths and PIL images, which msgpack does not know: they are extensions
here. A PIL image travels as its RGB pixels: packing them anew would cost more than the socket.
"""

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmflow_engine import errors
from vlmflow_engine.errors import InvalidRequestError, RequestError
from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.inputs.builder import PIXEL_CACHE_BYTES, InputBuilder, PreparedInput
from vlmflow_engine.inputs.fetcher import NamedFetcher
from vlmflow_engine.inputs.image_decode import to_rgb
from vlmflow_engine.inputs.preprocessor import Prepared
from vlmflow_engine.inputs.prompts import PromptOptions, TokenIds
from vlmflow_engine.inputs.template_config import ChatTemplateConfig
from vlmflow_engine.request import ImageInput

_TUPLE, _PATH, _IMAGE, _TOKEN_IDS = 1, 2, 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class BuilderSpec:
    """What it takes to make an `InputBuilder`, here or in a worker."""

    folder: Path
    image_format: ImageFormat | None  # None: of a model of text alone
    fetch: NamedFetcher
    max_image_pixels: int
    takes_images: bool = True
    chat_template: ChatTemplateConfig | None = None
    model_path: str | None = None  # the model as the caller named it

    def start_frame(self) -> dict[str, Any]:
        return {
            "type": "start",
            "folder": str(self.folder),
            "image_format": self.image_format and asdict(self.image_format),
            "fetcher": {"name": self.fetch.name, "options": self.fetch.options},
            "max_image_pixels": self.max_image_pixels,
            "takes_images": self.takes_images,
            "chat_template": self.chat_template and asdict(self.chat_template),
            "model_path": self.model_path,
        }

    @classmethod
    def from_frame(cls, frame: dict[str, Any]) -> "BuilderSpec":
        return cls(
            folder=Path(frame["folder"]),
            image_format=frame["image_format"] and ImageFormat(**frame["image_format"]),
            fetch=NamedFetcher(frame["fetcher"]["name"], **frame["fetcher"]["options"]),
            max_image_pixels=frame["max_image_pixels"],
            takes_images=frame["takes_images"],
            chat_template=frame["chat_template"] and ChatTemplateConfig(**frame["chat_template"]),
            model_path=frame["model_path"],
        )

    def make(self, *, pixel_cache_bytes: int = PIXEL_CACHE_BYTES) -> InputBuilder:
        """Raises ModelError."""
        return InputBuilder(
            self.folder,
            self.image_format,
            self.fetch,
            max_image_pixels=self.max_image_pixels,
            takes_images=self.takes_images,
            chat_template_config=self.chat_template,
            model_path=self.model_path,
            pixel_cache_bytes=pixel_cache_bytes,
        )


@dataclass(frozen=True, slots=True)
class PackedPrompt:
    """A prompt of any form as bytes. `unpack` makes an equal one."""

    body: bytes
    pictures: list[bytes]  # pixels of the PIL images: packed inside the body they'd be copied twice

    @property
    def num_bytes(self) -> int:
        return len(self.body) + sum(len(picture) for picture in self.pictures)

    @classmethod
    def pack(cls, prompt: Any) -> "PackedPrompt":
        """Raises a RequestError if the prompt holds what cannot be sent."""
        pictures: list[bytes] = []
        try:
            return cls(_pack(prompt, pictures), pictures)
        except (ValueError, OverflowError, RecursionError) as error:
            raise InvalidRequestError(f"the prompt cannot be sent to a worker: {error}") from error

    def unpack(self) -> Any:
        return _unpack(self.body, self.pictures)


def prompt_frame(request_id: int, packed: PackedPrompt, options: PromptOptions) -> dict[str, Any]:
    return {
        "type": "prompt",
        "request_id": request_id,
        "body": packed.body,
        "pictures": packed.pictures,
        "options": asdict(options),
    }


def result_frame(request_id: int, result: Prepared) -> dict[str, Any]:
    if isinstance(result, RequestError):
        # A class that a fetcher has made for itself arrives as the one of ours above it.
        kind = next(kind for kind in type(result).__mro__ if kind.__module__ == errors.__name__)
        return {
            "type": "error",
            "request_id": request_id,
            "class": kind.__name__,
            "message": str(result),
        }
    return {
        "type": "done",
        "request_id": request_id,
        "token_ids": result.token_ids,
        "images": [
            {
                "content_hash": image.content_hash,
                "pixels": image.pixels.tobytes(),
                "shape": image.pixels.shape,
                "dtype": image.pixels.dtype.str,
                "offset": image.offset,
                "num_tokens": image.num_tokens,
                "layout": image.layout,
                "places": None if image.places is None else image.places.tobytes(),
                "arrays": {name: _pack_array(array) for name, array in image.arrays.items()},
            }
            for image in result.images
        ],
    }


def read_result(frame: dict[str, Any], known: MutableMapping[bytes, NDArray[Any]]) -> Prepared:
    """What `result_frame` was made of, pixels read-only.

    known  pixels by content hash, from which those of an image that has come before are taken
    """
    if frame["type"] == "error":
        kind: type[RequestError] = getattr(errors, frame["class"])
        return kind(frame["message"])
    images = tuple(
        ImageInput(
            content_hash=image["content_hash"],
            pixels=known.setdefault(
                image["content_hash"],
                np.frombuffer(image["pixels"], image["dtype"]).reshape(image["shape"]),
            ),
            offset=image["offset"],
            num_tokens=image["num_tokens"],
            layout=tuple(image["layout"]),
            places=None if image["places"] is None else np.frombuffer(image["places"], np.int32),
            arrays={name: _unpack_array(packed) for name, packed in image["arrays"].items()},
        )
        for image in frame["images"]
    )
    return PreparedInput(tuple(frame["token_ids"]), images)


def _pack_array(array: NDArray[Any]) -> tuple[str, tuple[int, ...], bytes]:
    return array.dtype.str, array.shape, array.tobytes()


def _unpack_array(packed: tuple[str, list[int], bytes]) -> NDArray[Any]:
    dtype, shape, raw = packed
    return np.frombuffer(raw, dtype).reshape(shape)


def _pack(value: Any, pictures: list[bytes]) -> bytes:
    # Half a surrogate pair must reach the builder, which says what is wrong with it.
    packed: bytes = msgpack.packb(
        value,
        default=lambda other: _replace(other, pictures),
        strict_types=True,
        unicode_errors="surrogatepass",
    )
    return packed


def _replace(value: Any, pictures: list[bytes]) -> Any:
    """What msgpack is to pack in the place of what it does not know."""
    if isinstance(value, TokenIds):
        return msgpack.ExtType(_TOKEN_IDS, _pack(list(value.ids), pictures))
    if isinstance(value, tuple):
        return msgpack.ExtType(_TUPLE, _pack(list(value), pictures))
    if isinstance(value, Image.Image):
        image = to_rgb(value)
        pictures.append(image.tobytes())
        return msgpack.ExtType(_IMAGE, msgpack.packb([*image.size, len(pictures) - 1]))
    if isinstance(value, os.PathLike):
        return msgpack.ExtType(_PATH, os.fsencode(value))
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, str):  # of a class of its own, as those below: an enum, NumPy's
        return str.__str__(value)
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, list):
        return list(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    raise InvalidRequestError(
        "a prompt is made of texts, numbers, dicts, lists, tuples, bytes, paths and PIL images, "
        f"got {type(value).__name__}"
    )


def _unpack(body: bytes, pictures: list[bytes]) -> Any:
    def restore(code: int, data: bytes) -> Any:
        if code == _PATH:
            return Path(os.fsdecode(data))
        items = _unpack(data, pictures)
        if code == _TOKEN_IDS:
            return TokenIds(tuple(items))
        if code == _TUPLE:
            return tuple(items)
        width, height, number = items
        return Image.frombytes("RGB", (width, height), pictures[number])

    return msgpack.unpackb(
        body, ext_hook=restore, strict_map_key=False, unicode_errors="surrogatepass"
    )
