"""Encodes images and holds their embeddings for as long as the scheduler says."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from vlmflow_engine.image_format import Normalisation
from vlmflow_engine.models.llava import LlavaModel
from vlmflow_engine.request import ImageInput
from vlmflow_engine.runner.batch import EmbeddingRows


class EncoderRunner:
    """The embeddings behind the scheduler's encoder cache, by content hash."""

    def __init__(
        self,
        model: LlavaModel,
        normalisation: Normalisation,
        *,
        dtype: torch.dtype,
        device: torch.device,
        images_per_pass: int = 8,
    ) -> None:
        """images_per_pass  enough to fill the tower's GEMMs, few enough for the caches"""
        self._model = model
        self._images_per_pass = images_per_pass
        self._dtype = dtype
        self._device = device
        self._rescale = normalisation.rescale
        # [3, 1, 1], float32
        self._mean = torch.tensor(normalisation.mean, device=device)[:, None, None]
        self._std = torch.tensor(normalisation.std, device=device)[:, None, None]
        self._embeddings: dict[bytes, Tensor] = {}  # [rows, hidden_size]

    def evict(self, content_hashes: Iterable[bytes]) -> None:
        """Drop embeddings. Unknown names are those of a step that failed before it encoded."""
        for content_hash in content_hashes:
            self._embeddings.pop(content_hash, None)

    def encode(self, images: Sequence[ImageInput]) -> None:
        """Encode images and keep their embeddings."""
        for start in range(0, len(images), self._images_per_pass):
            group = images[start : start + self._images_per_pass]
            embeddings = self._model.encode_images(self._normalise(group))
            for image, rows in zip(group, embeddings, strict=True):
                # A clone: a view would keep the whole group's memory for its longest-lived image.
                self._embeddings[image.content_hash] = rows.clone()

    def scatter(self, embeds: Tensor, rows: Iterable[EmbeddingRows]) -> None:
        """Put image embeddings over the placeholders of a step, in place.

        embeds  [num_tokens, hidden_size]
        """
        for item in rows:
            source = self._embeddings[item.content_hash][item.start : item.end]
            embeds[item.row : item.row + len(source)] = source

    def _normalise(self, images: Sequence[ImageInput]) -> Tensor:
        """[images, 3, side, side] in the model's dtype; computed in float32."""
        pixels = torch.from_numpy(np.stack([image.pixels for image in images]))
        values = pixels.to(self._device).permute(0, 3, 1, 2).float() * self._rescale
        return ((values - self._mean) / self._std).to(self._dtype)
