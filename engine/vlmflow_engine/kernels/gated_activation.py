"""The activation of a gated MLP, from its merged layer's output: act(gate) * up.

In float32, rounded once; torch reads and writes the activation as well, and rounds twice.
"""

from collections.abc import Callable

import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from vlmflow_engine.kernels.compile_case import CompileCase

_COLUMNS = 1024
_NUM_WARPS = 4

_REFERENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * (1.702 * x).sigmoid(),
    "relu": F.relu,
}
ACTIVATIONS = tuple(_REFERENCES)  # by their names in a checkpoint's config


@triton.jit
def _activation(x, NAME: tl.constexpr):
    """x is float32."""
    if NAME == "silu":
        return x * tl.sigmoid(x)
    elif NAME == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_pytorch_tanh":
        # (1 + tanh(y)) / 2 is sigmoid(2 y); y is sqrt(2 / pi) (x + 0.044715 x^3).
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif NAME == "quick_gelu":
        return x * tl.sigmoid(1.702 * x)
    else:
        tl.static_assert(NAME == "relu")
        return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _gated_activation_kernel(
    # pointers
    gate_up_ptr, out_ptr,
    # sizes and strides
    size, gate_up_stride,
    # constants
    COLUMNS: tl.constexpr, NAME: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = columns < size
    gate_ptrs = gate_up_ptr + row * gate_up_stride + columns
    gate = tl.load(gate_ptrs, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_ptrs + size, mask=mask, other=0.0).to(tl.float32)
    out = (_activation(gate, NAME) * up).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * size + columns, out, mask=mask)


def gated_activation(gate_up: Tensor, name: str) -> Tensor:
    """Return act(gate) * up [..., size] of gate_up [..., 2 * size]; name is one of ACTIVATIONS."""
    assert name in ACTIVATIONS and gate_up.shape[-1] % 2 == 0
    size = gate_up.shape[-1] // 2
    out = gate_up.new_empty((*gate_up.shape[:-1], size))
    rows = gate_up.reshape(-1, 2 * size)
    if out.numel() == 0:
        return out
    _gated_activation_kernel[(len(rows), triton.cdiv(size, _COLUMNS))](
        gate_up_ptr=rows,
        out_ptr=out,
        size=size,
        gate_up_stride=rows.stride(0),
        COLUMNS=_COLUMNS,
        NAME=name,
        num_warps=_NUM_WARPS,
        num_stages=1,
    )
    return out


def gated_activation_reference(gate_up: Tensor, name: str) -> Tensor:
    """The same in plain torch."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (_REFERENCES[name](gate) * up).to(gate_up.dtype)


def compile_cases() -> list[CompileCase]:
    """What decoders and gated towers use."""
    cases = (("silu", "bf16"), ("gelu_pytorch_tanh", "bf16"), ("gelu", "bf16"), ("silu", "fp32"))
    return [
        CompileCase(
            name=f"gated_activation {name} {dtype}",
            kernel=_gated_activation_kernel,
            signature={
                "gate_up_ptr": f"*{dtype}",
                "out_ptr": f"*{dtype}",
                "size": "i32",
                "gate_up_stride": "i32",
            },
            constants={"COLUMNS": _COLUMNS, "NAME": name},
            num_warps=_NUM_WARPS,
            num_stages=1,
            aligned=("gate_up_ptr", "out_ptr", "size", "gate_up_stride"),
        )
        for name, dtype in cases
    ]
