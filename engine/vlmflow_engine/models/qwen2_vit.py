"""The vision towers of Qwen2-VL (arXiv 2409.12191) and Qwen2.5-VL (arXiv 2502.13923).

Images keep their size, so several of them are packed into one sequence of patches. What a token
does alone is done by so many rows at a time: an image of 12 million pixels has 65,536 patches, and
its widest layer would fill gigabytes.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmflow_engine.layers.linear import Linear
from vlmflow_engine.layers.mlp import MLP, GatedMLP, activation
from vlmflow_engine.layers.norm import LayerNorm, RMSNorm
from vlmflow_engine.layers.rotary import rotate
from vlmflow_engine.layers.segments import Segments
from vlmflow_engine.models.family import ImagePixels
from vlmflow_engine.models.qwen2_patches import pack_patches
from vlmflow_engine.models.qwen2_vit_shape import VitShape
from vlmflow_engine.models.weights import Checkpoint

_PATCHES_PER_PASS = 16384  # of several images; a larger one goes alone
_ROWS = 8192  # patches at a time
_EPS = 1e-6  # of all norms; no config names it


class QwenLayer:
    """x += attention(norm1(x)); x += mlp(norm2(x))."""

    def __init__(self, shape: VitShape, weights: Checkpoint, prefix: str) -> None:
        width, inner = shape.width, shape.inner
        self.head_dim = shape.head_dim
        self.norm1 = _norm(shape, weights, f"{prefix}.norm1")
        self.norm2 = _norm(shape, weights, f"{prefix}.norm2")
        self.qkv = weights.linear(f"{prefix}.attn.qkv", width, 3 * width, bias=True)
        self.proj = weights.linear(f"{prefix}.attn.proj", width, width, bias=True)
        act = activation(shape.act)
        self.mlp: MLP | GatedMLP
        if shape.is_gated:
            self.mlp = GatedMLP(
                weights.merged_linear(
                    [f"{prefix}.mlp.{part}_proj" for part in ("gate", "up")],
                    width,
                    [inner, inner],
                    bias=True,
                ),
                weights.linear(f"{prefix}.mlp.down_proj", inner, width, bias=True),
                act,
            )
        else:
            self.mlp = MLP(
                weights.linear(f"{prefix}.mlp.fc1", width, inner, bias=True),
                weights.linear(f"{prefix}.mlp.fc2", inner, width, bias=True),
                act,
            )

    def __call__(self, x: Tensor, cos_sin: tuple[Tensor, Tensor], segments: Segments) -> None:
        """Change x [patches, width] in place."""
        qkv = self._project(x, cos_sin)
        attended = segments.attend(*qkv.unbind(1)).flatten(1)
        for rows in _chunks(len(x)):
            x[rows] += self.proj(attended[rows])
            x[rows] += self.mlp(self.norm2(x[rows]))

    def _project(self, x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
        """[patches, 3, num_heads, head_dim]: queries, keys and values, the first two rotated."""
        qkv = x.new_empty(len(x), 3, x.shape[1] // self.head_dim, self.head_dim)
        for rows in _chunks(len(x)):
            qkv[rows] = self.qkv(self.norm1(x[rows])).view_as(qkv[rows])
            cos, sin = (table[rows, None] for table in cos_sin)
            # In float32, in which cosines and sines are.
            qkv[rows, :2] = rotate(qkv[rows, :2].float(), cos, sin).to(x.dtype)
        return qkv


class QwenVisionTower:
    """Images in, rows of the decoder's embedding space out. Tensors are taken under `vision.*`."""

    def __init__(self, shape: VitShape, weights: Checkpoint) -> None:
        self._shape = shape
        width, unit = shape.width, shape.width * shape.merge_size**2
        size = shape.patch_size
        name = "vision.patch_embed.proj"
        kernel = weights.take(f"{name}.weight", width, 3, shape.frames, size, size)
        # All frames of an image are equal, and so one frame with the sum of their weights will do.
        of_image = kernel.float().sum(2).to(kernel.dtype).flatten(1)
        self._patch_embedding = Linear(weights.keep(of_image, name))
        self.layers = [
            QwenLayer(shape, weights, f"vision.blocks.{index}") for index in range(shape.depth)
        ]
        self._merger_norm = _norm(shape, weights, "vision.merger.ln_q")
        self._merger = MLP(
            weights.linear("vision.merger.mlp.0", unit, unit, bias=True),
            weights.linear("vision.merger.mlp.2", unit, shape.out, bias=True),
            F.gelu,
        )
        # Radians a row, and a column; each turns half of a head's pairs. [head_dim / 4], float32
        steps = torch.arange(0, shape.head_dim // 2, 2, dtype=torch.float32)
        periods = shape.rope_theta ** (steps / (shape.head_dim // 2))
        self._frequencies = (1.0 / periods).to(kernel.device)

    def encode(self, images: Sequence[ImagePixels]) -> list[Tensor]:
        """Return each image's embeddings [rows, out], row by row as one reads.

        An image is one tile of its own size, its layout (1, rows, columns) in units.
        """
        rows: list[Tensor] = []
        for group in _groups(images, self._shape.merge_size**2):
            rows += self._encode(group)
        return rows

    def _encode(self, images: Sequence[ImagePixels]) -> list[Tensor]:
        shape, device = self._shape, images[0].values.device
        grids = [(image.layout[1], image.layout[2]) for image in images]
        packed = pack_patches(grids, shape.merge_size, shape.window, device)
        # [units, patches of a unit * width]
        embedded = torch.cat([self._embed(image) for image in images])[packed.order]
        x = embedded.view(-1, shape.width)
        cos_sin = self._cos_sin(packed.positions)
        for index, layer in enumerate(self.layers):
            is_full = index in shape.full_layers
            layer(x, cos_sin, packed.images if is_full else packed.windows)
        merged = x.new_empty(len(packed.order), shape.out)
        units = x.view(len(packed.order), shape.merge_size**2, shape.width)
        for rows in _chunks(len(units)):
            # Back to the order of reading.
            merged[packed.order[rows]] = self._merger(self._merger_norm(units[rows]).flatten(1))
        return list(torch.split(merged, [rows * columns for rows, columns in grids]))

    def _embed(self, image: ImagePixels) -> Tensor:
        """[1, 3, height, width] -> [units, patches of a unit * width], units row by row."""
        (_, rows, columns), merge, size = (
            image.layout,
            self._shape.merge_size,
            self._shape.patch_size,
        )
        patches = (
            image.values.view(3, rows, merge, size, columns, merge, size)
            .permute(1, 4, 2, 5, 0, 3, 6)
            .reshape(rows * columns * merge**2, 3 * size**2)
        )
        return self._patch_embedding(patches).view(rows * columns, -1)

    def _cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of patches, each [patches, 1, head_dim] float32."""
        angles = (positions[..., None].float() * self._frequencies).flatten(1)
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return angles.cos(), angles.sin()


def _norm(shape: VitShape, weights: Checkpoint, name: str) -> LayerNorm | RMSNorm:
    weight = weights.take(f"{name}.weight", shape.width)
    if shape.is_gated:
        return RMSNorm(weight, _EPS)
    return LayerNorm(weight, weights.take(f"{name}.bias", shape.width), _EPS)


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, count, _ROWS))


def _groups(images: Sequence[ImagePixels], patches_per_unit: int) -> Iterator[list[ImagePixels]]:
    """Cut images into groups of at most _PATCHES_PER_PASS patches."""
    group: list[ImagePixels] = []
    total = 0
    for image in images:
        _, rows, columns = image.layout
        size = rows * columns * patches_per_unit
        if group and total + size > _PATCHES_PER_PASS:
            yield group
            group, total = [], 0
        group.append(image)
        total += size
    if group:
        yield group
