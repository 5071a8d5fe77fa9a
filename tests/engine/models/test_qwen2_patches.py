"""Units, windows and images are neighbours in the order of patches; none is lost or doubled."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from vlmflow_engine.models.qwen2_patches import pack_patches, window_order

CPU = torch.device("cpu")
SIDES = st.integers(1, 14)


def cut(order, sizes) -> set[frozenset[int]]:
    """The windows, as sets of units."""
    return {frozenset(part.tolist()) for part in np.split(np.asarray(order), np.cumsum(sizes)[:-1])}


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(1, 6))
def test_windows_are_those_of_transformers_the_larger_ones_first(rows, columns, window):
    order, sizes = window_order(rows, columns, window)
    theirs, ends = get_vision_window_index(
        torch.tensor([[1, 2 * rows, 2 * columns]]),
        spatial_merge_size=2,
        window_size=28 * window,
        patch_size=14,
    )
    assert cut(order, sizes) == cut(theirs, np.diff(ends.numpy()) // 4)
    assert sizes.tolist() == sorted(sizes.tolist(), reverse=True)
    assert sorted(order.tolist()) == list(range(rows * columns))


@settings(deadline=None)
@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=4), st.sampled_from([None, 1, 3]))
def test_patches_stand_where_transformers_has_them(grids, window):
    packed = pack_patches(grids, 2, window, CPU)
    theirs = get_vision_position_ids(
        torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in grids]), 2
    )
    # Theirs are in the order of units; ours in that of windows.
    expected = theirs.view(-1, 4, 2)[packed.order].view(-1, 2)
    assert torch.equal(packed.positions, expected)


def test_images_and_windows_end_where_they_should():
    packed = pack_patches([(2, 3), (4, 4), (4, 4)], 2, 2, CPU)
    assert packed.images.runs == [(1, 24), (2, 64)]
    assert packed.windows.runs == [(1, 16), (1, 8), (8, 16)]
    assert packed.order.tolist()[:6] == [0, 1, 3, 4, 2, 5]


@pytest.mark.parametrize("grid", [(1, 5), (3, 2)])
def test_without_windows_the_order_is_that_of_reading(grid):
    packed = pack_patches([grid, grid], 2, None, CPU)
    size = grid[0] * grid[1]
    assert packed.order.tolist() == list(range(2 * size))
    assert packed.windows.runs == packed.images.runs == [(2, 4 * size)]
