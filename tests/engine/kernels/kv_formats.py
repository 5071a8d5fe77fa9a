"""Pages of every format of the KV cache, and pages spoiled."""

import math

import torch
from torch import Tensor

from vlmflow_engine.kernels.kv_quant import dequantise, quantise
from vlmflow_engine.kernels.layer_kv_cache import PagedRows

FORMATS = ("rows", "int8", "int4", "float8")


def paged_rows(x: Tensor, format: str) -> PagedRows:
    """x [num_blocks, block_size, num_kv_heads, head_dim], stored as `format` says."""
    if format == "rows":
        return PagedRows(x.clone())
    if format == "float8":
        scales = (x.abs().amax(-1, keepdim=True) / 448).to(torch.bfloat16)
        return PagedRows((x / scales).to(torch.float8_e4m3fn), 8, scales)
    bits = int(format.removeprefix("int"))
    codes, scales = quantise(x, bits)
    return PagedRows(codes, bits, scales)


def read_back(rows: PagedRows) -> Tensor:
    """What is stored, float32 [num_blocks, block_size, num_kv_heads, head_dim]."""
    if rows.scales is None:
        return rows.rows.to(torch.float32, copy=True)
    if rows.rows.dtype == torch.float8_e4m3fn:
        return rows.rows.float() * rows.scales.float()
    return dequantise(rows.rows, rows.scales, rows.bits, torch.float32)


def poison_slots(rows: PagedRows, slots: Tensor) -> None:
    """Let slots hold NaN: no weight makes anything else of it."""
    if rows.scales is not None:
        rows.scales.flatten(0, 1)[slots] = math.nan
    stored = rows.rows.flatten(0, 1)
    if rows.bits:
        stored.view(torch.uint8)[slots] = 0xFF  # of float8, too, a NaN
    else:
        stored[slots] = math.nan
