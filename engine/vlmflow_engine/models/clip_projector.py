"""LLaVA's eyes: a CLIP tower, and a projector into the decoder's embedding space."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlmflow_engine.errors import ForeignPartError, ModelError
from vlmflow_engine.layers.mlp import activation
from vlmflow_engine.models.clip import ClipVisionTower
from vlmflow_engine.models.weights import Checkpoint

PREFIXES = ("vision.", "projector.")  # the engine's names of its tensors


class ClipProjector:
    """Tiles in, rows of the decoder's embedding space out.

    `config` is transformers' of a LLaVA. Tensors are taken under `vision.*` and
    `projector.linear_1.*`, `projector.linear_2.*` and so on.
    """

    def __init__(self, config: Any, weights: Checkpoint, *, num_linears: int = 2) -> None:
        vision, hidden_size = config.vision_config, config.text_config.hidden_size
        self._has_class_token = keeps_class_token(config)
        self._layer_indices = _layer_indices(config.vision_feature_layer, vision.num_hidden_layers)
        self.tower = ClipVisionTower(vision, weights, num_layers=max(self._layer_indices))
        has_bias = bool(config.multimodal_projector_bias)
        width = vision.hidden_size * len(self._layer_indices)
        sizes = [width, *[hidden_size] * num_linears]
        self._linears = [
            weights.linear(f"projector.linear_{number}", inputs, outputs, bias=has_bias)
            for number, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False), 1)
        ]
        if sizes[-1] != hidden_size:
            raise ModelError(
                f"a projector without layers passes on {width} features, but the decoder takes "
                f"{hidden_size}"
            )
        self._act = activation(config.projector_hidden_act)
        # Layers behind the one whose features are taken are saved but never used.
        unused = range(max(self._layer_indices), vision.num_hidden_layers)
        self.unused_prefixes = (
            "vision.post_layernorm.",
            *(f"vision.encoder.layers.{index}." for index in unused),
        )

    def __call__(self, pixels: Tensor) -> Tensor:
        """[tiles, 3, image_size, image_size], normalised -> [tiles, rows, hidden_size]."""
        x = self.tower(pixels, self._layer_indices)
        if not self._has_class_token:
            x = x[:, 1:]
        for number, linear in enumerate(self._linears):
            x = linear(self._act(x) if number else x)
        return x

    def encode(self, tiles: Sequence[Tensor]) -> list[Tensor]:
        """Encode several images' tiles in one pass; return the features image by image."""
        return list(torch.split(self(torch.cat(list(tiles))), [len(group) for group in tiles]))


def rows_per_tile(config: Any) -> int:
    """Embedding rows of one tile."""
    vision = config.vision_config
    patches: int = (vision.image_size // vision.patch_size) ** 2
    return patches + keeps_class_token(config)


def keeps_class_token(config: Any) -> bool:
    """Whether the class token's features are among the rows. Raises ModelError."""
    strategy = config.vision_feature_select_strategy
    if strategy not in ("default", "full"):
        raise ModelError(
            f"vision_feature_select_strategy must be 'default' or 'full', got {strategy!r}"
        )
    return bool(strategy == "full")


def check_vision(config: Any) -> None:
    """Raise ForeignPartError for a tower that is not CLIP's."""
    kind = config.vision_config.model_type
    if kind != "clip_vision_model":
        raise ForeignPartError(
            f"a LLaVA checkpoint with a vision model of type {kind!r} is not supported yet: only "
            "'clip_vision_model' is"
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
