"""Turn queries and keys by their positions and store keys and values in the paged cache, at once.

    turned = x * cos + [-x2, x1] * sin      x = [x1, x2], the halves of a head
    cache[slot of the token] = the turned key, the value

Products and sum are float32, rounded to the dtype once; what is quantised is the rounded row, as
kernels/kv_quant.py and kernels/kv_float8.py do it, to the bit (kernels/kv_rounding.py).

A program takes some heads of one token: of the queries, or of keys and values. It holds a head as
two halves, which is how rotary pairs elements, and how 4 bits are packed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmflow_engine.kernels.compile_case import CompileCase
from vlmflow_engine.kernels.kv_rounding import divided, float8, rounded_to_bfloat16, whole
from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache, PagedRows

_ELEMENTS_PER_WARP = 256  # of a half: eight a thread, 16 bytes of bfloat16
_MAX_WARPS = 4


def _launch_config(num_kv_heads: int, head_dim: int) -> tuple[int, int, int]:
    """Heads of a program, the padded half of a head, and warps."""
    half = triton.next_power_of_2(head_dim // 2)
    # No more than there are keys of a token: a decoding step has few tokens for many processors.
    heads = min(
        triton.next_power_of_2(num_kv_heads), max(1, _MAX_WARPS * _ELEMENTS_PER_WARP // half)
    )
    return heads, half, max(1, heads * half // _ELEMENTS_PER_WARP)


@triton.jit
def _turn(ptr, cos_ptr, sin_ptr, dims, mask, HEAD_DIM: tl.constexpr, ROTATES: tl.constexpr):
    """Load heads [HEADS, HALF] twice, their halves, and turn them; in their own dtype."""
    HALF_DIM: tl.constexpr = HEAD_DIM // 2
    first = tl.load(ptr, mask=mask, other=0.0)
    second = tl.load(ptr + HALF_DIM, mask=mask, other=0.0)
    if ROTATES:
        within = dims < HALF_DIM
        # Angles of both halves [1, HALF].
        cos1 = tl.load(cos_ptr + dims, mask=within, other=0.0).to(tl.float32)[None, :]
        sin1 = tl.load(sin_ptr + dims, mask=within, other=0.0).to(tl.float32)[None, :]
        cos2 = tl.load(cos_ptr + HALF_DIM + dims, mask=within, other=0.0).to(tl.float32)[None, :]
        sin2 = tl.load(sin_ptr + HALF_DIM + dims, mask=within, other=0.0).to(tl.float32)[None, :]
        x1 = first.to(tl.float32)
        x2 = second.to(tl.float32)
        first = (x1 * cos1 + (-x2) * sin1).to(first.dtype)
        second = (x2 * cos2 + x1 * sin2).to(second.dtype)
    return first, second


@triton.jit
def _store_rows(
    first, second, rows_ptr, scales_ptr, slot, heads, dims, mask, num_kv_heads,
    HEAD_DIM: tl.constexpr, FORMAT: tl.constexpr,
):  # fmt: skip
    """Write heads, given as halves [HEADS, HALF], into a slot."""
    HALF_DIM: tl.constexpr = HEAD_DIM // 2
    WIDTH: tl.constexpr = HALF_DIM if FORMAT == "int4" else HEAD_DIM
    row = slot * num_kv_heads + heads
    ptr = rows_ptr + row[:, None] * WIDTH + dims[None, :]
    if FORMAT == "rows":
        tl.store(ptr, first, mask=mask)
        tl.store(ptr + HALF_DIM, second, mask=mask)
    else:
        x1 = first.to(tl.float32)
        x2 = second.to(tl.float32)
        # The maximum of tl knows no NaN.
        is_nan = tl.max(((x1 != x1) | (x2 != x2)).to(tl.int32), axis=1) > 0
        nan = float("nan")
        is_stored = (heads < num_kv_heads) & (slot >= 0)
        if FORMAT == "float8":
            size = tl.max(tl.maximum(tl.abs(x1), tl.abs(x2)), axis=1)
            size = tl.where(is_nan | (size == float("inf")), nan, size)
            step = tl.div_rn(size, tl.full(size.shape, 448.0, tl.float32))
            scale_bits = rounded_to_bfloat16(step, True)
            scale = scale_bits.to(tl.float32, bitcast=True)[:, None]
            tl.store(scales_ptr + row, (scale_bits >> 16).to(tl.int16), mask=is_stored)
            tl.store(ptr, float8(divided(x1, scale)).to(tl.uint8), mask=mask)
            tl.store(ptr + HALF_DIM, float8(divided(x2, scale)).to(tl.uint8), mask=mask)
        else:
            LEVELS: tl.constexpr = 15.0 if FORMAT == "int4" else 255.0
            within = dims[None, :] < HALF_DIM
            infinity = float("inf")
            low = tl.min(tl.where(within, tl.minimum(x1, x2), infinity), axis=1)
            high = tl.max(tl.where(within, tl.maximum(x1, x2), -infinity), axis=1)
            low = tl.where(is_nan, nan, low)
            high = tl.where(is_nan, nan, high)
            minimum_bits = rounded_to_bfloat16(low, False)
            minimum = minimum_bits.to(tl.float32, bitcast=True)
            step = tl.div_rn(high - minimum, tl.full(high.shape, LEVELS, tl.float32))
            scale_bits = rounded_to_bfloat16(step, True)
            scale = scale_bits.to(tl.float32, bitcast=True)[:, None]
            # As one number: the scale, which is not negative, lies lower.
            pair = ((scale_bits >> 16) & 0xFFFF) | (minimum_bits & -65536)
            tl.store(scales_ptr + row, pair, mask=is_stored)
            code1 = whole(divided(x1 - minimum[:, None], scale))
            code2 = whole(divided(x2 - minimum[:, None], scale))
            if FORMAT == "int4":
                tl.store(ptr, (code1 & 15 | (code2 & 15) << 4).to(tl.uint8), mask=mask)
            else:
                tl.store(ptr, code1.to(tl.uint8), mask=mask)
                tl.store(ptr + HALF_DIM, code2.to(tl.uint8), mask=mask)


@triton.jit
def _store_kv_kernel(
    # pointers
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, turned_ptr, slot_mapping_ptr,
    key_ptr, key_scales_ptr, value_ptr, value_scales_ptr,
    # sizes
    num_heads, num_kv_heads, num_query_tiles,
    # strides
    q_token_stride, q_head_stride, k_token_stride, k_head_stride, v_token_stride, v_head_stride,
    cos_stride, sin_stride,
    # constants
    HEAD_DIM: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, FORMAT: tl.constexpr,
    ROTATES: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    cos_ptr += token * cos_stride
    sin_ptr += token * sin_stride
    dims = tl.arange(0, HALF)
    within = dims[None, :] < HEAD_DIM // 2
    if tile < num_query_tiles:
        heads = tile * HEADS + tl.arange(0, HEADS)
        mask = within & (heads < num_heads)[:, None]
        ptr = q_ptr + token * q_token_stride + heads[:, None] * q_head_stride + dims[None, :]
        first, second = _turn(ptr, cos_ptr, sin_ptr, dims, mask, HEAD_DIM, ROTATES)
        ptr = turned_ptr + (token * num_heads + heads[:, None]) * HEAD_DIM + dims[None, :]
        tl.store(ptr, first, mask=mask)
        tl.store(ptr + HEAD_DIM // 2, second, mask=mask)
    else:
        slot = tl.load(slot_mapping_ptr + token)
        heads = (tile - num_query_tiles) * HEADS + tl.arange(0, HEADS)
        mask = within & (heads < num_kv_heads)[:, None] & (slot >= 0)
        ptr = k_ptr + token * k_token_stride + heads[:, None] * k_head_stride + dims[None, :]
        first, second = _turn(ptr, cos_ptr, sin_ptr, dims, mask, HEAD_DIM, ROTATES)
        _store_rows(
            first, second, key_ptr, key_scales_ptr, slot, heads, dims, mask, num_kv_heads,
            HEAD_DIM, FORMAT,
        )  # fmt: skip
        ptr = v_ptr + token * v_token_stride + heads[:, None] * v_head_stride + dims[None, :]
        first, second = _turn(ptr, cos_ptr, sin_ptr, dims, mask, HEAD_DIM, False)
        _store_rows(
            first, second, value_ptr, value_scales_ptr, slot, heads, dims, mask, num_kv_heads,
            HEAD_DIM, FORMAT,
        )  # fmt: skip


def store_kv(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    cache: LayerKVCache,
    slot_mapping: Tensor,
) -> Tensor:
    """Return the turned queries, contiguous; store turned keys, and values.

    q             [num_tokens, num_heads, head_dim], last dimension contiguous, as of k and v
    k, v          [num_tokens, num_kv_heads, head_dim] of the same dtype
    cos, sin      [num_tokens, 1, head_dim] of any dtype, see `RotaryEmbedding.at`; None: nothing
                  turns
    slot_mapping  [num_tokens] int64, all different but -1: such a token is stored nowhere
    """
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    assert k.shape == v.shape == (num_tokens, num_kv_heads, head_dim)
    assert head_dim % 2 == 0 and q.dtype == k.dtype == v.dtype
    assert q.stride(2) == k.stride(2) == v.stride(2) == 1
    assert slot_mapping.shape == (num_tokens,) and slot_mapping.dtype == torch.int64
    assert cache.key.rows.shape[2] == num_kv_heads
    heads, half, num_warps = _launch_config(num_kv_heads, head_dim)
    if cos is not None and sin is not None:
        assert cos.shape == sin.shape == (num_tokens, 1, head_dim)
        assert cos.stride(2) == sin.stride(2) == 1
        turned = torch.empty_like(q, memory_format=torch.contiguous_format)
        num_query_tiles = triton.cdiv(num_heads, heads)
    else:
        turned = q.contiguous()
        num_query_tiles = 0
        cos = sin = q  # never read
    if num_tokens == 0:
        return turned
    key_rows, key_scales = _pointers(cache.key)
    value_rows, value_scales = _pointers(cache.value)
    _store_kv_kernel[(num_tokens, num_query_tiles + triton.cdiv(num_kv_heads, heads))](
        q_ptr=q,
        k_ptr=k,
        v_ptr=v,
        cos_ptr=cos,
        sin_ptr=sin,
        turned_ptr=turned,
        slot_mapping_ptr=slot_mapping,
        key_ptr=key_rows,
        key_scales_ptr=key_scales,
        value_ptr=value_rows,
        value_scales_ptr=value_scales,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        num_query_tiles=num_query_tiles,
        q_token_stride=q.stride(0),
        q_head_stride=q.stride(1),
        k_token_stride=k.stride(0),
        k_head_stride=k.stride(1),
        v_token_stride=v.stride(0),
        v_head_stride=v.stride(1),
        cos_stride=cos.stride(0),
        sin_stride=sin.stride(0),
        HEAD_DIM=head_dim,
        HALF=half,
        HEADS=heads,
        FORMAT=_format(cache.key),
        ROTATES=num_query_tiles > 0,
        num_warps=num_warps,
        num_stages=1,
    )
    return turned


def _format(rows: PagedRows) -> str:
    if rows.scales is None:
        return "rows"
    if rows.is_float8:
        return "float8"
    return {8: "int8", 4: "int4"}[rows.bits]


def _pointers(rows: PagedRows) -> tuple[Tensor, Tensor]:
    """What the kernel writes to: codes as bytes, a row's scales as one number."""
    assert rows.rows.is_contiguous()
    if rows.scales is None:
        return rows.rows, rows.rows  # no scales are written
    assert rows.scales.is_contiguous()
    number = torch.int16 if rows.is_float8 else torch.int32
    return rows.rows.view(torch.uint8), rows.scales.view(number)


def store_kv_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    cache: LayerKVCache,
    slot_mapping: Tensor,
) -> Tensor:
    """The same in plain torch."""
    if cos is not None and sin is not None:
        q, k = _turned(q, cos, sin), _turned(k, cos, sin)
    is_stored = slot_mapping >= 0
    cache.store(k[is_stored], v[is_stored], slot_mapping[is_stored])
    return q.contiguous()


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    crossed = torch.cat((-second, first), dim=-1)
    return (x.float() * cos.float() + crossed * sin.float()).to(x.dtype)


def compile_cases() -> list[CompileCase]:
    """Rows of 128 in every format, and those of other models as they are."""
    return [
        _compile_case(kv_format, dtype, num_kv_heads, head_dim)
        for kv_format, dtype, num_kv_heads, head_dim in (
            ("rows", "bf16", 8, 128),
            ("int8", "bf16", 8, 128),
            ("int4", "bf16", 8, 128),
            ("float8", "bf16", 8, 128),
            ("rows", "bf16", 32, 128),
            ("rows", "bf16", 2, 64),
            ("rows", "bf16", 32, 96),
            ("rows", "fp32", 4, 128),
        )
    ]


def _compile_case(kv_format: str, dtype: str, num_kv_heads: int, head_dim: int) -> CompileCase:
    heads, half, num_warps = _launch_config(num_kv_heads, head_dim)
    rows, scales = {
        "rows": (f"*{dtype}", f"*{dtype}"),
        "int8": ("*u8", "*i32"),
        "int4": ("*u8", "*i32"),
        "float8": ("*u8", "*i16"),
    }[kv_format]
    pointers = {f"{name}_ptr": f"*{dtype}" for name in ("q", "k", "v", "cos", "sin", "turned")}
    pointers |= {"slot_mapping_ptr": "*i64", "key_ptr": rows, "key_scales_ptr": scales}
    pointers |= {"value_ptr": rows, "value_scales_ptr": scales}
    strides = {f"{name}_{of}_stride": "i32" for name in "qkv" for of in ("token", "head")}
    strides |= {"cos_stride": "i32", "sin_stride": "i32"}
    return CompileCase(
        name=f"store_kv {kv_format} {dtype} {num_kv_heads} heads D{head_dim}",
        kernel=_store_kv_kernel,
        signature={
            **pointers,
            "num_heads": "i32",
            "num_kv_heads": "i32",
            "num_query_tiles": "i32",
            **strides,
        },
        constants={
            "HEAD_DIM": head_dim,
            "HALF": half,
            "HEADS": heads,
            "FORMAT": kv_format,
            "ROTATES": True,
        },
        num_warps=num_warps,
        num_stages=1,
        aligned=(*pointers, *strides),
    )
