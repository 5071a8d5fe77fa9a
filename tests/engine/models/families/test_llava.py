"""A random LLaVA answers as transformers does, whatever the batch, the chunks and the caches."""

import numpy as np
import pytest
from PIL import Image

from tests.parity import CASES, assert_schedule, conversations, generate_references
from tests.tiny_llava import save_tiny_llava
from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig

MAX_NEW_TOKENS = 24
EOS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("tiny_llava"))


@pytest.fixture(scope="module")
def references(folder):
    references = generate_references(folder, conversations(48), MAX_NEW_TOKENS)
    answers = {tuple(reference.token_ids) for reference in references}
    assert len(answers) > 40, "answers that do not depend on the prompt prove nothing"
    return references


@pytest.mark.parametrize(("schedule", "prefix_caching"), CASES)
def test_answers_equal_transformers_token_by_token(folder, references, schedule, prefix_caching):
    assert_schedule(
        folder,
        references,
        schedule,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=EOS,
        enable_prefix_caching=prefix_caching,
        num_gpu_blocks=40,
        encoder_cache_rows=36,
    )


def test_the_same_text_about_another_image_has_another_answer(folder):
    pixels = np.random.default_rng(1)
    images = [Image.fromarray(pixels.integers(0, 256, (96, 96, 3), np.uint8)) for _ in range(6)]
    config = PytorchEngineConfig(dtype="float32", device_type="cpu")
    with Pipeline(str(folder), backend_config=config) as pipeline:
        prompts = [("what is this", image) for image in images]
        together = pipeline(prompts, GenerationConfig(max_new_tokens=12))
        again = pipeline(prompts[::-1], GenerationConfig(max_new_tokens=12))[::-1]
    assert len({response.text for response in together}) == len(images)
    assert [r.token_ids for r in again] == [r.token_ids for r in together]


def test_the_caches_are_hit_as_often_as_can_be_counted(folder):
    """Eight questions about each of three images: three encodings, one prefill of each image."""
    pixels = np.random.default_rng(2)
    images = [Image.fromarray(pixels.integers(0, 256, (96, 96, 3), np.uint8)) for _ in range(3)]
    prompts = [(f"question {number}", image) for image in images for number in range(8)]
    config = PytorchEngineConfig(dtype="float32", device_type="cpu", block_size=4)
    with Pipeline(str(folder), backend_config=config) as pipeline:
        responses = pipeline(prompts, GenerationConfig(max_new_tokens=4))
        stats = pipeline.stats
    assert stats.num_encoded_images == 3
    # "<s>USER: " is 4 tokens, the image 36, "\nquestion " 5: eleven blocks of 4 and one token.
    assert [r.cached_tokens for r in responses] == [0, *[44] * 7, 4, *[44] * 7, 4, *[44] * 7]
    assert stats.prefix_hit_tokens == sum(r.cached_tokens for r in responses)
    # Who shares the whole image from the prefix cache does not ask for its embeddings at all.
    assert (stats.encoder_queries, stats.encoder_hits) == (3, 0)
