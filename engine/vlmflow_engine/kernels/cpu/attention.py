"""Attention over the paged KV cache by the C++ kernels: turn, store and attend, one call a layer.

    turned = x * cos + [-x2, x1] * sin              x = [x1, x2], the halves of a head
    out[i] = softmax(scale * q[i] k[a:b]^T) v[a:b]  where token i sees a..b of its own sequence

Sums are float32, and so are the weights of decoded tokens; in a chunk of bfloat16 they are rounded
to it, as in torch's own kernel. A sequence's output has the same bits whatever else is in the step,
however its prompt is cut, and on any number of threads.
"""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vlmflow_engine.kernels.cpu.library import CpuLibrary, cpu_library
from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache, PagedRows
from vlmflow_engine.kernels.paged_metadata import PagedMetadata

MAX_HEAD_DIM = 512  # of attention.h
_EVERYTHING = 2**30  # tokens of a window that leaves out none
_FLOAT, _BFLOAT16, _INT8 = range(3)


def can_attend(dtype: torch.dtype, head_dim: int, quant_policy: int) -> bool:
    """Whether there is a kernel for a model's dtype and head, and for what its cache holds."""
    return (
        dtype in (torch.float32, torch.bfloat16)
        and quant_policy in (0, 8)
        and head_dim % 2 == 0
        and head_dim <= MAX_HEAD_DIM
    )


class _Cache(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("keys", "values", "key_scales", "value_scales")),
        *((name, ctypes.c_int32) for name in ("format", "block_size", "num_kv_heads", "head_dim")),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        ("slot_mapping", ctypes.c_void_p),
        ("block_tables", ctypes.c_void_p),
        ("block_table_stride", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in ("table_rows", "context_lens", "query_starts", "visible_ends")
        ),
        *(
            (name, ctypes.c_int32)
            for name in ("num_tokens", "num_sequences", "num_decodes", "num_threads")
        ),
    ]


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "cos", "sin", "out")),
        *((f"{name}_{of}_stride", ctypes.c_int64) for name in "qkv" for of in ("token", "head")),
        ("angle_stride", ctypes.c_int64),
        *(
            (name, ctypes.c_int32)
            for name in ("num_heads", "is_bfloat16", "has_float_angles", "window")
        ),
        ("scale", ctypes.c_float),
    ]


def paged_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: tuple[Tensor, Tensor] | None,
    cache: LayerKVCache,
    metadata: PagedMetadata,
    *,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Return [num_tokens, num_heads, head_dim], contiguous, of q's dtype.

    q        [num_tokens, num_heads, head_dim], the last dimension contiguous, as of k and v
    k, v     [num_tokens, num_kv_heads, head_dim] of the same dtype
    cos_sin  of the step, [num_tokens, 1, head_dim] each; None: q and k are turned already
    window   tokens that each sees, itself included; None: all before it
    """
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    assert k.shape == v.shape == (num_tokens, num_kv_heads, head_dim)
    assert num_heads % num_kv_heads == 0 and q.dtype == k.dtype == v.dtype
    assert q.stride(2) == k.stride(2) == v.stride(2) == 1
    assert scale > 0 and (window is None or window > 0)
    is_bfloat16 = q.dtype == torch.bfloat16
    assert is_bfloat16 or q.dtype == torch.float32
    out = torch.empty(q.shape, dtype=q.dtype)
    angles: tuple[int | None, int | None, int, bool] = (None, None, 0, False)
    if cos_sin is not None:
        cos, sin = cos_sin
        assert cos.shape == sin.shape == (num_tokens, 1, head_dim)
        assert cos.dtype == sin.dtype and cos.stride() == sin.stride() and cos.stride(2) == 1
        assert cos.dtype in (torch.float32, q.dtype)
        angles = cos.data_ptr(), sin.data_ptr(), cos.stride(0), cos.dtype == torch.float32
    call = _Call(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        angles[0],
        angles[1],
        out.data_ptr(),
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        angles[2],
        num_heads,
        is_bfloat16,
        angles[3],
        _EVERYTHING if window is None else min(window, _EVERYTHING),
        scale,
    )
    _function()(_cache_of(cache, q.dtype, num_kv_heads, head_dim), _step_of(metadata), call)
    return out


@cache
def _function() -> Any:
    library = cpu_library()
    assert isinstance(library, CpuLibrary)  # or nobody lays out a step for it
    # The structures are read and not kept.
    return library.function(
        "vlmflow_attend", ctypes.POINTER(_Cache), ctypes.POINTER(_Step), ctypes.POINTER(_Call)
    )


def _step_of(metadata: PagedMetadata) -> _Step:
    """What all layers of a step are told; made by the first."""
    key = "cpu_step"
    if key not in metadata.shared:
        metadata.shared[key] = _make_step(metadata)
    step: _Step = metadata.shared[key]
    return step


def _make_step(metadata: PagedMetadata) -> _Step:
    tables, ends = metadata.block_tables, metadata.visible_ends
    assert metadata.slot_mapping.dtype == torch.int64 and metadata.slot_mapping.is_contiguous()
    assert tables.dtype == torch.int32
    assert tables.stride(1) == 1
    for tensor in (metadata.table_rows, metadata.context_lens, metadata.query_starts):
        assert tensor.dtype == torch.int32 and tensor.is_contiguous()
    assert ends is None or (ends.dtype == torch.int32 and ends.is_contiguous())
    return _Step(
        metadata.slot_mapping.data_ptr(),
        tables.data_ptr(),
        tables.stride(0),
        metadata.table_rows.data_ptr(),
        metadata.context_lens.data_ptr(),
        metadata.query_starts.data_ptr(),
        None if ends is None else ends.data_ptr(),
        len(metadata.slot_mapping),
        len(metadata.context_lens),
        metadata.num_decodes,
        torch.get_num_threads(),
    )


def _cache_of(cache: LayerKVCache, dtype: torch.dtype, num_kv_heads: int, head_dim: int) -> _Cache:
    rows = cache.key.rows
    assert rows.is_contiguous() and cache.value.rows.is_contiguous()
    assert rows.shape[2:] == cache.value.rows.shape[2:] == (num_kv_heads, head_dim), rows.shape
    return _Cache(
        rows.data_ptr(),
        cache.value.rows.data_ptr(),
        _scales(cache.key),
        _scales(cache.value),
        _format(cache.key, dtype),
        rows.shape[1],
        num_kv_heads,
        head_dim,
    )


def _scales(rows: PagedRows) -> int | None:
    if rows.scales is None:
        return None
    assert rows.scales.is_contiguous()
    return rows.scales.data_ptr()


def _format(rows: PagedRows, dtype: torch.dtype) -> int:
    if rows.bits:
        assert rows.bits == 8 and not rows.is_float8
        return _INT8
    assert rows.rows.dtype == dtype, (rows.rows.dtype, dtype)
    return _BFLOAT16 if dtype == torch.bfloat16 else _FLOAT
