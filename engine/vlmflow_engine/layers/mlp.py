"""Feed-forward blocks and their activations."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from vlmflow_engine.errors import ModelError
from vlmflow_engine.layers.linear import Linear
from vlmflow_engine.layers.lora import AdapterRows


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of GELU, x * sigmoid(1.702 x)."""
    return x * (1.702 * x).sigmoid()


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Look up an activation by its name in a checkpoint's config."""
    if name not in _ACTIVATIONS:
        raise ModelError(
            f"activation {name!r} is not known; known are {', '.join(sorted(_ACTIVATIONS))}"
        )
    return _ACTIVATIONS[name]


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

    def __init__(self, gate_up: Linear, down: Linear, act: Callable[[Tensor], Tensor]) -> None:
        self.gate_up = gate_up
        self.down = down
        self.act = act

    def __call__(self, x: Tensor, adapters: Sequence[AdapterRows] | None = None) -> Tensor:
        gate, up = self.gate_up(x, adapters).chunk(2, dim=-1)
        return self.down(self.act(gate) * up, adapters)
