"""Linear layers over a checkpoint's tensors, merged where several share their input."""

import torch
import torch.nn.functional as F
from torch import Tensor


class Linear:
    """y = x W^T + b."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight  # [out_features, in_features]
        self.bias = bias  # [out_features]

    @classmethod
    def merged(cls, parts: list["Linear"]) -> "Linear":
        """Stack layers that read the same input: one GEMM instead of several."""
        biases = [part.bias for part in parts if part.bias is not None]
        assert len(biases) in (0, len(parts))
        return cls(
            torch.cat([part.weight for part in parts]), torch.cat(biases) if biases else None
        )

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)
