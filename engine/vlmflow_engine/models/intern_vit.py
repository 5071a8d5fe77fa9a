"""InternViT, InternVL's vision tower (arXiv 2312.14238), run as far as its features are taken."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmflow_engine.layers.linear import Linear
from vlmflow_engine.layers.mlp import MLP, activation
from vlmflow_engine.layers.norm import LayerNorm, RMSNorm
from vlmflow_engine.layers.patches import cut_patches
from vlmflow_engine.layers.segments import Segments
from vlmflow_engine.models.weights import Checkpoint


class InternVitLayer:
    """Pre-norm transformer layer whose two branches are scaled channel by channel.

    The 300M tower has LayerNorm and a bias of q, k and v; the 6B one RMSNorm, also over all heads
    of queries and keys together, and no bias.
    """

    def __init__(
        self, config: Any, weights: Checkpoint, prefix: str, *, qk_norm_eps: float
    ) -> None:
        width, inner = config.hidden_size, config.intermediate_size
        self.num_heads: int = config.num_attention_heads
        self.qkv_proj = weights.merged_linear(
            [f"{prefix}.attention.{name}_proj" for name in "qkv"],
            width,
            [width] * 3,
            bias=config.attention_bias,
        )
        self.out_proj = weights.linear(
            f"{prefix}.attention.projection_layer", width, width, bias=True
        )
        self.q_norm, self.k_norm = (
            RMSNorm(weights.take(f"{prefix}.attention.{name}_norm.weight", width), qk_norm_eps)
            if config.use_qk_norm
            else None
            for name in "qk"
        )
        self.norm1 = _norm(config, weights, f"{prefix}.layernorm_before")
        self.norm2 = _norm(config, weights, f"{prefix}.layernorm_after")
        self.scale1 = weights.take(f"{prefix}.lambda_1", width)
        self.scale2 = weights.take(f"{prefix}.lambda_2", width)
        self.mlp = MLP(
            weights.linear(f"{prefix}.mlp.fc1", width, inner, bias=True),
            weights.linear(f"{prefix}.mlp.fc2", inner, width, bias=True),
            activation(config.hidden_act),
        )

    def __call__(self, x: Tensor, segments: Segments) -> Tensor:
        """x: [images, tokens, width]; segments: its images."""
        head_dim = x.shape[-1] // self.num_heads
        q, k, v = self.qkv_proj(self.norm1(x)).chunk(3, dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        # q, k, v: [images * tokens, num_heads, head_dim]
        q, k, v = (part.view(-1, self.num_heads, head_dim) for part in (q, k, v))
        x = x + self.scale1 * self.out_proj(segments.attend(q, k, v).view_as(x))
        return x + self.scale2 * self.mlp(self.norm2(x))


class InternVitTower:
    """Patches in, hidden states out. Tensors are taken under `vision.*`.

    `config` is transformers' InternVLVisionConfig, its images and patches square.
    """

    def __init__(
        self, config: Any, weights: Checkpoint, *, num_layers: int, qk_norm_eps: float
    ) -> None:
        """Build the first `num_layers` layers; the features are taken behind the last of them."""
        width = config.hidden_size
        self.patch_size: int = config.patch_size[0]
        self.grid: int = config.image_size[0] // self.patch_size
        name = "vision.embeddings.patch_embeddings.projection"
        patch_shape = (config.num_channels, self.patch_size, self.patch_size)
        kernel = weights.take(f"{name}.weight", width, *patch_shape).flatten(1)
        self.patch_embedding = Linear(
            weights.keep(kernel, name), weights.take(f"{name}.bias", width)
        )
        self.class_embedding = weights.take("vision.embeddings.cls_token", 1, 1, width)
        self.position_embeddings = weights.take(
            "vision.embeddings.position_embeddings", 1, self.grid**2 + 1, width
        )
        self.layers = [
            InternVitLayer(
                config, weights, f"vision.encoder.layer.{index}", qk_norm_eps=qk_norm_eps
            )
            for index in range(num_layers)
        ]

    def __call__(self, pixels: Tensor) -> Tensor:
        """[images, 3, side, side], normalised -> [images, 1 + patches, width], the class first."""
        patches = self.patch_embedding(cut_patches(pixels, self.patch_size))
        x = torch.cat((self.class_embedding.expand(len(pixels), -1, -1), patches), dim=1)
        x = x + self._positions(pixels.shape[-1] // self.patch_size)
        segments = Segments([x.shape[1]] * len(x), is_one_size=True)
        for layer in self.layers:
            x = layer(x, segments)
        return x

    def _positions(self, grid: int) -> Tensor:
        """Position embeddings of a grid x grid image, [1, 1 + patches, width]."""
        if grid == self.grid:
            return self.position_embeddings
        of_class, of_patches = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        square = of_patches.float().view(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
        resized = resized.flatten(2).transpose(1, 2).to(of_class.dtype)
        return torch.cat((of_class, resized), dim=1)


def _norm(config: Any, weights: Checkpoint, name: str) -> RMSNorm | LayerNorm:
    width, eps = config.hidden_size, config.layer_norm_eps
    weight = weights.take(f"{name}.weight", width)
    if config.norm_type == "rms_norm":
        return RMSNorm(weight, eps)
    return LayerNorm(weight, weights.take(f"{name}.bias", width), eps)
