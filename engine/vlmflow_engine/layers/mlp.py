"""Feed-forward blocks and their activations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from vlmflow_engine.errors import ModelError
from vlmflow_engine.kernels.cpu import activations
from vlmflow_engine.kernels.cpu.rows import runs_cpp
from vlmflow_engine.kernels.dispatch import runs_triton
from vlmflow_engine.layers.linear import Linear
from vlmflow_engine.layers.lora import AdapterRows


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of GELU, x * sigmoid(1.702 x)."""
    return x * (1.702 * x).sigmoid()


@dataclass(frozen=True, slots=True)
class Activation:
    """An element-wise function, by its name in a checkpoint's config."""

    name: str
    function: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        if self.name in activations.ACTIVATIONS and runs_cpp(x):
            return activations.activate(x, self.name)
        return self.function(x)

    def gated(self, gate_up: Tensor) -> Tensor:
        """Return act(gate) * up of a merged layer's output [..., 2 * size]."""
        if runs_triton(gate_up):
            from vlmflow_engine.kernels.gated_activation import gated_activation

            return gated_activation(gate_up, self.name)
        if self.name in activations.ACTIVATIONS and runs_cpp(gate_up):
            return activations.gated_activation(gate_up, self.name)
        gate, up = gate_up.chunk(2, dim=-1)
        return self.function(gate) * up


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
}


def activation(name: str) -> Activation:
    """Look up an activation by its name in a checkpoint's config."""
    if name not in _FUNCTIONS:
        raise ModelError(
            f"activation {name!r} is not known; known are {', '.join(sorted(_FUNCTIONS))}"
        )
    return Activation(name, _FUNCTIONS[name])


class MLP:
    """down(act(up(x)))."""

    def __init__(self, up: Linear, down: Linear, act: Callable[[Tensor], Tensor]) -> None:
        self.up = up
        self.down = down
        self.act = act

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class GatedMLP:
    """down(act(gate(x)) * up(x)), gate and up merged into one layer."""

    def __init__(self, gate_up: Linear, down: Linear, act: Activation) -> None:
        self.gate_up = gate_up
        self.down = down
        self.act = act

    def __call__(self, x: Tensor, adapters: Sequence[AdapterRows] | None = None) -> Tensor:
        gate_up, gated = self.gate_up, None
        # What an adapter adds comes before the gate; and an engine that has one computes all rows
        # alike, whoever is in a step.
        if not gate_up.adapters:
            gated = gate_up.weight.gated(x, gate_up.bias, self.act.name)
        if gated is None:
            gated = self.act.gated(gate_up(x, adapters))
        return self.down(gated, adapters)
