"""Encodes images and holds their embeddings for as long as the scheduler says."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from vlmflow_engine.errors import MediaError
from vlmflow_engine.image_format import Normalisation
from vlmflow_engine.models.family import ImagePixels, VisionLanguageModel
from vlmflow_engine.request import ImageInput
from vlmflow_engine.runner.batch import EmbeddingRows

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
        """Encode images and keep their embeddings."""
        for group in _groups(images, self._tiles_per_pass):
            try:
                self._encode(group)
            except MediaError as error:
                if len(group) == 1:
                    self._refuse(group[0], error)
                else:
                    for image in group:
                        self.encode([image])

    def refusal(self, images: Iterable[ImageInput]) -> str | None:
        """Why the first of the images that has no embeddings has none; None: all have."""
        reasons = (self._refused.get(image.content_hash) for image in images)
        return next(filter(None, reasons), None) if self._refused else None

    def scatter(self, embeds: Tensor, rows: Iterable[EmbeddingRows]) -> None:
        """Put image embeddings over the placeholders of a step, in place.

        embeds  [num_tokens, hidden_size]
        """
        for item in rows:
            source = self._embeddings[item.content_hash][item.start : item.end]
            embeds[item.row : item.row + len(source)] = source

    def _encode(self, group: Sequence[ImageInput]) -> None:
        embeddings = self._model.encode_images([self._to_device(image) for image in group])
        for image, rows in zip(group, embeddings, strict=True):
            if len(rows) != image.num_rows:
                raise MediaError(
                    f"an image has {image.num_rows} placeholders for {len(rows)} embeddings"
                )
            # A clone: a view would keep the whole group's memory for its longest-lived image.
            self._embeddings[image.content_hash] = rows.clone()

    def _refuse(self, image: ImageInput, error: MediaError) -> None:
        """Let the step go on without it; who asks about it gets an error in place of a token."""
        # For good: what is computed without it may be taken from the prefix cache, by its name.
        self._refused[image.content_hash] = str(error)
        decoder = self._model.decoder
        self._embeddings[image.content_hash] = torch.zeros(
            image.num_rows, decoder.hidden_size, dtype=self._dtype, device=self._device
        )

    def _to_device(self, image: ImageInput) -> ImagePixels:
        """Normalise an image, in float32, unless its processor has."""
        if image.pixels.dtype != np.uint8:
            values = torch.tensor(image.pixels, device=self._device).to(self._dtype)
            arrays = {
                name: torch.tensor(array, device=self._device)
                for name, array in image.arrays.items()
            }
            return ImagePixels(values, image.layout, arrays)
        tiles = image.pixels if image.pixels.ndim == 4 else image.pixels[None]
        pixels = torch.tensor(tiles, device=self._device).permute(0, 3, 1, 2)
        values = (pixels.float() * self._rescale - self._mean) / self._std
        return ImagePixels(values.to(self._dtype), image.layout)


def _groups(images: Sequence[ImageInput], max_tiles: int) -> Iterator[list[ImageInput]]:
    """Cut images into groups of so many tiles, not too large; an image with more goes alone."""
    group: list[ImageInput] = []
    num_tiles = num_bytes = 0
    for image in images:
        size = len(image.pixels) if image.pixels.ndim == 4 else 1
        is_full = num_tiles + size > max_tiles or num_bytes + image.pixels.nbytes > _MAX_BYTES
        if group and is_full:
            yield group
            group, num_tiles, num_bytes = [], 0, 0
        group.append(image)
        num_tiles += size
        num_bytes += image.pixels.nbytes
    if group:
        yield group
