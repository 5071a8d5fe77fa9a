"""InternVL in Hugging Face form: InternViT tower, pixel shuffle, connector, decoder."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.models.config_checks import check_decoder
from vlmflow_engine.models.decoder import Decoder, check_kind
from vlmflow_engine.models.family import Family, ImagePixels
from vlmflow_engine.models.intern_projector import (
    PREFIXES,
    InternProjector,
    check_vision,
    shuffle_factor,
    square_side,
)
from vlmflow_engine.models.weights import Checkpoint, Renames

FIRST_TOKEN, LAST_TOKEN = "<img>", "</img>"  # around an image's placeholders, in both forms

# transformers saved the same model with and without "model." before the names.
_RENAMES: Renames = (
    (r"(model\.)?vision_tower\.", "vision."),
    (r"(model\.)?multi_modal_projector\.", "projector."),
    (r"language_model\.lm_head\.", "lm_head."),
    (r"language_model\.model\.", "text."),
    (r"model\.language_model\.", "text."),
)


class InternVLModel:
    """Encodes images into rows of the decoder's embedding space, and runs the decoder."""

    def __init__(
        self,
        config: Any,
        weights: Checkpoint,
        *,
        renames: Renames,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """config  transformers' InternVLConfig, see `models.intern_projector`"""
        self.renames = renames
        self.vision = InternProjector(config, weights)
        self.decoder = Decoder(config.text_config, weights, dtype=dtype, device=device)
        weights.check_used(*self.vision.unused_prefixes)

    def encode_images(self, images: Sequence[ImagePixels]) -> list[Tensor]:
        """Return each image's embeddings [rows, hidden_size]."""
        encoded = self.vision.encode([image.values for image in images])
        return [tiles.flatten(0, 1) for tiles in encoded]


class InternVLFamily(Family):
    name = "InternVL 2.5, 3 and 3.5"
    form = "Hugging Face"
    architectures = ("InternVLForConditionalGeneration",)
    checkpoints = "OpenGVLab/InternVL3-*-hf, OpenGVLab/InternVL3_5-*-HF"
    tested = "answers, token by token, beside transformers'; pixels beside its Pillow processor's"
    limits = "with a mixture of experts it is one of the other models of transformers; no video"
    vision_prefixes = PREFIXES

    def check(self, config: Any) -> None:
        check_vision(config)
        check_kind(config.text_config)
        check_decoder(config.text_config, "text_config")
        # One flag, kept in two places: some checkpoints set only one.
        text = config.text_config
        text.tie_word_embeddings = bool(config.tie_word_embeddings or text.tie_word_embeddings)

    def text_config(self, config: Any) -> Any:
        return config.text_config

    def image_format(self, config: Any) -> ImageFormat:
        return ImageFormat(
            processor="internvl",
            parameters=patch_parameters(config),
            token_id=config.image_token_id,
            in_item_order=True,  # as the checkpoints' own template has it
            first_token=FIRST_TOKEN,
            last_token=LAST_TOKEN,
        )

    def renames(self, config: Any) -> Renames:
        return _RENAMES

    def load(
        self, config: Any, weights: Checkpoint, *, dtype: torch.dtype, device: torch.device
    ) -> InternVLModel:
        renames = self.renames(config)
        return InternVLModel(config, weights, renames=renames, dtype=dtype, device=device)


def patch_parameters(config: Any) -> dict[str, int]:
    """What an image processor has to know of the tower."""
    return {
        "patch_size": square_side(config.vision_config, "patch_size"),
        "shuffle_factor": shuffle_factor(config),
    }
