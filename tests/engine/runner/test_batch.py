"""A step's plan as tensors: tokens, positions, slots, sampled rows and image rows."""

from collections.abc import Sequence as AbstractSequence

import numpy as np
import pytest
import torch

from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.plan import ScheduledSequence, StepPlan
from vlmflow_engine.request import ImageInput, Request
from vlmflow_engine.runner.batch import ModelInput, build_model_input
from vlmflow_engine.runner.sequence_table import SequenceTable
from vlmflow_engine.sequence import Sequence

CPU = torch.device("cpu")
BLOCK_SIZE = 4
PLACEHOLDER = 32_000  # beyond any tiny vocabulary
NO_PIXELS = np.zeros((0, 0, 3), np.uint8)


def make_sequence(
    num_tokens: int,
    *,
    image_offsets: AbstractSequence[int] = (),
    image_rows: int = 5,
    hashes: AbstractSequence[bytes] = (b"a", b"b", b"c"),
    outputs: AbstractSequence[int] = (),
    block_ids: AbstractSequence[int] = range(100),
    adapter_name: str | None = None,
) -> Sequence:
    """A sequence whose prompt token at position p is 100 + p, but for the placeholders."""
    token_ids = [100 + position for position in range(num_tokens)]
    images = []
    for content_hash, offset in zip(hashes, image_offsets, strict=False):
        token_ids[offset : offset + image_rows] = [PLACEHOLDER] * image_rows
        images.append(ImageInput(content_hash, NO_PIXELS, offset, image_rows))
    request = Request(0, tuple(token_ids), tuple(images), GenerationConfig(), 0, adapter_name)
    sequence = Sequence(request, max_num_tokens=1000, stop_token_ids=frozenset())
    for token_id in outputs:
        sequence.append(token_id)
    sequence.block_ids = list(block_ids)
    return sequence


def build(*scheduled: tuple[Sequence, int, int]) -> ModelInput:
    """Plan tokens [start, end) of each sequence, and a new one where they end at the last."""
    items = [
        ScheduledSequence(sequence, start, end, is_sampled=end == sequence.num_tokens)
        for sequence, start, end in scheduled
    ]
    table = SequenceTable(num_rows=8, blocks_per_row=128, device=CPU)
    table.admit([item.sequence for item in items], num_position_axes=1)
    return build_model_input(StepPlan(scheduled=items), table, block_size=BLOCK_SIZE, device=CPU)


def sampled_rows(step: ModelInput) -> list[int]:
    """Rows of the step whose next token is drawn."""
    rows = step.hidden_rows if step.sampled is None else step.hidden_rows[step.sampled]
    return rows.tolist()


def image_places(step: ModelInput) -> dict[int, tuple[bytes, int]]:
    """Of each row of the step that an image fills: which image, and which of its rows."""
    places = {}
    for item in step.images:
        for index in range(item.end - item.start):
            assert item.row + index not in places
            places[item.row + index] = (item.content_hash, item.start + index)
    return places


@pytest.mark.parametrize("image_offsets", [(1, 9), (0, 5), (3, 14), ()], ids=str)
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 18, 19])
def test_however_a_prompt_is_cut_its_chunks_make_the_whole(chunk, image_offsets):
    sequence = make_sequence(19, image_offsets=image_offsets)
    token_ids, positions, slots, places, sampled = [], [], [], {}, []
    for start in range(0, 19, chunk):
        step = build((sequence, start, min(start + chunk, 19)))
        token_ids += step.token_ids.tolist()
        positions += step.positions.tolist()
        slots += step.attention.slot_mapping.tolist()
        places |= {start + row: place for row, place in image_places(step).items()}
        sampled += [start + row for row in sampled_rows(step)]
    expected_places = {
        offset + row: (content_hash, row)
        for content_hash, offset in zip((b"a", b"b"), image_offsets, strict=False)
        for row in range(5)
    }
    assert places == expected_places
    assert token_ids == [0 if p in expected_places else 100 + p for p in range(19)]
    assert positions == slots == list(range(19))
    assert sampled == [18]


def test_sequences_lie_one_after_the_other():
    decoding = make_sequence(6, outputs=(7, 8), block_ids=(9, 4))
    first_chunk = make_sequence(10, image_offsets=(1,), block_ids=(3, 8, 2))
    last_chunk = make_sequence(12, image_offsets=(4,), hashes=(b"z",), block_ids=(5, 1, 6))
    step = build((decoding, 7, 8), (first_chunk, 0, 3), (last_chunk, 7, 12))
    assert step.token_ids.tolist() == [8, 100, 0, 0, 0, 0, 109, 110, 111]
    assert step.positions.tolist() == [7, 0, 1, 2, 7, 8, 9, 10, 11]
    assert step.attention.slot_mapping.tolist() == [19, 12, 13, 14, 7, 24, 25, 26, 27]
    assert image_places(step) == {2: (b"a", 0), 3: (b"a", 1), 4: (b"z", 3), 5: (b"z", 4)}
    assert sampled_rows(step) == [0, 8]


def test_one_image_twice_in_a_prompt_fills_both_places():
    sequence = make_sequence(14, image_offsets=(0, 8), hashes=(b"a", b"a"))
    places = image_places(build((sequence, 0, 14)))
    assert places == {row + start: (b"a", row) for row in range(5) for start in (0, 8)}


def test_a_preempted_sequence_computes_its_answer_so_far_with_its_prompt():
    sequence = make_sequence(8, image_offsets=(1,), outputs=(7, 8, 9))
    step = build((sequence, 0, 11))
    assert step.token_ids.tolist() == [100, 0, 0, 0, 0, 0, 106, 107, 7, 8, 9]
    assert sampled_rows(step) == [10]


def test_a_placeholder_that_was_generated_is_a_token_like_any_other():
    sequence = make_sequence(4, outputs=(3,))
    step = build((sequence, 4, 5))
    assert step.token_ids.tolist() == [3]
    assert step.images == []


def test_the_sequences_own_tokens_are_left_as_they_were():
    sequence = make_sequence(8, image_offsets=(1,))
    before = list(sequence.token_ids)
    build((sequence, 0, 8))
    assert sequence.token_ids == before


def adapter_rows(step: ModelInput) -> dict[str, list[int] | None]:
    assert step.adapters is not None
    return {item.name: None if item.rows is None else item.rows.tolist() for item in step.adapters}


def test_rows_are_grouped_by_adapter_whatever_the_order_of_sequences():
    decoding = make_sequence(6, outputs=(7,), adapter_name="red")
    plain = make_sequence(6, outputs=(7,))
    chunk, other = make_sequence(9, adapter_name="blue"), make_sequence(9, adapter_name="red")
    step = build((decoding, 6, 7), (plain, 6, 7), (chunk, 2, 5), (other, 7, 9))
    assert adapter_rows(step) == {"red": [0, 5, 6], "blue": [2, 3, 4]}


def test_an_adapter_of_all_rows_lists_none_of_them():
    step = build(*((make_sequence(6, adapter_name="red"), 2, 4) for _ in range(3)))
    assert adapter_rows(step) == {"red": None}


def test_a_step_without_adapters_says_so():
    assert build((make_sequence(6), 0, 6)).adapters is None
