"""Encodes images and holds their embeddings for as long as the scheduler says."""

import logging
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from vlmflow_engine.errors import MediaError
from vlmflow_engine.image_format import Normalisation
from vlmflow_engine.layers.embedding import ImageRows
from vlmflow_engine.layers.host_array import to_device
from vlmflow_engine.models.family import ImagePixels, VisionLanguageModel
from vlmflow_engine.request import ImageInput
from vlmflow_engine.runner.batch import EmbeddingRows

_log = logging.getLogger(__name__)

# Of a pass's images as they come, 16 megapixels: in float32 they take four times as much, and the
# tower's activations a multiple of that.
_MAX_BYTES = 48 << 20


class EncoderRunner:
    """The embeddings behind the scheduler's encoder cache, by content hash."""

    def __init__(
        self,
        model: VisionLanguageModel,
        normalisation: Normalisation,
        *,
        dtype: torch.dtype,
        device: torch.device,
        tiles_per_pass: int = 8,
    ) -> None:
        """tiles_per_pass  enough to fill the tower's GEMMs, few enough for the caches"""
        self._model = model
        self._tiles_per_pass = tiles_per_pass
        self._dtype = dtype
        self._device = device
        self._rescale = normalisation.rescale
        # [3, 1, 1], float32
        self._mean = torch.tensor(normalisation.mean, device=device)[:, None, None]
        self._std = torch.tensor(normalisation.std, device=device)[:, None, None]
        self._embeddings: dict[bytes, Tensor] = {}  # [rows, hidden_size]
        self._refused: dict[bytes, str] = {}  # why, by content hash

    def evict(self, content_hashes: Iterable[bytes]) -> None:
        """Drop embeddings. Unknown names are those of a step that failed before it encoded."""
        for content_hash in content_hashes:
            self._embeddings.pop(content_hash, None)

    def encode(self, images: Sequence[ImageInput]) -> None:
        """Encode images and keep their embeddings.

        A group that is too much for the device's memory is halved, until it is one image that is
        refused alone.
        """
        for group in _groups(images, self._tiles_per_pass):
            self._encode_or_refuse(group)

    def run_largest_pass(self, image: ImageInput) -> None:
        """Encode as many copies of an image as go into one pass, and keep nothing of it."""
        fitting = min(self._tiles_per_pass // num_tiles(image), _MAX_BYTES // image.pixels.nbytes)
        self._model.encode_images([self._to_device(image)] * max(fitting, 1))

    def refusal(self, images: Iterable[ImageInput]) -> str | None:
        """Why the first of the images that has no embeddings has none; None: all have."""
        reasons = (self._refused.get(image.content_hash) for image in images)
        return next(filter(None, reasons), None) if self._refused else None

    def rows_of(self, rows: Iterable[EmbeddingRows]) -> list[ImageRows]:
        """Find the embeddings of a step's placeholders."""
        return [
            (item.row, self._embeddings[item.content_hash][item.start : item.end]) for item in rows
        ]

    def _encode_or_refuse(self, group: Sequence[ImageInput]) -> None:
        fault = self._try(group)
        if fault is None:
            return
        if len(group) == 1:
            self._refuse(group[0], fault)
            return
        middle = len(group) // 2
        self._encode_or_refuse(group[:middle])
        self._encode_or_refuse(group[middle:])

    def _try(self, group: Sequence[ImageInput]) -> str | None:
        """Encode a group; return what was wrong with it, as if it were one image."""
        try:
            self._encode(group)
            return None
        except MediaError as error:
            return str(error)
        except torch.OutOfMemoryError:
            pass  # and out of its frames, whose tensors fill the memory
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if len(group) > 1:
            _log.warning(
                "%d images in one pass of the vision tower are too many for the device's memory; "
                "they are encoded in halves",
                len(group),
            )
        return (
            f"an image of {num_tiles(group[0])} tiles and {group[0].num_rows} embeddings is too "
            "large for the device's memory; lower max_image_pixels or cache_max_entry_count"
        )

    def _encode(self, group: Sequence[ImageInput]) -> None:
        embeddings = self._model.encode_images([self._to_device(image) for image in group])
        for image, rows in zip(group, embeddings, strict=True):
            if len(rows) != image.num_rows:
                raise MediaError(
                    f"an image has {image.num_rows} placeholders for {len(rows)} embeddings"
                )
            # A clone: a view would keep the whole group's memory for its longest-lived image.
            self._embeddings[image.content_hash] = rows.clone()

    def _refuse(self, image: ImageInput, reason: str) -> None:
        """Let the step go on without it; who asks about it gets an error in place of a token."""
        # For good: what is computed without it may be taken from the prefix cache, by its name.
        self._refused[image.content_hash] = reason
        decoder = self._model.decoder
        self._embeddings[image.content_hash] = torch.zeros(
            image.num_rows, decoder.hidden_size, dtype=self._dtype, device=self._device
        )

    def _to_device(self, image: ImageInput) -> ImagePixels:
        """Normalise an image, in float32, unless its processor has."""
        if image.pixels.dtype != np.uint8:
            values = to_device(image.pixels, self._device).to(self._dtype)
            arrays = {name: to_device(array, self._device) for name, array in image.arrays.items()}
            return ImagePixels(values, image.layout, arrays)
        tiles = image.pixels if image.pixels.ndim == 4 else image.pixels[None]
        pixels = to_device(tiles, self._device).permute(0, 3, 1, 2)
        values = (pixels.float() * self._rescale - self._mean) / self._std
        return ImagePixels(values.to(self._dtype), image.layout)


def num_tiles(image: ImageInput) -> int:
    """Of how many tiles an image consists."""
    return len(image.pixels) if image.pixels.ndim == 4 else 1


def _groups(images: Sequence[ImageInput], max_tiles: int) -> Iterator[list[ImageInput]]:
    """Cut images into groups of so many tiles, not too large; an image with more goes alone."""
    group: list[ImageInput] = []
    total = num_bytes = 0
    for image in images:
        size = num_tiles(image)
        is_full = total + size > max_tiles or num_bytes + image.pixels.nbytes > _MAX_BYTES
        if group and is_full:
            yield group
            group, total, num_bytes = [], 0, 0
        group.append(image)
        total += size
        num_bytes += image.pixels.nbytes
    if group:
        yield group
