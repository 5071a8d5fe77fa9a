"""Full attention inside the segments of a packed sequence, for vision towers.

    out[i] = softmax(scale * q[i] k[s:e]^T) v[s:e],  where tokens s..e are the segment of token i

A program takes query rows of one head and one segment, a tile, and walks the segment's keys.

- Head dims of vision towers (72, 80, 88) lie badly between powers of two. A dot is cut in two, 64
  + 16 or 64 + 32, which saves up to 38 % of the multiplications of padding to 128.
- Which segment a tile is of is found on the device: those of segment i begin at tile
  starts[i] // BLOCK_M + i, so their number is known from shapes alone. Where every segment fits in
  one tile (windows), the tile is the segment.
- No row of another segment reaches a dot, so a NaN of one image stays its own.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmflow_engine.kernels.compile_case import CompileCase
from vlmflow_engine.kernels.dispatch import architecture, dot_dtype

WINDOW = 64  # tokens up to which a segment is one tile; a window of Qwen2.5-VL has as many
HEAD_DIMS = (64, 72, 80, 88, 128)  # of the vision towers we know


class _LaunchConfig(NamedTuple):
    block_m: int  # query rows of a tile
    block_n: int  # keys of a step
    num_warps: int
    num_stages: int


def _launch_config(
    head_dim: int, dtype: torch.dtype, max_length: int, architecture: int
) -> _LaunchConfig:
    """Choose by what fits: no GPU has measured these yet (benchmarks/kernels/varlen_attention.py).

    Four warps are one wgmma of 64 rows.
    """
    if dtype == torch.float32:
        # For parity, not for speed: exact float32 knows no tensor cores.
        return _LaunchConfig(block_m=32, block_n=16, num_warps=4, num_stages=1)
    if max_length <= WINDOW:
        # All keys are one step: there is nothing to load ahead.
        return _LaunchConfig(block_m=64, block_n=64, num_warps=4, num_stages=1)
    if architecture < 90:
        # mma.sync keeps its operands in registers: 128 keys spill at head dims 88 and 128.
        return _LaunchConfig(block_m=128, block_n=64, num_warps=8, num_stages=3)
    # Registers leave room for one program a multiprocessor, so shared memory is there to be filled;
    # a third stage at head dim 128 would take 224 of 227 KB.
    stages = 3 if head_dim <= 96 else 2
    return _LaunchConfig(block_m=128, block_n=128, num_warps=8, num_stages=stages)


def _head_parts(head_dim: int) -> tuple[int, int]:
    """Cut a head in two powers of two, each 16 or more as tl.dot wants; the second may be 0."""
    main = max(16, 1 << (head_dim.bit_length() - 1))
    rest = head_dim - main
    if rest <= 0:
        return main, 0
    tail = max(16, triton.next_power_of_2(rest))
    return (2 * main, 0) if tail == main else (main, tail)


@triton.jit
def _load(ptr, rows, end, stride, FIRST, WIDTH, HEAD_DIM, IS_MASKED):
    """[rows, WIDTH] from column FIRST on; 0 right of the head, and below `end` if masked."""
    columns = FIRST + tl.arange(0, WIDTH)
    ptrs = ptr + rows[:, None] * stride + columns[None, :]
    if FIRST + WIDTH > HEAD_DIM:
        if IS_MASKED:
            return tl.load(
                ptrs, mask=(rows[:, None] < end) & (columns[None, :] < HEAD_DIM), other=0.0
            )
        return tl.load(ptrs, mask=columns[None, :] < HEAD_DIM, other=0.0)
    if IS_MASKED:
        return tl.load(ptrs, mask=rows[:, None] < end, other=0.0)
    return tl.load(ptrs)


@triton.jit
def _attend(
    state, state_tail, row_max, row_sum, q, q_tail, k_ptr, v_ptr, first, last, end,
    k_stride, v_stride, scale_log2,
    HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_N: tl.constexpr,
    IS_MASKED: tl.constexpr, DOT_DTYPE: tl.constexpr,
):  # fmt: skip
    """Take in the keys first..last, BLOCK_N at a time; those from `end` on are masked."""
    for start in range(first, last, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        k = _load(k_ptr, rows, end, k_stride, 0, MAIN, HEAD_DIM, IS_MASKED).to(DOT_DTYPE)
        # s: [BLOCK_M, BLOCK_N]
        s = tl.dot(q, tl.trans(k), input_precision="ieee")
        if TAIL:
            k_tail = _load(k_ptr, rows, end, k_stride, MAIN, TAIL, HEAD_DIM, IS_MASKED)
            s = tl.dot(q_tail, tl.trans(k_tail.to(DOT_DTYPE)), s, input_precision="ieee")
        if IS_MASKED:
            s = tl.where(rows[None, :] < end, s, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(s, 1) * scale_log2)
        p = tl.math.exp2(s * scale_log2 - new_max[:, None])
        shrink = tl.math.exp2(row_max - new_max)
        row_sum = row_sum * shrink + tl.sum(p, 1)
        row_max = new_max
        p = p.to(v_ptr.dtype.element_ty).to(DOT_DTYPE)
        v = _load(v_ptr, rows, end, v_stride, 0, MAIN, HEAD_DIM, IS_MASKED).to(DOT_DTYPE)
        state = tl.dot(p, v, state * shrink[:, None], input_precision="ieee")
        if TAIL:
            v_tail = _load(v_ptr, rows, end, v_stride, MAIN, TAIL, HEAD_DIM, IS_MASKED)
            state_tail = tl.dot(
                p, v_tail.to(DOT_DTYPE), state_tail * shrink[:, None], input_precision="ieee"
            )
    return state, state_tail, row_max, row_sum


@triton.jit
def _segment_of(tile, starts_ptr, num_segments, BLOCK_M: tl.constexpr):
    """The last segment whose tiles begin at `tile` or before."""
    low = 0
    high = num_segments
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(starts_ptr + middle) // BLOCK_M + middle <= tile:
            low = middle
        else:
            high = middle
    return low


# One kernel for any number of segments, see rms_norm.py.
@triton.jit(do_not_specialize=["num_segments", "num_tiles"])
def _varlen_attention_kernel(
    # pointers
    out_ptr, q_ptr, k_ptr, v_ptr, starts_ptr,
    # sizes
    num_segments, num_tiles, num_heads, scale_log2,
    # strides between tokens, in elements; a token's heads follow one another
    out_stride, q_stride, k_stride, v_stride,
    HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    IS_ONE_TILE: tl.constexpr,  # no segment is longer than BLOCK_M
    DOT_DTYPE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if IS_ONE_TILE:
        # Heads of a window beside each other: they are beside each other in memory.
        segment = program // num_heads
        head = program % num_heads
        first = 0
    else:
        # Tiles of a head beside each other: they read the same keys.
        head = program // num_tiles
        tile = program % num_tiles
        segment = _segment_of(tile, starts_ptr, num_segments, BLOCK_M)
        first = (tile - tl.load(starts_ptr + segment) // BLOCK_M - segment) * BLOCK_M
    start = tl.load(starts_ptr + segment)
    length = tl.load(starts_ptr + segment + 1) - start
    if first >= length:
        return
    start = start.to(tl.int64)
    q_ptr += start * q_stride + head * HEAD_DIM
    k_ptr += start * k_stride + head * HEAD_DIM
    v_ptr += start * v_stride + head * HEAD_DIM
    out_ptr += start * out_stride + head * HEAD_DIM

    rows = first + tl.arange(0, BLOCK_M)
    q = _load(q_ptr, rows, length, q_stride, 0, MAIN, HEAD_DIM, True).to(DOT_DTYPE)
    state = tl.full([BLOCK_M, MAIN], 0.0, tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.full([BLOCK_M], 0.0, tl.float32)
    # Without a tail, something must go round in its place.
    q_tail = row_sum
    state_tail = row_sum
    if TAIL:
        q_tail = _load(q_ptr, rows, length, q_stride, MAIN, TAIL, HEAD_DIM, True).to(DOT_DTYPE)
        state_tail = tl.full([BLOCK_M, TAIL], 0.0, tl.float32)
    whole = length // BLOCK_N * BLOCK_N
    if not IS_ONE_TILE:
        state, state_tail, row_max, row_sum = _attend(
            state, state_tail, row_max, row_sum, q, q_tail, k_ptr, v_ptr, 0, whole, length,
            k_stride, v_stride, scale_log2,
            HEAD_DIM, MAIN, TAIL, BLOCK_N, False, DOT_DTYPE,
        )  # fmt: skip
    else:
        whole = 0
    state, state_tail, row_max, row_sum = _attend(
        state, state_tail, row_max, row_sum, q, q_tail, k_ptr, v_ptr, whole, length, length,
        k_stride, v_stride, scale_log2,
        HEAD_DIM, MAIN, TAIL, BLOCK_N, True, DOT_DTYPE,
    )  # fmt: skip

    out_type = out_ptr.dtype.element_ty
    columns = tl.arange(0, MAIN)
    tl.store(
        out_ptr + rows[:, None] * out_stride + columns[None, :],
        (state / row_sum[:, None]).to(out_type),
        mask=(rows[:, None] < length) & (columns[None, :] < HEAD_DIM),
    )
    if TAIL:
        columns = MAIN + tl.arange(0, TAIL)
        tl.store(
            out_ptr + rows[:, None] * out_stride + columns[None, :],
            (state_tail / row_sum[:, None]).to(out_type),
            mask=(rows[:, None] < length) & (columns[None, :] < HEAD_DIM),
        )


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    max_length: int,
    *,
    scale: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attend each segment's tokens to all of the same segment.

    q, k, v     [tokens, num_heads, head_dim], of one dtype, parts of a merged projection or not: a
                token's heads follow one another, tokens lie at any distance
    starts      [segments + 1] int32: each segment's first token, and the end; some may be empty
    max_length  no segment is longer. Which tiles are computed depends on it: who wants the same
                bits gives the same
    scale       of the scores; head_dim ** -0.5 if None
    out         where the result is written, with heads and tokens as of q; made if None
    """
    num_tokens, num_heads, head_dim = q.shape
    num_segments = len(starts) - 1
    if out is None:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for x in (q, k, v, out):
        assert x.shape == q.shape and x.dtype == q.dtype
        assert x.stride()[1:] == (head_dim, 1), x.stride()
    assert starts.dtype == torch.int32 and starts.is_contiguous()
    config = _launch_config(head_dim, q.dtype, max_length, architecture(q))
    is_one_tile = max_length <= config.block_m
    num_tiles = num_segments if is_one_tile else num_tokens // config.block_m + num_segments
    if num_tokens == 0:
        return out
    _varlen_attention_kernel[(num_tiles * num_heads,)](
        out_ptr=out,
        q_ptr=q,
        k_ptr=k,
        v_ptr=v,
        starts_ptr=starts,
        num_segments=num_segments,
        num_tiles=num_tiles,
        num_heads=num_heads,
        scale_log2=(head_dim**-0.5 if scale is None else scale) * math.log2(math.e),
        out_stride=out.stride(0),
        q_stride=q.stride(0),
        k_stride=k.stride(0),
        v_stride=v.stride(0),
        **_constants(head_dim, config, q.dtype, is_one_tile),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out


def _constants(
    head_dim: int, config: _LaunchConfig, dtype: torch.dtype, is_one_tile: bool
) -> dict[str, object]:
    main, tail = _head_parts(head_dim)
    return {
        "HEAD_DIM": head_dim,
        "MAIN": main,
        "TAIL": tail,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "IS_ONE_TILE": is_one_tile,
        "DOT_DTYPE": _TYPES[dot_dtype(dtype)],
    }


_TYPES = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
}


def varlen_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, *, scale: float | None = None
) -> Tensor:
    """The same in plain torch, one segment after the other, in float64."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for start, end in zip(starts.tolist()[:-1], starts.tolist()[1:], strict=True):
        own_q, own_k, own_v = (x[start:end].double().transpose(0, 1) for x in (q, k, v))
        scores = own_q @ own_k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        out[start:end] = (scores.softmax(dim=-1) @ own_v).transpose(0, 1).to(out.dtype)
    return out


def compile_cases() -> list[CompileCase]:
    """Each head dim with long segments, the windows of Qwen2.5-VL, and float32 for parity."""
    return [
        *(_compile_case(head_dim, torch.bfloat16, 4096, (90, 100)) for head_dim in HEAD_DIMS),
        *(_compile_case(head_dim, torch.bfloat16, 4096, (80,)) for head_dim in HEAD_DIMS),
        _compile_case(80, torch.bfloat16, WINDOW, (80, 90, 100)),
        _compile_case(80, torch.float32, 4096, (80, 90, 100)),
    ]


def _compile_case(
    head_dim: int, dtype: torch.dtype, max_length: int, architectures: tuple[int, ...]
) -> CompileCase:
    config = _launch_config(head_dim, dtype, max_length, architectures[-1])
    short = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    pointers = ("out_ptr", "q_ptr", "k_ptr", "v_ptr")
    sizes = ("num_segments", "num_tiles", "num_heads")
    strides = ("out_stride", "q_stride", "k_stride", "v_stride")
    kind = "window" if max_length <= WINDOW else "long"
    return CompileCase(
        name=f"varlen {short} D{head_dim} {kind}{' elsewhere' * (90 not in architectures)}",
        kernel=_varlen_attention_kernel,
        signature={name: f"*{short}" for name in pointers}
        | {"starts_ptr": "*i32", "scale_log2": "fp32"}
        | dict.fromkeys((*sizes, *strides), "i32"),
        constants=_constants(head_dim, config, dtype, max_length <= config.block_m),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        # Towers have 16 heads or other multiples of 8, so tokens lie at multiples of 16 elements.
        aligned=(*pointers, "starts_ptr", *strides),
        architectures=architectures,
    )
