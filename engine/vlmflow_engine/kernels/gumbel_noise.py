"""Gumbel noise of a token in Triton, bit by bit that of kernels/gumbel.py.

Whoever launches a kernel with `gumbel_tile` in it sets `enable_fp_fusion=False`: a product and a
sum that are rounded together give other bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmflow_engine.kernels import gumbel
from vlmflow_engine.kernels.compile_case import CompileCase

_P0, _P1, _P2, _P3, _P4, _P5, _P6, _P7 = (tl.constexpr(number) for number in gumbel.POLYNOMIAL)
_LOG_2 = tl.constexpr(gumbel.LOG_2)
_ROOT_BITS = tl.constexpr(gumbel.ROOT_BITS)
_SMALL = tl.constexpr(gumbel.SMALL)
_TILE = 1024  # tokens of a program


@triton.jit
def gumbel_tile(seed, position, first_token, TOKENS: tl.constexpr):
    """The noise of TOKENS tokens, of which the first has a number divisible by four."""
    counters = first_token // 4 + tl.arange(0, TOKENS // 4)
    nothing = counters * 0
    w0, w1, w2, w3 = tl.philox(seed, counters, nothing + position, nothing, nothing)
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [TOKENS])
    w, rest = _share(words), _share(words ^ 0xFFFFFFFF)
    exponents = _exponents(rest)
    is_small = w < _SMALL
    f = tl.where(is_small, -w, _mantissas(rest, exponents) - 1.0)
    waited = -_log1p(f, tl.where(is_small, 0, exponents))
    exponents = _exponents(waited)
    return -_log1p(_mantissas(waited, exponents) - 1.0, exponents)


@triton.jit
def _share(words):
    return (words.to(tl.float32) + 0.5) * 2.3283064365386963e-10


@triton.jit
def _exponents(x):
    return (x.to(tl.int32, bitcast=True) - _ROOT_BITS) >> 23


@triton.jit
def _mantissas(x, exponents):
    return (x.to(tl.int32, bitcast=True) - (exponents << 23)).to(tl.float32, bitcast=True)


@triton.jit
def _log1p(f, exponents):
    result = f * _P7
    result = (result + _P6) * f
    result = (result + _P5) * f
    result = (result + _P4) * f
    result = (result + _P3) * f
    result = (result + _P2) * f
    result = (result + _P1) * f
    result = (result + _P0) * (f * f)
    return (result + f) + exponents.to(tl.float32) * _LOG_2


@triton.jit
def _gumbel_noise_kernel(
    # pointers
    seeds_ptr,
    positions_ptr,
    out_ptr,
    # sizes and strides
    vocab_size,
    out_stride,
    # constants
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * TILE
    tokens = first + tl.arange(0, TILE)
    noise = gumbel_tile(tl.load(seeds_ptr + row), tl.load(positions_ptr + row), first, TILE)
    tl.store(out_ptr + row * out_stride + tokens, noise, mask=tokens < vocab_size)


def gumbel_noise(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """Return the noise of each row's vocabulary [num_rows, vocab_size] float32.

    seeds      [num_rows] int64, the bits of the seed's last 64
    positions  [num_rows] int32
    """
    assert seeds.dtype == torch.int64 and positions.dtype == torch.int32
    out = torch.empty(len(seeds), vocab_size, dtype=torch.float32, device=seeds.device)
    _gumbel_noise_kernel[(len(seeds), triton.cdiv(vocab_size, _TILE))](
        seeds_ptr=seeds,
        positions_ptr=positions,
        out_ptr=out,
        vocab_size=vocab_size,
        out_stride=out.stride(0),
        TILE=_TILE,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return out


def gumbel_noise_reference(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """The same in numpy, row by row."""
    rows = [
        gumbel.gumbel_of_all(seed % 2**64, position, vocab_size)
        for seed, position in zip(seeds.tolist(), positions.tolist(), strict=True)
    ]
    return torch.stack([torch.from_numpy(row) for row in rows]).to(seeds.device)


def compile_cases() -> list[CompileCase]:
    return [
        CompileCase(
            name="gumbel noise",
            kernel=_gumbel_noise_kernel,
            signature={
                "seeds_ptr": "*i64",
                "positions_ptr": "*i32",
                "out_ptr": "*fp32",
                "vocab_size": "i32",
                "out_stride": "i32",
            },
            constants={"TILE": _TILE},
            num_warps=4,
            num_stages=1,
            aligned=("seeds_ptr", "positions_ptr", "out_ptr"),
        )
    ]
