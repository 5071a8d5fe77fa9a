"""The CLIP vision tower (arXiv 2103.00020), run as far as its features are taken."""

from typing import Any

import torch
from torch import Tensor

from vlmflow_engine.layers.linear import Linear
from vlmflow_engine.layers.mlp import MLP, activation
from vlmflow_engine.layers.norm import LayerNorm
from vlmflow_engine.layers.patches import cut_patches
from vlmflow_engine.layers.segments import Segments
from vlmflow_engine.models.weights import Checkpoint


class ClipLayer:
    """Pre-norm transformer layer with full attention over an image's patches."""

    def __init__(self, config: Any, weights: Checkpoint, prefix: str) -> None:
        width = config.hidden_size
        self.num_heads: int = config.num_attention_heads
        self.qkv_proj = weights.merged_linear(
            [f"{prefix}.self_attn.{part}_proj" for part in "qkv"], width, [width] * 3, bias=True
        )
        self.out_proj = weights.linear(f"{prefix}.self_attn.out_proj", width, width, bias=True)
        self.norm1 = _layer_norm(config, weights, f"{prefix}.layer_norm1")
        self.norm2 = _layer_norm(config, weights, f"{prefix}.layer_norm2")
        self.mlp = MLP(
            weights.linear(f"{prefix}.mlp.fc1", width, config.intermediate_size, bias=True),
            weights.linear(f"{prefix}.mlp.fc2", config.intermediate_size, width, bias=True),
            activation(config.hidden_act),
        )

    def __call__(self, x: Tensor, segments: Segments) -> Tensor:
        """x: [images, tokens, width]; segments: its images."""
        width = x.shape[-1]
        # q, k, v: [images * tokens, num_heads, head_dim]
        q, k, v = (
            self.qkv_proj(self.norm1(x))
            .view(-1, 3, self.num_heads, width // self.num_heads)
            .unbind(1)
        )
        x = x + self.out_proj(segments.attend(q, k, v).view_as(x))
        return x + self.mlp(self.norm2(x))


class ClipVisionTower:
    """Patches in, hidden states out. Tensors are taken under `vision.*`."""

    def __init__(self, config: Any, weights: Checkpoint, *, num_layers: int) -> None:
        """Build the first `num_layers` layers; the features are taken no later than that."""
        width, self.patch_size = config.hidden_size, config.patch_size
        self.image_size: int = config.image_size
        num_patches = (config.image_size // config.patch_size) ** 2
        name = "vision.embeddings.patch_embedding"
        kernel = weights.take(
            f"{name}.weight",
            width,
            config.num_channels,
            config.patch_size,
            config.patch_size,
        )
        self.patch_embedding = Linear(weights.keep(kernel.flatten(1), name))
        self.class_embedding = weights.take("vision.embeddings.class_embedding", width)
        self.position_embedding = weights.take(
            "vision.embeddings.position_embedding.weight", num_patches + 1, width
        )
        self.pre_norm = _layer_norm(config, weights, "vision.pre_layrnorm")  # CLIP spells it so
        self.layers = [
            ClipLayer(config, weights, f"vision.encoder.layers.{index}")
            for index in range(num_layers)
        ]

    def __call__(self, pixels: Tensor, layer_indices: list[int]) -> Tensor:
        """Return the hidden states after the given numbers of layers, side by side.

        pixels   [images, 3, image_size, image_size], normalised
        returns  [images, 1 + patches, width * len(layer_indices)], the class token first
        """
        images, size = len(pixels), self.image_size
        patches = cut_patches(pixels[..., :size, :size], self.patch_size)
        classes = self.class_embedding.expand(images, 1, -1)
        x = torch.cat((classes, self.patch_embedding(patches)), dim=1) + self.position_embedding
        segments = Segments([x.shape[1]] * images, is_one_size=True)
        states = [self.pre_norm(x)]
        for layer in self.layers:
            states.append(layer(states[-1], segments))
        return torch.cat([states[index] for index in layer_indices], dim=-1)


def _layer_norm(config: Any, weights: Checkpoint, name: str) -> LayerNorm:
    return LayerNorm(
        weights.take(f"{name}.weight", config.hidden_size),
        weights.take(f"{name}.bias", config.hidden_size),
        config.layer_norm_eps,
    )
