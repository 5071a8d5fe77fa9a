"""Blocks are shared by content, never lost and never given to two."""

import pytest

from tests.engine.scheduler.sequences import make_image, make_sequence
from vlmflow_engine.scheduler.block_manager import BlockManager
from vlmflow_engine.sequence import Sequence


def fill(blocks: BlockManager, sequence: Sequence) -> int:
    """Do what the scheduler does for a whole prompt; return the cached tokens."""
    cached = blocks.match_prefix(sequence)
    assert blocks.allocate(sequence, sequence.num_tokens)
    blocks.publish(sequence, sequence.num_tokens)
    return cached


def test_allocation_is_all_or_nothing():
    blocks = BlockManager(num_blocks=3, block_size=4)
    first, second = make_sequence([1] * 8), make_sequence([2] * 8)
    assert blocks.allocate(first, 8)
    assert not blocks.allocate(second, 8)
    assert second.block_ids == []
    assert blocks.num_free_blocks == 1


def test_allocating_more_tokens_only_adds_the_missing_blocks():
    blocks = BlockManager(num_blocks=4, block_size=4)
    sequence = make_sequence([1] * 9)
    assert blocks.allocate(sequence, 3)
    held = list(sequence.block_ids)
    assert blocks.allocate(sequence, 4) and sequence.block_ids == held
    assert blocks.allocate(sequence, 9) and sequence.block_ids[:1] == held
    assert len(set(sequence.block_ids)) == 3


def test_equal_prompts_share_their_full_blocks():
    blocks = BlockManager(num_blocks=8, block_size=4)
    first, second = make_sequence(list(range(10))), make_sequence(list(range(10)))
    assert fill(blocks, first) == 0
    assert fill(blocks, second) == 8
    assert second.block_ids[:2] == first.block_ids[:2]
    assert second.block_ids[2] != first.block_ids[2]


@pytest.mark.parametrize("length, cached", [(4, 0), (5, 4), (8, 4), (9, 8)])
def test_the_last_token_is_never_taken_from_the_cache(length, cached):
    blocks = BlockManager(num_blocks=8, block_size=4)
    fill(blocks, make_sequence(list(range(12))))
    assert fill(blocks, make_sequence(list(range(length)))) == cached


def test_a_released_block_stays_cached_until_it_is_taken_again():
    blocks = BlockManager(num_blocks=4, block_size=4)
    first = make_sequence(list(range(9)))
    fill(blocks, first)
    blocks.release(first)
    assert blocks.num_free_blocks == 4
    again = make_sequence(list(range(9)))
    assert fill(blocks, again) == 8
    blocks.release(again)
    fill(blocks, make_sequence([7] * 16))
    assert blocks.match_prefix(make_sequence(list(range(9)))) == 0


def test_the_end_of_a_released_prompt_is_evicted_before_its_beginning():
    blocks = BlockManager(num_blocks=3, block_size=4)
    first = make_sequence(list(range(12)))
    fill(blocks, first)
    blocks.release(first)
    other = make_sequence([7] * 4)
    assert blocks.allocate(other, 4)
    assert blocks.match_prefix(make_sequence(list(range(12)))) == 8


def test_blocks_without_content_are_taken_before_cached_ones():
    blocks = BlockManager(num_blocks=3, block_size=4)
    cached, plain = make_sequence(list(range(5))), make_sequence([9] * 3)
    fill(blocks, cached)
    blocks.release(cached)  # one named block, one without content
    assert blocks.allocate(plain, 3)
    assert blocks.match_prefix(make_sequence(list(range(5)))) == 4


def test_the_same_placeholders_with_another_image_are_not_shared():
    blocks = BlockManager(num_blocks=16, block_size=4)
    tokens = [1, *[0] * 7, 2, 3]
    fill(blocks, make_sequence(tokens, [make_image("cat", 1, 7)]))
    assert fill(blocks, make_sequence(tokens, [make_image("dog", 1, 7)])) == 0
    assert fill(blocks, make_sequence(tokens, [make_image("cat", 1, 7)])) == 8


def test_the_same_image_at_another_offset_is_not_shared():
    # Both blocks hold placeholders only, but of other rows of the image.
    blocks = BlockManager(num_blocks=16, block_size=4)
    fill(blocks, make_sequence([0] * 9, [make_image("cat", 0, 9)]))
    shifted = make_sequence([0] * 9, [make_image("cat", 0, 4), make_image("cat", 4, 5)])
    assert blocks.match_prefix(shifted) == 4


def test_a_prompt_under_another_adapter_is_not_shared():
    digests = {"red": b"r" * 32, "blue": b"b" * 32, "red again": b"r" * 32}
    blocks = BlockManager(num_blocks=32, block_size=4, adapter_digests=digests)
    tokens = list(range(10))
    names = (None, "red", "blue", None, "red", "blue", "red again")
    cached = [fill(blocks, make_sequence(tokens, adapter_name=name)) for name in names]
    assert cached == [0, 0, 0, 8, 8, 8, 8]  # what counts is the content, not the name


def test_an_adapter_counts_in_every_block_of_a_chain():
    blocks = BlockManager(num_blocks=32, block_size=4, adapter_digests={"red": b"r" * 32})
    with_adapter, without = make_sequence([1] * 12, adapter_name="red"), make_sequence([1] * 12)
    for sequence in (with_adapter, without):
        fill(blocks, sequence)
    assert not set(with_adapter.block_hashes) & set(without.block_hashes)
    assert len(with_adapter.block_hashes) == 3


def test_a_cached_block_depends_on_all_that_came_before_it():
    blocks = BlockManager(num_blocks=16, block_size=4)
    fill(blocks, make_sequence([1, 1, 1, 1, 5, 5, 5, 5, 0]))
    assert blocks.match_prefix(make_sequence([2, 2, 2, 2, 5, 5, 5, 5, 0])) == 0


def test_generated_tokens_are_shared_too_once_their_block_is_full():
    blocks = BlockManager(num_blocks=8, block_size=4)
    first = make_sequence([1, 2, 3])
    fill(blocks, first)
    first.append(4)
    blocks.publish(first, 4)
    assert blocks.match_prefix(make_sequence([1, 2, 3, 4, 5])) == 4


def test_nothing_is_shared_when_prefix_caching_is_off():
    blocks = BlockManager(num_blocks=8, block_size=4, enable_prefix_caching=False)
    fill(blocks, make_sequence(list(range(10))))
    assert fill(blocks, make_sequence(list(range(10)))) == 0


def test_forgetting_leaves_nothing_to_match_and_nothing_lost():
    blocks = BlockManager(num_blocks=4, block_size=4)
    sequence = make_sequence(list(range(9)))
    fill(blocks, sequence)
    blocks.forget_cached()
    assert blocks.match_prefix(make_sequence(list(range(9)))) == 0
    blocks.release(sequence)
    assert blocks.num_free_blocks == 4
