"""The grid of an image is the one that InternVL's authors and transformers cut it by."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from vlmflow_engine.inputs.tile_grid import choose_grid

SIZES = st.integers(1, 5000)
# Tiles of 448 pixels: the size, the most tiles, columns and rows.
GOLDEN = [
    ((448, 448), 12, (1, 1)),
    ((640, 480), 12, (4, 3)),
    ((480, 640), 12, (3, 4)),
    ((800, 800), 12, (2, 2)),
    ((1000, 1000), 12, (3, 3)),
    ((1920, 1080), 12, (4, 2)),
    ((1080, 1920), 12, (2, 4)),
    ((3000, 500), 12, (6, 1)),
    ((500, 3000), 12, (1, 6)),
    ((896, 448), 12, (2, 1)),
    ((1344, 896), 12, (3, 2)),
    ((100, 100), 12, (1, 1)),
    ((640, 480), 6, (3, 2)),
    ((1000, 1000), 6, (2, 2)),
    ((1920, 1080), 6, (2, 1)),
    ((1000, 1), 12, (12, 1)),
    ((1, 1000), 12, (1, 12)),
    ((1920, 1080), 1, (1, 1)),
]


@pytest.mark.parametrize(("size", "max_tiles", "grid"), GOLDEN)
def test_grids_are_those_of_the_table(size, max_tiles, grid):
    assert choose_grid(size, 448, min_tiles=1, max_tiles=max_tiles) == grid


@settings(max_examples=400)
@given(SIZES, SIZES, st.integers(1, 40), st.integers(1, 40), st.sampled_from([28, 56, 448]))
def test_grids_are_those_of_transformers(width, height, low, high, side):
    expected = get_optimal_tiled_canvas((height, width), (side, side), low, high)
    assert choose_grid((width, height), side, min_tiles=low, max_tiles=high) == expected
