"""How rows that are summed up are cut into programs; shared by the norms.

A program takes whole rows, so a row's sum is the same whatever other rows there are.
"""

from typing import NamedTuple

_ELEMENTS = 1024  # of a program with short rows, such as heads: eight a thread of four warps
_ELEMENTS_PER_WARP = 512
_MAX_WARPS = 16


class RowTile(NamedTuple):
    rows: int
    columns: int  # a power of two, at least as many as a row has
    num_warps: int


def row_tile(size: int) -> RowTile:
    """Choose by the row's length alone."""
    columns = 1 << (size - 1).bit_length()
    rows = max(1, _ELEMENTS // columns)
    return RowTile(rows, columns, min(_MAX_WARPS, max(2, rows * columns // _ELEMENTS_PER_WARP)))
