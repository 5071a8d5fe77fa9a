"""Logits, hidden states, cross-entropy and several answers: what transformers computes too."""

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tests.engine.test_offline import FLOAT32, picture
from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig, pipeline
from vlmflow_engine.runner.outputs import OutputCollector

PROMPT = ("how many stars are there in this picture, and what of the others", picture(5))
MESSAGES = [
    {
        "role": "user",
        "content": [{"type": "image", "image": PROMPT[1]}, {"type": "text", "text": PROMPT[0]}],
    }
]
OUTPUTS = {"max_new_tokens": 9, "ignore_eos": True}
SCHEDULES = {
    "whole": {},
    "chunks": {"max_prefill_token_num": 7, "max_batch_size": 2},
    "preempted": {"num_gpu_blocks": 70, "block_size": 2, "session_len": 96},
}


@pytest.fixture(scope="module")
def pipe(tiny_llava):
    with pipeline(str(tiny_llava), backend_config=FLOAT32) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def reference(tiny_llava, pipe):
    """What transformers computes over prompt and answer: logits, hidden states, loss."""
    answer = pipe(PROMPT, GenerationConfig(**OUTPUTS))
    processor = AutoProcessor.from_pretrained(tiny_llava)
    model = LlavaForConditionalGeneration.from_pretrained(tiny_llava, dtype=torch.float32).eval()
    inputs = processor.apply_chat_template(
        MESSAGES, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    num_prompt = inputs["input_ids"].shape[1]
    assert num_prompt == answer.input_token_len
    ids = torch.cat([inputs["input_ids"], torch.tensor([answer.token_ids])], dim=1)
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        output = model(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=inputs["pixel_values"],
            output_hidden_states=True,
        )
    logits, hidden = output.logits[0, :-1], output.hidden_states[-1][0, :-1]
    targets = ids[0, 1:num_prompt]
    loss = torch.nn.functional.cross_entropy(logits[: num_prompt - 1], targets).item()
    return logits, hidden, loss, num_prompt


def close(ours, theirs) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_all_logits_hidden_states_and_loss_are_those_of_transformers(
    tiny_llava, reference, schedule
):
    logits, hidden, loss, num_prompt = reference
    config = PytorchEngineConfig(dtype="float32", device_type="cpu", **SCHEDULES[schedule])
    wanted = GenerationConfig(
        **OUTPUTS, output_logits="all", output_last_hidden_state="all", return_ppl=True
    )
    with Pipeline(str(tiny_llava), config) as pipe:
        # Twice: a cached prefix has no rows to give, so it may not be used.
        for _ in range(2):
            first, second = pipe([PROMPT, PROMPT], wanted)
            for response in (first, second):
                close(response.logits, logits)
                close(response.last_hidden_state, hidden)
                assert response.ppl == pytest.approx(loss, abs=1e-4)
        if schedule == "preempted":
            assert pipe.stats.num_preemptions > 0


def test_of_the_generation_alone_there_is_a_row_a_token(pipe, reference):
    logits, hidden, _, num_prompt = reference
    wanted = GenerationConfig(
        **OUTPUTS, output_logits="generation", output_last_hidden_state="generation"
    )
    response = pipe(PROMPT, wanted)
    assert response.logits.shape[0] == response.generate_token_len == 9
    close(response.logits, logits[num_prompt - 1 :])
    close(response.last_hidden_state, hidden[num_prompt - 1 :])
    assert response.logits.argmax(-1).tolist() == response.token_ids
    assert response.ppl is None


def test_nothing_is_kept_that_was_not_asked_for(pipe):
    response = pipe(PROMPT, GenerationConfig(**OUTPUTS))
    assert (response.logits, response.last_hidden_state, response.logprobs) == (None,) * 3


def test_what_was_collected_for_a_request_that_fails_is_dropped(tiny_llava, monkeypatch):
    init, collectors = OutputCollector.__init__, []

    def watched_init(self, *args):
        collectors.append(self)
        init(self, *args)

    def fail(ids, row):
        raise KeyError("no such word")

    monkeypatch.setattr(OutputCollector, "__init__", watched_init)
    with Pipeline(str(tiny_llava), FLOAT32) as pipe:
        [collector] = collectors
        config = GenerationConfig(**OUTPUTS, output_logits="all", logits_processors=[fail])
        assert "no such word" in pipe(PROMPT, config).error_message
        assert collector._collected == {}


def test_perplexity_of_token_ids_is_the_mean_cross_entropy(pipe, tiny_llava):
    model = LlavaForConditionalGeneration.from_pretrained(tiny_llava, dtype=torch.float32).eval()
    batch = [[5, 9, 33, 70, 12, 4], [7, 8], list(range(10, 90))]
    expected = []
    for ids in batch:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))
        expected.append(loss.item())
    assert pipe.get_ppl(batch) == pytest.approx(expected, abs=1e-4)
    assert pipe.get_ppl(batch[0]) == pytest.approx(expected[:1], abs=1e-4)
    assert pipe.get_ppl(batch) == pytest.approx(expected, abs=1e-4)  # whatever is cached


@pytest.mark.parametrize("ids", [[], [5], [[5, 6], [7]], [["a", "b"]]])
def test_perplexity_needs_two_ids(pipe, ids):
    if ids == []:
        assert pipe.get_ppl(ids) == []
        return
    with pytest.raises(ValueError, match="at least two token ids"):
        pipe.get_ppl(ids)


def test_several_answers_follow_one_another_and_the_first_is_that_of_one(pipe):
    sampled = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.5, "random_seed": 4}
    several = pipe(["red", PROMPT], GenerationConfig(**sampled, n=3))
    assert [(r.index, r.choice) for r in several] == [(i, c) for i in (0, 1) for c in (0, 1, 2)]
    assert len({r.text for r in several[:3]}) == 3
    alone = pipe(["red", PROMPT], GenerationConfig(**sampled))
    assert [r.text for r in several[::3]] == [r.text for r in alone]
    again = pipe(["red", PROMPT], GenerationConfig(**sampled, n=3))
    assert [r.text for r in again] == [r.text for r in several]
    assert [r.choice for r in pipe("red", GenerationConfig(**sampled, n=2))] == [0, 1]


def test_several_answers_share_the_blocks_of_their_prompt(tiny_llava):
    with Pipeline(str(tiny_llava), FLOAT32) as pipe:
        responses = pipe([PROMPT], GenerationConfig(max_new_tokens=3, n=4))
        shared = responses[0].input_token_len // 16 * 16
        assert [r.cached_tokens for r in responses] == [0, shared, shared, shared]
        assert pipe.stats.num_encoded_images == 1


def test_a_prompt_that_fails_has_one_answer_whatever_n_is(pipe):
    responses = pipe(["red", 5, "blue"], GenerationConfig(max_new_tokens=3, n=2))
    assert [r.index for r in responses] == [0, 0, 1, 2, 2]
    assert responses[2].error_code == "invalid_request"
