"""LLaVA-1.5 in Hugging Face form: CLIP tower, two-layer projector, decoder."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.models.clip_projector import (
    PREFIXES,
    ClipProjector,
    check_vision,
    rows_per_tile,
)
from vlmflow_engine.models.decoder import Decoder, check_kind
from vlmflow_engine.models.family import Family, ImagePixels
from vlmflow_engine.models.weights import Checkpoint, Renames

# Three generations of transformers saved the same model under three namings.
RENAMES: Renames = (
    (r"(model\.)?vision_tower\.(vision_model\.)?", "vision."),
    (r"(model\.)?multi_modal_projector\.", "projector."),
    (r"language_model\.lm_head\.", "lm_head."),
    (r"language_model\.model\.", "text."),
    (r"model\.language_model\.", "text."),
)


class LlavaModel:
    """Encodes images into rows of the decoder's embedding space, and runs the decoder."""

    def __init__(
        self,
        config: Any,
        weights: Checkpoint,
        *,
        renames: Renames,
        dtype: torch.dtype,
        device: torch.device,
        num_linears: int = 2,
    ) -> None:
        """num_linears  layers of the projector"""
        self.renames = renames
        self.vision = ClipProjector(config, weights, num_linears=num_linears)
        self.decoder = Decoder(config.text_config, weights, dtype=dtype, device=device)
        weights.check_used(*self.vision.unused_prefixes)

    def encode_images(self, images: Sequence[ImagePixels]) -> list[Tensor]:
        """Return each image's embeddings [rows, hidden_size]."""
        encoded = self.vision.encode([image.values for image in images])
        return [tiles.flatten(0, 1) for tiles in encoded]


class LlavaFamily(Family):
    name = "LLaVA-1.5"
    form = "Hugging Face"
    architectures = ("LlavaForConditionalGeneration",)
    checkpoints = "llava-hf/llava-1.5-*"
    tested = "answers, token by token, beside transformers'"
    limits = "with a tower other than CLIP's it is one of the other models of transformers"
    vision_prefixes: ClassVar[tuple[str, ...]] = PREFIXES

    def check(self, config: Any) -> None:
        check_vision(config)
        check_kind(config.text_config)
        # One flag, kept in two places: some checkpoints set only the outer one.
        config.text_config.tie_word_embeddings = config.tie_word_embeddings

    def text_config(self, config: Any) -> Any:
        return config.text_config

    def image_format(self, config: Any) -> ImageFormat:
        return ImageFormat(
            processor="clip",
            parameters={"side": config.vision_config.image_size, "num_rows": rows_per_tile(config)},
            token_id=config.image_token_id,
        )

    def renames(self, config: Any) -> Renames:
        return RENAMES

    def load(
        self, config: Any, weights: Checkpoint, *, dtype: torch.dtype, device: torch.device
    ) -> LlavaModel:
        renames = self.renames(config)
        return LlavaModel(config, weights, renames=renames, dtype=dtype, device=device)
