"""M-RoPE's positions are transformers', in whatever pieces a prompt is computed, and behind it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.request import ImageInput, Request
from vlmflow_engine.runner.positions import positions_of
from vlmflow_engine.sequence import Sequence

SIDES = st.integers(1, 6)
# Text before each image, and the image's grid of rows; then the text behind the last.
PROMPTS = st.tuples(
    st.lists(st.tuples(st.integers(1, 5), SIDES, SIDES), max_size=4), st.integers(1, 6)
)
IMAGE, TEXT, PIXELS = 9, 1, np.zeros((1, 1, 3), np.uint8)


@pytest.fixture(scope="module")
def theirs() -> Qwen2VLModel:
    """Transformers' model, with no weights: only its arithmetic of positions is asked."""
    with torch.device("meta"):
        vision = {"depth": 1, "embed_dim": 16, "num_heads": 1, "hidden_size": 16}
        return Qwen2VLModel(
            Qwen2VLConfig(
                text_config={
                    "hidden_size": 16,
                    "intermediate_size": 16,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 1,
                    "num_key_value_heads": 1,
                    "vocab_size": 16,
                },
                vision_config=vision,
            )
        )


def make_sequence(prompt) -> Sequence:
    parts, end = prompt
    token_ids, images = [], []
    for text, rows, columns in parts:
        token_ids += [TEXT] * text
        images.append(
            ImageInput(
                b"%d" % len(images), PIXELS, len(token_ids), rows * columns, (1, rows, columns)
            )
        )
        token_ids += [IMAGE] * (rows * columns)
    request = Request(
        request_id=0,
        prompt_token_ids=(*token_ids, *[TEXT] * end),
        images=tuple(images),
        generation=GenerationConfig(),
        seed=0,
    )
    return Sequence(request, max_num_tokens=10_000, stop_token_ids=frozenset())


def expected_positions(theirs: Qwen2VLModel, sequence: Sequence, num_decoded: int) -> np.ndarray:
    ids = torch.tensor([sequence.request.prompt_token_ids])
    grids = [
        [1, 2 * image.layout[1], 2 * image.layout[2]] for image in sequence.request.images
    ] or None
    positions, delta = theirs.get_rope_index(
        ids,
        (ids == IMAGE).int(),
        image_grid_thw=None if grids is None else torch.tensor(grids),
    )
    # A token that is generated stands at its number plus what the images have saved.
    decoded = torch.arange(ids.shape[1], ids.shape[1] + num_decoded) + delta[0, 0]
    return torch.cat((positions[:, 0], decoded.expand(3, -1)), dim=1).numpy()


@settings(deadline=None, max_examples=40)
@given(prompt=PROMPTS)
def test_every_piece_of_a_sequence_stands_where_transformers_has_it(prompt, theirs):
    sequence = make_sequence(prompt)
    expected = expected_positions(theirs, sequence, num_decoded=7)
    num_tokens = expected.shape[1]
    for cut in range(num_tokens + 1):
        np.testing.assert_array_equal(positions_of(sequence, 0, cut, 3), expected[:, :cut])
        np.testing.assert_array_equal(positions_of(sequence, cut, num_tokens, 3), expected[:, cut:])
    for start in range(num_tokens):  # as decoding asks, token by token
        np.testing.assert_array_equal(
            positions_of(sequence, start, start + 1, 3), expected[:, start : start + 1]
        )


def test_an_image_takes_as_many_numbers_as_its_longer_side():
    sequence = make_sequence(([(2, 2, 3)], 2))
    assert positions_of(sequence, 0, 10, 3).tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]


def test_with_one_axis_a_token_stands_at_its_number():
    sequence = make_sequence(([(2, 2, 3)], 2))
    assert positions_of(sequence, 3, 9, 1).tolist() == [3, 4, 5, 6, 7, 8]
