"""A random LLaVA answers as transformers does, whatever the batch, the chunks and the caches."""

import random

import numpy as np
import pytest
from PIL import Image

from tests.parity import answer, assert_parity, generate_references
from tests.tiny_llava import save_tiny_llava
from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig

MAX_NEW_TOKENS = 24
EOS = 2
TEXT = "how many red shapes are there at the top left is a blue star circle what colour"
WORDS = TEXT.split()
SIZES = ((96, 96), (40, 200), (333, 100), (97, 96), (16, 16), (250, 251), (1, 1), (900, 90))


def conversations(count: int) -> list[list[dict]]:
    """No image, one, several of mixed sizes, several turns, and images that come again."""
    rng = random.Random(5)
    pixels = np.random.default_rng(5)
    images = [
        Image.fromarray(pixels.integers(0, 256, (height, width, 3), np.uint8))
        for width, height in SIZES
    ]
    made = []
    for index in range(count):
        messages = []
        for turn in range(rng.choice((1, 1, 1, 2))):
            parts = [
                {"type": "image", "image": rng.choice(images)} for _ in range((index + turn) % 4)
            ]
            text = " ".join(rng.choices(WORDS, k=rng.randint(1, 30)))
            messages.append({"role": "user", "content": [*parts, {"type": "text", "text": text}]})
            if rng.random() < 0.5:
                reply = [{"type": "text", "text": " ".join(rng.choices(WORDS, k=4))}]
                messages.append({"role": "assistant", "content": reply})
        if messages[-1]["role"] == "assistant":
            messages.pop()
        made.append(messages)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("tiny_llava"))


@pytest.fixture(scope="module")
def references(folder):
    references = generate_references(folder, conversations(48), MAX_NEW_TOKENS)
    answers = {tuple(reference.token_ids) for reference in references}
    assert len(answers) > 40, "answers that do not depend on the prompt prove nothing"
    return references


@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize(
    "engine",
    [
        {"max_batch_size": 1},
        {"max_batch_size": 7},
        {"max_batch_size": 64},
        {"max_batch_size": 7, "max_prefill_token_num": 16},
        {"max_batch_size": 64, "num_gpu_blocks": 40, "preempts": True},
        {
            "max_batch_size": 64,
            "num_gpu_blocks": 40,
            "max_prefill_token_num": 16,
            "encoder_cache_rows": 36,
        },
        {"max_batch_size": 64, "block_size": 5, "max_prefill_token_num": 100},
    ],
    ids=["one", "seven", "all", "chunks", "preempted", "everything-small", "odd-blocks"],
)
def test_answers_equal_transformers_token_by_token(folder, references, engine, prefix_caching):
    engine = dict(engine)
    preempts = engine.pop("preempts", False)
    responses, stats = answer(
        folder, references, MAX_NEW_TOKENS, enable_prefix_caching=prefix_caching, **engine
    )
    assert_parity(folder, references, responses, EOS)
    assert not preempts or stats.num_preemptions > 0
    assert (stats.prefix_hit_tokens > 0) == prefix_caching


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
