"""RMSNorm and LayerNorm."""

import torch.nn.functional as F
from torch import Tensor

from vlmflow_engine.kernels.cpu import norms
from vlmflow_engine.kernels.cpu.rows import runs_cpp
from vlmflow_engine.kernels.dispatch import runs_triton


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in float32."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        if runs_triton(x):
            from vlmflow_engine.kernels.rms_norm import rms_norm

            return rms_norm(x, self.weight, self.eps)
        if runs_cpp(x):
            return norms.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def of_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the norm of x + residual, and the sum."""
        if runs_triton(x):
            from vlmflow_engine.kernels.rms_norm import add_rms_norm

            return add_rms_norm(x, residual, self.weight, self.eps)
        if runs_cpp(x):
            return norms.add_rms_norm(x, residual, self.weight, self.eps)
        total = x + residual
        return self(total), total


class LayerNorm:
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias over the last dimension."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        self.weight = weight
        self.bias = bias
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        if runs_triton(x):
            from vlmflow_engine.kernels.layer_norm import layer_norm

            return layer_norm(x, self.weight, self.bias, self.eps)
        if runs_cpp(x):
            return norms.layer_norm(x, self.weight, self.bias, self.eps)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
