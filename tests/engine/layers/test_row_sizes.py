"""oneDNN sees few numbers of rows, and nobody sees the rows that fill them up."""

import pytest
import torch

from vlmflow_engine.layers.int8_weight import OneDnnInt8Weight
from vlmflow_engine.layers.packed_weight import OneDnnWeight
from vlmflow_engine.layers.row_sizes import next_size, pad_rows


def test_sizes_are_few_and_at_most_a_quarter_too_large_beyond_a_few_rows():
    sizes = {next_size(rows) for rows in range(1, 2049)}
    assert len(sizes) == 31
    assert sizes >= {1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 2048}
    assert all(rows <= next_size(rows) <= max(1.25 * rows, rows + 7) for rows in range(2049))
    assert all(next_size(size) == size for size in sizes)


def test_added_rows_are_zeros_and_what_needs_none_is_not_copied():
    x = torch.full((9, 3), torch.nan)
    padded = pad_rows(x)
    assert padded.shape == (16, 3) and padded[:9].isnan().all() and (padded[9:] == 0).all()
    whole = torch.ones(16, 3)
    assert pad_rows(whole) is whole


@pytest.mark.parametrize("kind", [OneDnnWeight, OneDnnInt8Weight])
def test_a_row_has_the_same_bits_in_any_number_of_rows(kind):
    torch.manual_seed(0)
    layer, x, bias = kind(torch.randn(40, 32)), torch.randn(3, 67, 32), torch.randn(40)
    expected = layer(x, bias)
    assert expected.shape == (3, 67, 40)
    for rows in (0, 1, 3, 9, 33):
        assert torch.equal(layer(x[0, :rows], bias), expected[0, :rows])
