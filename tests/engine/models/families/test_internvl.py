"""A random InternVL in Hugging Face form answers as transformers does, whatever the schedule."""

import pytest

from tests.parity import (
    SCHEDULES,
    answer,
    assert_parity,
    assert_schedule,
    conversations,
    generate_references,
)
from tests.tiny_internvl import ROWS, ImagesOnlyProcessor, make_internvl, save_hf

MAX_NEW_TOKENS = 16
EOS = 2
# One tile, several, as many as there may be, and one side twenty times the other.
SIZES = ((56, 56), (300, 56), (100, 61), (61, 100), (160, 120), (400, 20), (20, 400), (57, 112))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_hf(tmp_path_factory.mktemp("tiny_internvl"), make_internvl())


@pytest.fixture(scope="module")
def references(folder):
    references = _references(folder, 44)
    answers = {tuple(reference.token_ids) for reference in references}
    assert len(answers) > 36, "answers that do not depend on the prompt prove nothing"
    return references


@pytest.mark.parametrize(
    ("schedule", "prefix_caching"),
    [(schedule, number % 2 == 0) for number, schedule in enumerate(SCHEDULES)],
)
def test_answers_equal_transformers_token_by_token(folder, references, schedule, prefix_caching):
    assert_schedule(
        folder,
        references,
        schedule,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=EOS,
        enable_prefix_caching=prefix_caching,
        num_gpu_blocks=80,
        encoder_cache_rows=13 * ROWS,
    )


@pytest.mark.parametrize(
    ("text", "tower", "fields"),
    [
        ("llama", "6b", {"vision_feature_layer": -2}),
        ("qwen3", "6b", {"tie_word_embeddings": True}),
        ("phi3", "300m", {"projector_hidden_act": "relu"}),
        ("internlm2", "300m", {"text_config": {"attention_bias": True}}),
    ],
)
def test_every_language_model_and_tower_answers_as_in_transformers(text, tower, fields, tmp_path):
    folder = save_hf(tmp_path, make_internvl(text, tower, **fields), max_patches=4)
    references = _references(folder, 8)
    responses, _ = answer(folder, references, MAX_NEW_TOKENS, max_batch_size=4)
    assert_parity(folder, references, responses, EOS)


def _references(folder, count):
    processor = ImagesOnlyProcessor.from_pretrained(folder)
    return generate_references(
        folder, conversations(count, SIZES), MAX_NEW_TOKENS, processor=processor
    )
