"""Kernels to try the compiler's gate on: one fits, others have more than there is room for."""

import triton
import triton.language as tl

from vlmflow_engine.kernels.compile_case import CompileCase


@triton.jit
def _copy_kernel(x_ptr, out_ptr, num_elements, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < num_elements
    tl.store(out_ptr + offsets, tl.load(x_ptr + offsets, mask=mask), mask=mask)


@triton.jit
def _product_kernel(x_ptr, out_ptr, num_steps, BLOCK: tl.constexpr):
    rows = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    product = tl.zeros([BLOCK, BLOCK], tl.float32)
    for step in range(num_steps):
        x = tl.load(x_ptr + step * BLOCK * BLOCK + rows)
        product = tl.dot(x, tl.trans(x), product)
    tl.store(out_ptr + rows, product)


def _case(name, kernel, **changes):
    fields = {
        "signature": {"x_ptr": "*bf16", "out_ptr": "*bf16", "num_elements": "i32"},
        "constants": {"BLOCK": 1024},
        "num_warps": 4,
        "num_stages": 2,
    }
    return CompileCase(name=name, kernel=kernel, **fields | changes)


def _product(name, **changes):
    signature = {"x_ptr": "*bf16", "out_ptr": "*fp32", "num_steps": "i32"}
    fields = {"signature": signature, "constants": {"BLOCK": 128}, "num_warps": 8}
    return _case(name, _product_kernel, **fields | changes)


def compile_cases():
    return [
        _case("fine", _copy_kernel),
        _product("spilling", num_warps=2),
        _product("excused", num_warps=2, allowed_spills="It is here to spill."),
        _product("too large", num_stages=8),
        _case("broken", _copy_kernel, signature={"x_ptr": "*bf16"}),
    ]
