"""With which tiles, warps and stages prefill attention is launched."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from vlmflow_engine.kernels.dispatch import dot_dtype
from vlmflow_engine.kernels.kv_tile import INT4, ROWS, num_lanes

_LONG = 128  # tokens of a chunk from which on a query head has tiles of its own


class LaunchConfig(NamedTuple):
    """Rows of a tile are tokens x heads."""

    tokens: int
    heads: int  # a power of two, 1 or at least the query heads of a group
    num_warps: int
    num_stages: int


def launch_config(
    dtype: torch.dtype, group: int, lanes: int, format: str, max_chunk_len: int, is_invariant: bool
) -> LaunchConfig:
    """Choose by what fits: no GPU has measured these yet (benchmarks/kernels/paged_prefill.py).

    Four warps are one wgmma of 64 rows. Three stages of 64-token pages of 128 lanes are 96 KB.

    max_chunk_len  of the whole step, so not looked at where the answer must not depend on it
    """
    if dtype == torch.float32:
        # For parity, not for speed: exact float32 knows no tensor cores, and fills registers.
        return LaunchConfig(tokens=16, heads=1, num_warps=8, num_stages=1)
    num_stages = 3 if lanes <= 128 and format != INT4 else 2
    if is_invariant or max_chunk_len >= _LONG:
        return LaunchConfig(tokens=128, heads=1, num_warps=8, num_stages=num_stages)
    heads = triton.next_power_of_2(group)
    # Decoded pages leave a thread of four warps too few registers for a wide tile.
    rows, num_warps = (64, 4) if format == ROWS and lanes <= 128 else (128, 8)
    return LaunchConfig(max(1, rows // heads), heads, num_warps, num_stages)


def constants(
    dtype: torch.dtype,
    group: int,
    head_dim: int,
    block_size: int,
    format: str,
    config: LaunchConfig,
) -> dict[str, object]:
    """Return the kernel's constants, but for what a layer and a step want."""
    return {
        "GROUP": group,
        "TOKENS": config.tokens,
        "HEADS": config.heads,
        "HEAD_DIM": head_dim,
        "LANES": num_lanes(head_dim),
        "PAGE": block_size,
        "FORMAT": format,
        "DOT_DTYPE": getattr(tl, str(dot_dtype(dtype)).removeprefix("torch.")),
    }
