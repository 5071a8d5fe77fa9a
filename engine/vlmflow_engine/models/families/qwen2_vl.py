"""Qwen2-VL in Hugging Face form: images of any size, and positions in time, height and width."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlmflow_engine.errors import ConfigError, ModelError
from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.layers.rope_scaling import rope_sections
from vlmflow_engine.models import config_overrides
from vlmflow_engine.models.decoder import Decoder, check_kind
from vlmflow_engine.models.family import Family, ImagePixels
from vlmflow_engine.models.qwen2_vit import QwenVisionTower
from vlmflow_engine.models.qwen2_vit_shape import read_shape
from vlmflow_engine.models.weights import Checkpoint, Renames

# The checkpoints' own names, and those of transformers since 4.52.
RENAMES: Renames = (
    (r"(model\.)?visual\.", "vision."),
    (r"model\.language_model\.", "text."),
    (r"model\.", "text."),
)
_SECTIONS = (16, 24, 24)  # of heads of 128, where a config names none


class Qwen2VLModel:
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
        self.renames = renames
        self.vision = QwenVisionTower(read_shape(config), weights)
        self.decoder = Decoder(config.text_config, weights, dtype=dtype, device=device)
        weights.check_used("vision.rotary_pos_emb.")  # computed instead

    def encode_images(self, images: Sequence[ImagePixels]) -> list[Tensor]:
        """Return each image's embeddings [rows, hidden_size]."""
        return self.vision.encode(images)


class Qwen2VLFamily(Family):
    name = "Qwen2-VL"
    form = "Hugging Face"
    architectures = ("Qwen2VLForConditionalGeneration",)
    checkpoints = "Qwen/Qwen2-VL-*-Instruct"
    tested = (
        "answers, token by token, and positions beside transformers'; pixels bit for bit beside "
        "its Pillow processor; with random weights"
    )
    limits = "videos are refused; quantised checkpoints too"
    vision_prefixes = ("vision.",)

    def check_overrides(self, config: Any, overrides: dict[str, Any], raw: dict[str, Any]) -> None:
        """Raise ConfigError if an override names no field, where this file has its fields."""
        if "text_config" not in raw:
            if "text_config" in overrides:
                raise ConfigError(
                    "hf_overrides: this config.json has no text_config; the language model's "
                    "fields stand beside vision_config, so name them there"
                )
            raw = dict.fromkeys(config_overrides.field_names(config.text_config)) | raw
        super().check_overrides(config, overrides, raw)

    def check(self, config: Any) -> None:
        text = config.text_config
        check_kind(text)
        read_shape(config)
        # One flag, kept in two places: it is the outer one that counts.
        text.tie_word_embeddings = config.tie_word_embeddings
        text.rope_parameters.setdefault("mrope_section", list(_SECTIONS))
        rope_sections(text, _head_dim(text))

    def text_config(self, config: Any) -> Any:
        return config.text_config

    def image_format(self, config: Any) -> ImageFormat:
        shape = read_shape(config)
        return ImageFormat(
            processor="qwen2_vl",
            parameters={"patch_size": shape.patch_size, "merge_size": shape.merge_size},
            token_id=config.image_token_id,
            in_item_order=True,
            before="<|vision_start|>",
            after="<|vision_end|>",
            end="",
        )

    def renames(self, config: Any) -> Renames:
        return RENAMES

    def load(
        self, config: Any, weights: Checkpoint, *, dtype: torch.dtype, device: torch.device
    ) -> Qwen2VLModel:
        renames = self.renames(config)
        return Qwen2VLModel(config, weights, renames=renames, dtype=dtype, device=device)


def _head_dim(text: Any) -> int:
    """Size of the decoder's heads. Raises ModelError for what transformers itself lets through."""
    hidden, heads, kv_heads = text.hidden_size, text.num_attention_heads, text.num_key_value_heads
    if min(hidden, heads, kv_heads) < 1 or hidden % heads or heads % kv_heads:
        raise ModelError(
            f"a decoder of width {hidden} cannot have {heads} heads and {kv_heads} for keys and "
            "values: each number must divide the one before"
        )
    return int(hidden // heads)
