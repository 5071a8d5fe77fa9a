"""InternVL's eyes: an InternViT tower, neighbouring patches put together, and a connector."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlmflow_engine.errors import ModelError
from vlmflow_engine.layers.mlp import activation
from vlmflow_engine.layers.norm import LayerNorm
from vlmflow_engine.models.config_checks import check_counts
from vlmflow_engine.models.intern_vit import InternVitTower
from vlmflow_engine.models.weights import Checkpoint

PREFIXES = ("vision.", "projector.")  # the engine's names of its tensors

_CONNECTOR_EPS = 1e-5  # torch's own, in both forms
_QK_NORM_EPS = 1e-6  # transformers', which has no field for it


class InternProjector:
    """Tiles in, rows of the decoder's embedding space out.

    `config` is transformers' InternVLConfig, with two fields of the original's where they are set:
    ps_version "v1" hands on columns before rows, and vision_config.qk_norm_eps.
    """

    def __init__(self, config: Any, weights: Checkpoint) -> None:
        vision, hidden_size = config.vision_config, config.text_config.hidden_size
        num_layers = _num_layers(config)
        self.tower = InternVitTower(
            vision,
            weights,
            num_layers=num_layers,
            qk_norm_eps=getattr(vision, "qk_norm_eps", _QK_NORM_EPS),
        )
        self._factor = shuffle_factor(config)
        self._is_transposed = getattr(config, "ps_version", "v2") == "v1"
        width = vision.hidden_size * self._factor**2
        self._norm = LayerNorm(
            weights.take("projector.layer_norm.weight", width),
            weights.take("projector.layer_norm.bias", width),
            _CONNECTOR_EPS,
        )
        self._linear_1 = weights.linear("projector.linear_1", width, hidden_size, bias=True)
        self._linear_2 = weights.linear("projector.linear_2", hidden_size, hidden_size, bias=True)
        self._act = activation(config.projector_hidden_act)
        # Layers behind the one whose features are taken are saved but never used.
        self.unused_prefixes = (
            "vision.embeddings.mask_token",
            *(f"vision.encoder.layer.{index}." for index in range(num_layers, _depth(config))),
        )

    def __call__(self, pixels: Tensor) -> Tensor:
        """[tiles, 3, side, side], normalised -> [tiles, rows, hidden_size]."""
        x = self.tower(pixels)[:, 1:]
        grid = pixels.shape[-1] // self.tower.patch_size
        x = x.reshape(len(x), grid, grid, -1)
        x = shuffle(x, self._factor, is_transposed=self._is_transposed)
        return self._linear_2(self._act(self._linear_1(self._norm(x))))

    def encode(self, tiles: Sequence[Tensor]) -> list[Tensor]:
        """Encode several images' tiles in one pass; return the features image by image."""
        return list(torch.split(self(torch.cat(list(tiles))), [len(group) for group in tiles]))


def shuffle(x: Tensor, factor: int, *, is_transposed: bool) -> Tensor:
    """Put factor x factor neighbours side by side: pixel shuffle, the other way round.

    x              [tiles, rows, columns, channels]
    is_transposed  go through the result column by column
    Returns [tiles, rows * columns / factor^2, channels * factor^2], of each neighbourhood row by
    row.
    """
    tiles, rows, columns, channels = x.shape
    # [tiles, rows, row in neighbourhood, columns, column in neighbourhood, channels]
    x = x.view(tiles, rows // factor, factor, columns // factor, factor, channels)
    order = (0, 3, 1, 2, 4, 5) if is_transposed else (0, 1, 3, 2, 4, 5)
    return x.permute(order).flatten(3).flatten(1, 2)


def shuffle_factor(config: Any) -> int:
    """How many patches of a row become one. Raises ModelError."""
    ratio = config.downsample_ratio
    if ratio not in (1.0, 0.5, 0.25):
        raise ModelError(f"downsample_ratio must be 1, 0.5 or 0.25, got {ratio!r}")
    return int(1 / ratio)


def check_vision(config: Any) -> None:
    """Raise ModelError for a tower that is not InternViT's, or one that does not fit together."""
    vision = config.vision_config
    if vision.model_type != "internvl_vision":
        raise ModelError(
            f"an InternVL checkpoint with a vision model of type {vision.model_type!r} is not "
            "supported: only 'internvl_vision' is"
        )
    check_counts(
        vision,
        ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        "vision_config",
    )
    width, heads = vision.hidden_size, vision.num_attention_heads
    if width % heads:
        raise ModelError(f"vision_config: hidden_size {width} is no multiple of {heads} heads")
    for name, wanted in {
        "num_channels": (3,),
        "norm_type": ("layer_norm", "rms_norm"),
        "use_absolute_position_embeddings": (True,),
        "use_mean_pooling": (True,),  # False: a norm behind the last layer
    }.items():
        value = getattr(vision, name)
        if value not in wanted:
            raise ModelError(
                f"vision_config: {name} must be {' or '.join(map(repr, wanted))}, got {value!r}"
            )
    strategy = config.vision_feature_select_strategy
    if strategy != "default":
        raise ModelError(f"vision_feature_select_strategy must be 'default', got {strategy!r}")
    for name in ("image_size", "patch_size"):
        square_side(vision, name)
    shuffle_factor(config)
    _num_layers(config)


def square_side(vision: Any, name: str) -> int:
    """A size of the vision config that must be square. Raises ModelError."""
    size = list(getattr(vision, name))
    if len(size) != 2 or size[0] != size[1] or type(size[0]) is not int or size[0] < 1:
        raise ModelError(f"vision_config: {name} must be a square of whole pixels, got {size!r}")
    side: int = size[0]
    return side


def _depth(config: Any) -> int:
    depth: int = config.vision_config.num_hidden_layers
    return depth


def _num_layers(config: Any) -> int:
    """How many layers the features go through; -1 means all."""
    index, depth = config.vision_feature_layer, _depth(config)
    if not isinstance(index, int) or not -depth - 1 <= index <= depth:
        raise ModelError(
            f"vision_feature_layer {index!r} does not exist in a tower of {depth} layers"
        )
    return index if index >= 0 else depth + 1 + index
