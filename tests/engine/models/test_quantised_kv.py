"""In 8 or 4 bits or float8, too, answers depend on nothing but their prompts."""

import pytest
import torch

from tests.parity import conversations
from tests.tiny_llava import CPU, compute_logits, save_tiny_llava
from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig
from vlmflow_engine.models.decoder import Decoder
from vlmflow_engine.models.registry import load_model, read_config
from vlmflow_engine.stats import EngineStats

MAX_NEW_TOKENS = 24
CONVERSATIONS = conversations(24)
ERRORS = {8: 0.02, 4: 0.3, 16: 0.08}  # of logits, root mean square, as a share of theirs
LENGTHS = (1, 15, 16, 17, 131)

pytestmark = pytest.mark.parametrize("policy", [8, 4, 16])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("tiny_llava"))


def answer(folder, policy, **engine) -> tuple[list[list[int]], EngineStats]:
    config = PytorchEngineConfig(dtype="float32", device_type="cpu", quant_policy=policy, **engine)
    with Pipeline(str(folder), backend_config=config) as pipeline:
        responses = pipeline(CONVERSATIONS, GenerationConfig(max_new_tokens=MAX_NEW_TOKENS))
        assert not any(response.error_message for response in responses)
        return [list(response.token_ids) for response in responses], pipeline.stats


@pytest.fixture(scope="module")
def answers_alone(folder):
    """Of each policy: every prompt in one chunk, by itself, with no cached prefix."""
    alone = {"max_batch_size": 1, "enable_prefix_caching": False}
    return {policy: answer(folder, policy, **alone)[0] for policy in (0, 8, 4, 16)}


@pytest.mark.parametrize(
    "engine",
    [
        {"max_batch_size": 64},
        {"max_batch_size": 7, "max_prefill_token_num": 16},
        {"max_batch_size": 64, "max_prefill_token_num": 100, "enable_prefix_caching": False},
        {"max_batch_size": 64, "num_gpu_blocks": 24},
        {"max_batch_size": 64, "block_size": 5, "max_prefill_token_num": 100},
    ],
    ids=["all", "chunks", "uncached", "preempted", "odd-blocks"],
)
def test_answers_are_those_of_a_prompt_alone(folder, answers_alone, engine, policy):
    answers, stats = answer(folder, policy, **engine)
    assert "num_gpu_blocks" not in engine or stats.num_preemptions > 0
    assert (stats.prefix_hit_tokens > 0) == engine.get("enable_prefix_caching", True)
    # Another order of sums may turn an element over to the next code, on some machine.
    pairs = zip(answers, answers_alone[policy], strict=True)
    assert sum(a != b for a, b in pairs) <= 1


def test_answers_are_not_those_of_exact_keys_and_values(answers_alone, policy):
    # Else the test above would prove nothing: a random model is easily turned.
    pairs = zip(answers_alone[policy], answers_alone[0], strict=True)
    assert sum(a != b for a, b in pairs) > 3


@pytest.fixture(scope="module")
def exact_decoder(folder) -> Decoder:
    """In float64, where no order of sums turns a code over."""
    return load_model(folder, read_config(folder), dtype=torch.float64, device=CPU).decoder


@pytest.mark.parametrize(
    "steps",
    [
        [[(index, 1)] for index, length in enumerate(LENGTHS) for _ in range(length)],
        [[(4, 16)]] * 8 + [[(4, 3)], [(3, 16), (2, 16)], [(3, 1), (1, 14), (0, 1)], [(1, 1)]],
        [[(4, 130), (3, 1)], [(4, 1), (3, 15), (2, 1)], [(2, 15), (3, 1), (1, 15), (0, 1)]],
    ],
    ids=["token_by_token", "in_chunks", "mixed_in_a_batch"],
)
def test_logits_do_not_depend_on_how_prompts_are_cut_into_steps(exact_decoder, steps, policy):
    generator = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(exact_decoder.vocab_size, (length,), generator=generator)
        for length in LENGTHS
    ]
    whole = compute_logits(exact_decoder, prompts, quant_policy=policy)
    cut = compute_logits(exact_decoder, prompts, steps, quant_policy=policy)
    torch.testing.assert_close(cut, whole, rtol=1e-6, atol=1e-6)
    exact = compute_logits(exact_decoder, prompts)
    for quantised, other in zip(whole, exact, strict=True):
        error = (quantised - other).square().mean().sqrt() / other.square().mean().sqrt()
        assert ERRORS[policy] / 4 < error < ERRORS[policy]
