"""LLaVA-1.5 in Hugging Face format: CLIP tower, two-layer projector, Llama decoder."""

from typing import Any

import torch
from torch import Tensor

from vlmflow_engine.errors import ModelError
from vlmflow_engine.layers.mlp import MLP, activation
from vlmflow_engine.models.clip import ClipVisionTower
from vlmflow_engine.models.llama import LlamaDecoder
from vlmflow_engine.models.weights import Checkpoint, Renames

# Three generations of transformers saved the same model under three namings.
RENAMES: Renames = (
    (r"(model\.)?vision_tower\.(vision_model\.)?", "vision."),
    (r"(model\.)?multi_modal_projector\.", "projector."),
    (r"language_model\.lm_head\.", "lm_head."),
    (r"language_model\.model\.", "text."),
    (r"model\.language_model\.", "text."),
)
VISION_PREFIXES = ("vision.", "projector.")  # what the decoder does without


class LlavaModel:
    """Encodes images into rows of the decoder's embedding space, and runs the decoder."""

    def __init__(
        self, config: Any, weights: Checkpoint, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.renames = RENAMES  # of its adapters' tensors too
        vision, text = config.vision_config, config.text_config
        self._strategy: str = config.vision_feature_select_strategy
        if self._strategy not in ("default", "full"):
            raise ModelError(
                f"vision_feature_select_strategy must be 'default' or 'full', "
                f"got {self._strategy!r}"
            )
        self._layer_indices = _layer_indices(config.vision_feature_layer, vision.num_hidden_layers)
        self.vision_tower = ClipVisionTower(vision, weights, num_layers=max(self._layer_indices))
        has_bias = bool(config.multimodal_projector_bias)
        width = vision.hidden_size * len(self._layer_indices)
        self.projector = MLP(
            weights.linear("projector.linear_1", width, text.hidden_size, bias=has_bias),
            weights.linear("projector.linear_2", text.hidden_size, text.hidden_size, bias=has_bias),
            activation(config.projector_hidden_act),
        )
        self.decoder = LlamaDecoder(text, weights, dtype=dtype, device=device)
        # Layers behind the one whose features are taken are saved but never used.
        unused = range(max(self._layer_indices), vision.num_hidden_layers)
        weights.check_used(
            "vision.post_layernorm.", *(f"vision.encoder.layers.{index}." for index in unused)
        )

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return the images' embeddings [images, rows, hidden_size].

        pixels  [images, 3, image_size, image_size], normalised
        """
        features = self.vision_tower(pixels, self._layer_indices)
        if self._strategy == "default":
            features = features[:, 1:]  # without the class token
        return self.projector(features)


def check_kinds(config: Any) -> None:
    """Raise ModelError for a LLaVA that is made of parts that are not ours."""
    for part, kind, expected in (
        ("vision", config.vision_config.model_type, "clip_vision_model"),
        ("language", config.text_config.model_type, "llama"),
    ):
        if kind != expected:
            raise ModelError(
                f"a LLaVA checkpoint with a {part} model of type {kind!r} is not supported yet: "
                f"only {expected!r} is"
            )


def _layer_indices(feature_layer: int | list[int], num_layers: int) -> list[int]:
    """Turn indices into hidden states (0 is before the first layer, -1 after the last)."""
    layers = [feature_layer] if isinstance(feature_layer, int) else list(feature_layer)
    indices = [layer if layer >= 0 else num_layers + 1 + layer for layer in layers]
    if not all(0 <= index <= num_layers for index in indices):
        raise ModelError(
            f"vision_feature_layer {feature_layer!r} does not exist in a tower of {num_layers} "
            "layers"
        )
    return indices
