"""One prompt to token ids and pixels: the work of a preprocessing worker."""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from vlmflow_engine.errors import InvalidRequestError
from vlmflow_engine.image_format import ImageFormat, Normalisation
from vlmflow_engine.inputs.builtin_templates import TEMPLATES
from vlmflow_engine.inputs.expansion import LoadedImages, expand_images
from vlmflow_engine.inputs.image_decode import decode_image, to_rgb
from vlmflow_engine.inputs.image_processors import load_image_processor
from vlmflow_engine.inputs.image_processors.base import ImageProcessor, ProcessedImage
from vlmflow_engine.inputs.image_token import (
    find_image_token,
    find_wrapping_ids,
    image_placement,
)
from vlmflow_engine.inputs.placement import ImagePlacement, place_images
from vlmflow_engine.inputs.prompts import (
    DEFAULT_OPTIONS,
    ImagePart,
    ImageSource,
    Message,
    PromptOptions,
    TokenIds,
    to_messages,
)
from vlmflow_engine.inputs.spelled_tokens import SpelledTokens
from vlmflow_engine.inputs.template_choice import PromptTemplate, choose_template
from vlmflow_engine.inputs.template_config import ChatTemplateConfig
from vlmflow_engine.inputs.tokenizer import PromptTokenizer
from vlmflow_engine.inputs.word_ids import special_stop_ids
from vlmflow_engine.request import ImageInput

# Gets an image's bytes, or the image itself. Raises MediaFetchError.
MediaFetcher = Callable[[ImageSource], bytes | Image.Image]

# Stands for an image where there are none, in what finds out how a template takes its messages.
_NO_IMAGE_TOKEN = "<no image here>"
# Of images that are as many tiles, or as many pixels, as a model makes of any.
_LARGE_SIZES = ((4096, 4096), (6144, 2048), (2048, 6144))
PIXEL_CACHE_BYTES = 128 << 20  # one image asked about many times is decoded once


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
        takes_images: bool = True,
        chat_template_config: ChatTemplateConfig | None = None,
        model_path: str | None = None,
        pixel_cache_bytes: int = PIXEL_CACHE_BYTES,
    ) -> None:
        """Read tokenizer, chat template and, with an `image_format`, the image processor.

        Raises ModelError or ConfigError.

        takes_images  False: text alone, of a model that could see
        model_path    the model as the caller named it, if that is not `folder`
        """
        self.image_processor: ImageProcessor | None = None
        self._image_token_id: int | None = None  # None: takes no images
        self._around: tuple[list[int], list[int]] = ([], [])  # ids around an image's placeholders
        tokenizer = PromptTokenizer.from_folder(folder)
        if image_format is None or not takes_images:
            self._placement = ImagePlacement(_NO_IMAGE_TOKEN)
        else:
            self.image_processor = load_image_processor(folder, image_format)
            if self.image_processor.token is not None:
                image_format = replace(image_format, token=self.image_processor.token)
            tokenizer, token, self._image_token_id = find_image_token(
                folder, tokenizer, image_format
            )
            self._placement = image_placement(image_format, token)
            self._around = find_wrapping_ids(folder, tokenizer, image_format)
        self.tokenizer = tokenizer
        self.template: PromptTemplate = choose_template(
            folder,
            self._placement,
            chat_template_config,
            model_path=model_path,
            asked_for=image_format,
        )
        own = image_format.template if image_format else None
        self._own_stop_words = TEMPLATES[own].stop_words if own else ()
        self._fetch = fetch
        self._max_image_pixels = max_image_pixels
        self._pixel_cache_bytes = pixel_cache_bytes
        self._processed: OrderedDict[bytes, ProcessedImage] = OrderedDict()
        self._pixel_bytes = 0
        self._lock = threading.Lock()
        self._in_hand = threading.Lock()

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Ids that end an answer: of the template, and of the one that config.json asks for."""
        words = [*self.template.stop_words, *self._own_stop_words]
        return frozenset(special_stop_ids(self.tokenizer, words)[0])

    @property
    def normalisation(self) -> Normalisation | None:
        """That of the images; None if there are none."""
        return None if self.image_processor is None else self.image_processor.normalisation

    @property
    def max_image_rows(self) -> int:
        """The most embedding rows of an image without options; 0 if there are no images."""
        return 0 if self.image_processor is None else self.image_processor.max_rows

    def largest_image(self) -> ImageInput | None:
        """A blank image that takes as much of the vision tower as any can; None: there are none."""
        if self.image_processor is None:
            return None
        made = []
        for width, height in _LARGE_SIZES:
            scale = min(1.0, math.sqrt(self._max_image_pixels / (width * height)))
            size = (max(2, int(width * scale)), max(2, int(height * scale)))
            made.append(self.image_processor(Image.new("RGB", size), {}))
        largest = max(made, key=lambda processed: processed.num_bytes)
        return ImageInput(
            b"",
            largest.pixels,
            offset=0,
            num_tokens=largest.num_rows,
            layout=largest.layout,
            arrays=largest.arrays,
        )

    def build(self, prompt: Any, options: PromptOptions = DEFAULT_OPTIONS) -> PreparedInput:
        """Prepare a prompt of any form. Raises a RequestError."""
        if isinstance(prompt, TokenIds):
            return PreparedInput(self._checked(prompt), ())
        messages = place_images(to_messages(prompt), only_marked=not options.do_preprocess)
        parts = [
            part for message in messages for part in message.parts if isinstance(part, ImagePart)
        ]
        if parts and self._image_token_id is None:
            raise InvalidRequestError(
                "the prompt holds an image, and this engine takes text alone: it was started with "
                "language_model_only=True, or its model has no vision tower"
            )
        token_ids = self._encode(messages, options)
        if self._image_token_id is None:
            return PreparedInput(tuple(token_ids), ())
        assert self.image_processor is not None
        expanded, images = expand_images(
            token_ids,
            self._load_all(parts),
            token_id=self._image_token_id,
            placeholder_id=self.image_processor.placeholder_id,
            around=self._around,
        )
        return PreparedInput(tuple(expanded), tuple(images))

    def _encode(self, messages: list[Message], options: PromptOptions) -> list[int]:
        if options.do_preprocess:
            variables = options.template_variables()
            spelled = SpelledTokens(self.tokenizer.special_tokens, messages, variables)
            text = self.template.render(messages, spelled, options)
        else:
            # Who writes the whole prompt writes its special tokens too, but never an image.
            spelled = SpelledTokens([self._placement.token], messages)
            text = spelled.render(
                lambda messages, _: "".join(map(self._placement.write, messages)), messages, {}
            )
        return self.tokenizer.encode_prompt(text, spelled)

    def _checked(self, prompt: TokenIds) -> tuple[int, ...]:
        ids, limit = tuple(prompt.ids), self.tokenizer.num_ids
        if not ids:
            raise InvalidRequestError("a prompt of token ids holds at least one")
        for token_id in ids:
            if type(token_id) is not int or not 0 <= token_id < limit:
                raise InvalidRequestError(
                    f"a token id is a whole number from 0 to {limit - 1}, got {token_id!r}"
                )
        return ids

    def _load_all(self, parts: list[ImagePart]) -> list[LoadedImages]:
        assert self.image_processor is not None
        if len(parts) > 1 and self.image_processor.joins_images:
            return [self._load(parts)]
        return [self._load([part]) for part in parts]

    def _load(self, parts: list[ImagePart]) -> LoadedImages:
        """Load one image, or several that have to be processed together."""
        sources = [self._source(part) for part in parts]
        hashes = [content_hash for content_hash, _ in sources]
        content_hash = hashes[0] if len(hashes) == 1 else sha256(b"".join(hashes)).digest()
        processed = self._cached(content_hash)
        if processed is None:
            images = [
                source
                if isinstance(source, Image.Image)
                else decode_image(source, max_pixels=self._max_image_pixels)
                for _, source in sources
            ]
            processed = self._process(content_hash, images, parts[0].options)
        return content_hash, processed

    def _source(self, part: ImagePart) -> tuple[bytes, bytes | Image.Image]:
        """Fetch an image and name its content."""
        assert self.image_processor is not None
        processor_digest = self.image_processor.digest(part.options)
        fetched = self._fetch(part.source)
        if not isinstance(fetched, Image.Image):
            return sha256(processor_digest + fetched).digest(), fetched
        with self._in_hand:  # it may be shared, and Pillow reads its file when it is asked
            image = to_rgb(fetched)
        source_bytes = f"RGB {image.size} ".encode() + image.tobytes()
        return sha256(processor_digest + source_bytes).digest(), image

    def _cached(self, content_hash: bytes) -> ProcessedImage | None:
        with self._lock:
            processed = self._processed.get(content_hash)
            if processed is not None:
                self._processed.move_to_end(content_hash)
            return processed

    def _process(
        self, content_hash: bytes, images: list[Image.Image], options: Mapping[str, int]
    ) -> ProcessedImage:
        assert self.image_processor is not None
        if len(images) == 1:
            processed = self.image_processor(images[0], options)
        else:
            processed = self.image_processor.join(images)
        with self._lock:
            if content_hash not in self._processed:
                self._processed[content_hash] = processed
                self._pixel_bytes += processed.num_bytes
            while self._pixel_bytes > self._pixel_cache_bytes:
                _, oldest = self._processed.popitem(last=False)
                self._pixel_bytes -= oldest.num_bytes
        return processed
