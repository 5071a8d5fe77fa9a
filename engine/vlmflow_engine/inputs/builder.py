"""One prompt to token ids and pixels: the work of a preprocessing worker."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmflow_engine.errors import InvalidRequestError, ModelError
from vlmflow_engine.image_format import ImageFormat, Normalisation
from vlmflow_engine.inputs.chat_template import ChatTemplate, SpelledTokens
from vlmflow_engine.inputs.image_decode import decode_image, to_rgb
from vlmflow_engine.inputs.image_processor import ClipImageProcessor
from vlmflow_engine.inputs.prompts import ImagePart, ImageSource, to_messages
from vlmflow_engine.inputs.tokenizer import PromptTokenizer
from vlmflow_engine.request import ImageInput

# Gets an image's bytes, or the image itself. Raises MediaFetchError.
MediaFetcher = Callable[[ImageSource], bytes | Image.Image]

_PIXEL_CACHE_BYTES = 128 << 20  # one image asked about many times is decoded once


@dataclass(frozen=True, slots=True)
class PreparedInput:
    """A prompt ready to become a `Request`."""

    token_ids: tuple[int, ...]
    images: tuple[ImageInput, ...]


class InputBuilder:
    """Renders, tokenises, fetches, decodes, resizes. Safe to use from several threads."""

    def __init__(
        self,
        folder: Path,
        image_format: ImageFormat | None,
        fetch: MediaFetcher,
        *,
        max_image_pixels: int,
    ) -> None:
        """Read the folder's tokenizer, chat template and, with an `image_format`, its processor."""
        self.tokenizer = PromptTokenizer.from_folder(folder)
        self.image_processor: ClipImageProcessor | None = None
        self._processor_digest = b""
        if image_format is not None:
            self.image_processor = _image_processor(folder, image_format.side)
            self._processor_digest = self.image_processor.digest()
        self._template = ChatTemplate.from_folder(folder)
        self._image_format = image_format
        self._fetch = fetch
        self._max_image_pixels = max_image_pixels
        self._pixels: OrderedDict[bytes, NDArray[np.uint8]] = OrderedDict()
        self._pixel_bytes = 0
        self._lock = threading.Lock()
        self._in_hand = threading.Lock()

    @property
    def normalisation(self) -> Normalisation | None:
        """That of the images; None if there are none."""
        return None if self.image_processor is None else self.image_processor.normalisation

    def build(self, prompt: Any) -> PreparedInput:
        """Prepare a prompt of any form. Raises a RequestError."""
        messages = to_messages(prompt)
        sources = [
            part.source
            for message in messages
            for part in message.parts
            if isinstance(part, ImagePart)
        ]
        if sources and self._image_format is None:
            raise InvalidRequestError(
                "the prompt holds an image, and this engine takes text alone: it was started with "
                "language_model_only=True, or its model has no vision tower"
            )
        spelled = SpelledTokens(self.tokenizer.special_tokens, messages)
        text = self._template.render(messages, spelled)
        token_ids = self.tokenizer.encode_prompt(text, spelled)
        if self._image_format is None:
            return PreparedInput(tuple(token_ids), ())
        loaded = [self._load(source) for source in sources]
        return self._expand(token_ids, loaded, self._image_format)

    def _expand(
        self,
        token_ids: list[int],
        loaded: list[tuple[bytes, NDArray[np.uint8]]],
        image_format: ImageFormat,
    ) -> PreparedInput:
        """Let each placeholder take as many positions as its image has rows."""
        placeholder, num_rows = image_format.token_id, image_format.num_rows
        num_placeholders = token_ids.count(placeholder)
        if num_placeholders != len(loaded):
            raise InvalidRequestError(
                f"the chat template placed {num_placeholders} image tokens for {len(loaded)} images"
            )
        expanded: list[int] = []
        images: list[ImageInput] = []
        for token_id in token_ids:
            if token_id == placeholder:
                content_hash, pixels = loaded[len(images)]
                images.append(ImageInput(content_hash, pixels, len(expanded), num_rows))
                expanded += [placeholder] * num_rows
            else:
                expanded.append(token_id)
        return PreparedInput(tuple(expanded), tuple(images))

    def _load(self, source: ImageSource) -> tuple[bytes, NDArray[np.uint8]]:
        fetched = self._fetch(source)
        if isinstance(fetched, Image.Image):
            with self._in_hand:  # it may be shared, and Pillow reads its file when it is asked
                image = to_rgb(fetched)
            source_bytes = f"RGB {image.size} ".encode() + image.tobytes()
            content_hash = sha256(self._processor_digest + source_bytes).digest()
            pixels = self._cached(content_hash)
        else:
            content_hash = sha256(self._processor_digest + fetched).digest()
            pixels = self._cached(content_hash)
            if pixels is None:
                image = decode_image(fetched, max_pixels=self._max_image_pixels)
        return content_hash, self._process(content_hash, image) if pixels is None else pixels

    def _cached(self, content_hash: bytes) -> NDArray[np.uint8] | None:
        with self._lock:
            pixels = self._pixels.get(content_hash)
            if pixels is not None:
                self._pixels.move_to_end(content_hash)
            return pixels

    def _process(self, content_hash: bytes, image: Image.Image) -> NDArray[np.uint8]:
        assert self.image_processor is not None
        pixels = self.image_processor(image)
        with self._lock:
            if content_hash not in self._pixels:
                self._pixels[content_hash] = pixels
                self._pixel_bytes += pixels.nbytes
            while self._pixel_bytes > _PIXEL_CACHE_BYTES:
                _, oldest = self._pixels.popitem(last=False)
                self._pixel_bytes -= oldest.nbytes
        return pixels


def _image_processor(folder: Path, side: int) -> ClipImageProcessor:
    processor = ClipImageProcessor.from_folder(folder)
    if processor.crop != (side, side):
        raise ModelError(
            f"{folder}: the image processor makes images of {processor.crop}, "
            f"the vision tower takes {side} x {side}"
        )
    return processor
