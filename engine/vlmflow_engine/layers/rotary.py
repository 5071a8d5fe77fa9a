"""Rotary position embedding, the half-rotating form of Llama (arXiv 2104.09864)."""

from collections.abc import Sequence

import torch
from torch import Tensor


class RotaryEmbedding:
    """Cosines and sines for every position up to `max_positions`."""

    def __init__(
        self,
        frequencies: Tensor,
        *,
        attention_factor: float = 1.0,
        sections: Sequence[int] = (),
        max_positions: int,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        """Compute the tables.

        frequencies  radians a position, [head_dim / 2] float32; see `rope_scaling`
        sections     how many of the frequencies turn with each axis of a position, in their order
                     (M-RoPE, arXiv 2409.12191); none: a position has one axis
        """
        # Angles in float32 whatever the dtype: bfloat16 cannot tell position 512 from 513.
        positions = torch.arange(max_positions, dtype=torch.float32, device=device)
        angles = torch.outer(positions, frequencies.to(device))
        angles = torch.cat((angles, angles), dim=-1)  # [max_positions, head_dim]
        self._cos = (angles.cos() * attention_factor).to(dtype)
        self._sin = (angles.sin() * attention_factor).to(dtype)
        # Both halves of a head turn by the same angles.
        self._spans = [(axis, size) for _ in range(2) for axis, size in enumerate(sections)]

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of a step's tokens, each [num_tokens, 1, head_dim].

        positions  [num_tokens] int64, or [axes, num_tokens]
        """
        return self._look_up(self._cos, positions), self._look_up(self._sin, positions)

    def _look_up(self, table: Tensor, positions: Tensor) -> Tensor:
        if not self._spans:
            return table.index_select(0, positions).unsqueeze(1)
        by_axis = [table.index_select(0, axis) for axis in positions]
        parts, start = [], 0
        for axis, size in self._spans:
            parts.append(by_axis[axis][:, start : start + size])
            start += size
        return torch.cat(parts, dim=-1).unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn every head of x [num_tokens, num_heads, head_dim] by its token's angles."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
