"""Families that run through transformers' code answer as transformers does, whatever the batch."""

import pytest

from tests.parity import SCHEDULES, assert_schedule, conversations, generate_references
from tests.tiny_generic import MAKERS, save_tiny_generic
from vlmflow_engine.models.generic.processor_class import load_processor

MAX_NEW_TOKENS = 16
EOS = 2
# (width, height): what is cut into tiles, what is not, what is narrow.
SIZES = ((96, 96), (40, 100), (120, 50), (64, 65), (33, 32), (30, 90), (200, 140))
FEW_SCHEDULES = ("seven", "everything-small")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Make each checkpoint, and its references, once."""
    made = {}

    def make(name, count):
        if (name, count) not in made:
            folder = tmp_path_factory.mktemp(name)
            save_tiny_generic(name, folder)
            references = generate_references(
                folder, conversations(count, SIZES), MAX_NEW_TOKENS, load_processor(folder)
            )
            answers = {tuple(reference.token_ids) for reference in references}
            assert len(answers) > 0.8 * count, "answers that do not depend on the prompt"
            made[name, count] = folder, references
        return made[name, count]

    return make


def assert_parity(folder, references, schedule, prefix_caching):
    longest = max(len(reference.input_ids) for reference in references) + MAX_NEW_TOKENS
    # Some ask the same again, for a prefix cache that is hit whatever becomes of the images.
    asked = [one for reference in references[:3] for one in (reference, reference)]
    assert_schedule(
        folder,
        [*asked, *references[3:]],
        schedule,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=EOS,
        enable_prefix_caching=prefix_caching,
        num_gpu_blocks=-(-longest // 16) + 2,
        encoder_cache_rows=160,  # of images that are processed together, all at once
        num_preprocess_workers=0,  # transformers takes its time to be imported
    )


@pytest.mark.slow
@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", MAKERS)
def test_answers_equal_transformers_token_by_token(checkpoint, name, schedule, prefix_caching):
    assert_parity(*checkpoint(name, 40), schedule, prefix_caching)


@pytest.mark.parametrize("schedule", FEW_SCHEDULES)
@pytest.mark.parametrize("name", ["idefics3", "llava-onevision"])
def test_some_answers_equal_transformers_token_by_token(checkpoint, name, schedule):
    assert_parity(*checkpoint(name, 12), schedule, True)
