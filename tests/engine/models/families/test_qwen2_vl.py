"""A random Qwen2-VL or Qwen2.5-VL answers as transformers does, whatever the batch, the chunks and
the caches."""

from pathlib import Path

import pytest

from tests.parity import (
    CASES,
    Reference,
    assert_schedule,
    conversations,
    generate_references,
)
from tests.tiny_qwen2_vl import EOS, KINDS, ImagesOnlyProcessor, save_tiny_qwen2_vl

MAX_NEW_TOKENS = 20
# One unit, 1:20 and 20:1, whole and ragged windows, several windows, more pixels than allowed.
SIZES = (
    *[(28, 28), (20, 400), (400, 20), (97, 131), (112, 112), (200, 150), (60, 57)],
    *[(1, 3), (140, 84), (640, 480)],
)


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory) -> Path:
    return save_tiny_qwen2_vl(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def references(folder) -> list[Reference]:
    references = generate_references(
        folder,
        conversations(44, SIZES),
        MAX_NEW_TOKENS,
        processor=ImagesOnlyProcessor.from_pretrained(folder),
    )
    answers = {tuple(reference.token_ids) for reference in references}
    assert len(answers) > 38, "answers that do not depend on the prompt prove nothing"
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
        encoder_cache_rows=64,
    )
