"""Sets of ordinals are what a Python set would be, at a bit each."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmflow.job.ordinals import OrdinalSet, to_ranges

SIZE = 200
ordinals = st.sets(st.integers(0, SIZE - 1))


def set_of(members: set[int]) -> OrdinalSet:
    result = OrdinalSet(SIZE)
    for ordinal in members:
        result.add(ordinal)
    return result


@given(members=ordinals, more=ordinals)
def test_holds_what_was_added_in_rising_order_and_counts_it_once(
    members: set[int], more: set[int]
) -> None:
    result = set_of(members)
    for ordinal in more:
        result.add(ordinal)
    assert list(result) == sorted(members | more)
    assert len(result) == len(members | more)
    assert {ordinal for ordinal in range(SIZE) if ordinal in result} == members | more


@given(members=ordinals)
def test_ranges_are_read_back_as_the_same_set(members: set[int]) -> None:
    ranges = to_ranges(sorted(members))
    result = OrdinalSet(SIZE)
    result.add_ranges(ranges)
    assert list(result) == sorted(members)
    # No two of them could be one: between a range and the next there is a gap.
    assert all(last + 1 < first for (_, last), (first, _) in zip(ranges, ranges[1:], strict=False))


@given(members=ordinals, more=ordinals)
def test_copy_goes_its_own_way(members: set[int], more: set[int]) -> None:
    first = set_of(members)
    second = first.copy()
    for ordinal in more:
        second.add(ordinal)
    assert (list(first), len(first)) == (sorted(members), len(members))
    assert (list(second), len(second)) == (sorted(members | more), len(members | more))


@pytest.mark.parametrize("ordinal", [-1, SIZE, SIZE + 8])
def test_what_is_outside_cannot_be_added_and_is_not_in_it(ordinal: int) -> None:
    result = set_of({SIZE - 1})
    with pytest.raises(ValueError, match=f"ordinal {ordinal} is outside 0..{SIZE - 1}$"):
        result.add(ordinal)
    with pytest.raises(ValueError, match="outside"):
        result.add_ranges([[ordinal, ordinal]])
    assert ordinal not in result


def test_million_costs_an_eighth_of_a_megabyte() -> None:
    assert sys.getsizeof(OrdinalSet(1_000_000)._bits) < 126_000


def test_empty_set_of_nothing_is_empty() -> None:
    assert (list(OrdinalSet(0)), len(OrdinalSet(0)), to_ranges([])) == ([], 0, [])
