"""In which order a Qwen vision tower takes the patches of its images, and where each stands.

A unit is merge_size x merge_size patches, one after the other, so that merging them is a reshape.
Units of one window are neighbours too, and so are windows of equal size: nearly all are whole, and
those that the image's right and bottom edges cut come last.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlmflow_engine.layers.host_array import to_device
from vlmflow_engine.layers.segments import Segments

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PackedPatches:
    """How the patches of several images follow one another."""

    order: Tensor  # [units] int64: the unit, counted row by row, that stands at a place
    positions: Tensor  # [patches, 2] int64: row and column in its image
    images: Segments  # in patches
    windows: Segments


def pack_patches(
    grids: Sequence[tuple[int, int]],
    merge_size: int,
    window: int | None,
    device: torch.device,
) -> PackedPatches:
    """Lay out images one after the other.

    grids   (rows, columns) of each image in units
    window  its side in units; None: a window is an image
    """
    orders, positions, images, windows = [], [], [], []
    num_units = 0
    for rows, columns in grids:
        order, sizes = window_order(rows, columns, window or max(rows, columns))
        orders.append(order + num_units)
        positions.append(_positions(order, columns, merge_size))
        num_units += len(order)
        images.append(len(order) * merge_size**2)
        windows += [size * merge_size**2 for size in sizes.tolist()]
    return PackedPatches(
        to_device(np.concatenate(orders), device),
        to_device(np.concatenate(positions), device),
        Segments(images),
        Segments(windows),
    )


def window_order(rows: int, columns: int, window: int) -> tuple[Ints, Ints]:
    """Return the units of an image window by window, [units], and each window's number of them.

    Windows begin at the top left; larger ones come first.
    """
    row, column = np.indices((rows, columns), dtype=np.int64).reshape(2, -1)
    window_ids = row // window * -(-columns // window) + column // window
    sizes = np.bincount(window_ids)
    # By size, then by window; inside of one row by row, for the sort is stable.
    order = np.lexsort((window_ids, -sizes[window_ids]))
    return order.astype(np.int64), np.sort(sizes)[::-1]


def _positions(order: Ints, columns: int, merge_size: int) -> Ints:
    """[patches, 2]: row and column of each patch of the units in that order."""
    inside = np.indices((merge_size, merge_size), dtype=np.int64).reshape(2, -1).T
    units = np.stack((order // columns, order % columns), axis=-1)  # [units, 2]
    return (units[:, None] * merge_size + inside).reshape(-1, 2)
