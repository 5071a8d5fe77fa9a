"""Rotary position embedding, the half-rotating form of Llama (arXiv 2104.09864)."""

import torch
from torch import Tensor

from vlmflow_engine.errors import ModelError


class RotaryEmbedding:
    """Cosines and sines for every position up to `max_positions`."""

    def __init__(
        self, *, head_dim: int, theta: float, max_positions: int, dtype: torch.dtype, device: str
    ) -> None:
        # Angles in float32 whatever the dtype: bfloat16 cannot tell position 512 from 513.
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        angles = torch.outer(
            torch.arange(max_positions, dtype=torch.float32, device=device), 1.0 / theta**exponents
        )
        angles = torch.cat((angles, angles), dim=-1)  # [max_positions, head_dim]
        self._cos = angles.cos().to(dtype)
        self._sin = angles.sin().to(dtype)

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


def rope_theta(text_config: object) -> float:
    """Read the base from a transformers config; refuse scalings that are not implemented."""
    parameters = getattr(text_config, "rope_parameters", None) or {}
    kind = parameters.get("rope_type", "default")
    if kind != "default":
        raise ModelError(
            f"rope_type {kind!r} is not supported yet: only 'default' rotary embeddings are"
        )
    return float(parameters.get("rope_theta", 10000.0))
