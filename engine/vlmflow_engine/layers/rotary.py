"""Rotary position embedding, the half-rotating form of Llama (arXiv 2104.09864)."""

import torch
from torch import Tensor


class RotaryEmbedding:
    """Cosines and sines for every position up to `max_positions`."""

    def __init__(
        self,
        frequencies: Tensor,
        *,
        attention_factor: float = 1.0,
        max_positions: int,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        """`frequencies` are radians a position, [head_dim / 2] float32; see `rope_scaling`."""
        # Angles in float32 whatever the dtype: bfloat16 cannot tell position 512 from 513.
        positions = torch.arange(max_positions, dtype=torch.float32, device=device)
        angles = torch.outer(positions, frequencies.to(device))
        angles = torch.cat((angles, angles), dim=-1)  # [max_positions, head_dim]
        self._cos = (angles.cos() * attention_factor).to(dtype)
        self._sin = (angles.sin() * attention_factor).to(dtype)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of a step's tokens, each [num_tokens, 1, head_dim]."""
        return (
            self._cos.index_select(0, positions).unsqueeze(1),
            self._sin.index_select(0, positions).unsqueeze(1),
        )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn every head of x [num_tokens, num_heads, head_dim] by its token's angles."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
