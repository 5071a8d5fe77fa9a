"""A random LLaVA-1.6 answers as transformers does, whatever the image, the batch and the caches."""

import pytest

from tests.parity import CASES, assert_schedule, conversations, generate_references
from tests.tiny_llava_next import save_tiny_llava_next
from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig

MAX_NEW_TOKENS = 16
EOS = 2
# One tile, each of the grids, odd ratios, and far too long ones.
SIZES = (
    *((42, 42), (20, 30), (84, 84), (100, 100), (640, 480), (333, 100), (97, 96), (47, 100)),
    *((2, 2), (40, 800), (800, 40), (3000, 500), (235, 1128)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llava_next(tmp_path_factory.mktemp("tiny_llava_next"))


@pytest.fixture(scope="module")
def references(folder):
    references = generate_references(folder, conversations(44, SIZES), MAX_NEW_TOKENS)
    answers = {tuple(reference.token_ids) for reference in references}
    assert len(answers) > 36, "answers that do not depend on the prompt prove nothing"
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
        encoder_cache_rows=60,
    )


def test_an_image_of_one_line_fails_alone(folder, references):
    from PIL import Image

    config = PytorchEngineConfig(dtype="float32", device_type="cpu")
    with Pipeline(str(folder), backend_config=config) as pipeline:
        line, square = pipeline(
            [("what is it", Image.new("RGB", size)) for size in ((500, 1), (50, 50))],
            GenerationConfig(max_new_tokens=4),
        )
    assert line.finish_reason == "error" and "500 x 1 pixels" in line.error_message
    assert square.error_message is None
