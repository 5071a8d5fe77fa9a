"""Rotary position embedding, the half-rotating form of Llama (arXiv 2104.09864)."""

from collections.abc import Sequence

import torch
from torch import Tensor


class RotaryEmbedding:
    """Cosines and sines of a step's positions, computed for each step: a table of 128 Ki positions
    would take 134 MB."""

    def __init__(
        self,
        frequencies: Tensor,
        *,
        attention_factor: float = 1.0,
        sections: Sequence[int] = (),
        long_frequencies: Tensor | None = None,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        """See `rope_scaling` for where the numbers come from.

        frequencies       radians a position, [head_dim / 2] float32
        sections          how many of the frequencies turn with each axis of a position, in their
                          order (M-RoPE, arXiv 2409.12191); none: a position has one axis
        long_frequencies  those of a sequence that has outgrown the context the model was made for
                          (LongRoPE, arXiv 2402.13753); None: the same
        """
        self._frequencies = frequencies.to(device)
        self._attention_factor = attention_factor
        self._dtype = dtype
        axes = [axis for axis, size in enumerate(sections) for _ in range(size)]
        self._axes = torch.tensor(axes, device=device) if sections else None  # [head_dim / 2]
        self._long = None if long_frequencies is None else long_frequencies.to(device)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of a step's tokens, each [num_tokens, 1, head_dim].

        positions  int64: [num_tokens]; with sections [axes, num_tokens]; with long frequencies
                   [2, num_tokens], the second row 1 where they hold
        """
        # Angles in float32 whatever the dtype: bfloat16 cannot tell position 512 from 513.
        if self._axes is not None:
            angles = positions.index_select(0, self._axes).T.float() * self._frequencies
        elif self._long is not None:
            numbers, is_long = positions[0].float()[:, None], positions[1].bool()[:, None]
            angles = numbers * torch.where(is_long, self._long, self._frequencies)
        else:
            angles = torch.outer(positions.float(), self._frequencies)
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
        cos, sin = angles.cos() * self._attention_factor, angles.sin() * self._attention_factor
        return cos.to(self._dtype), sin.to(self._dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn every head of x [num_tokens, num_heads, head_dim] by its token's angles."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
