"""`GenerationConfig`: its fields and defaults, what they allow, and what they do to an answer."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.compat.scripted import saying
from tests.engine.inputs.pictures import noise
from vlmflow_engine import (
    GenerationConfig,
    Pipeline,
    PytorchEngineConfig,
    Response,
    Tokenizer,
    messages,
    pipeline,
)
from vlmflow_engine.errors import ConfigError, VlmflowError

IMAGE = noise(96, 96, seed=6)
FREE = {"max_new_tokens": 16, "ignore_eos": True}
SAMPLED = FREE | {"do_sample": True, "temperature": 1.5}
EOS = 2

DEFAULTS = {
    "n": 1,
    "max_new_tokens": 512,
    "do_sample": False,
    "top_p": 1.0,
    "top_k": 50,
    "min_p": 0.0,
    "temperature": 0.8,
    "repetition_penalty": 1.0,
    "ignore_eos": False,
    "random_seed": None,
    "stop_words": None,
    "bad_words": None,
    "stop_token_ids": None,
    "bad_token_ids": None,
    "min_new_tokens": None,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "logprobs": None,
    "response_format": None,
    "logits_processors": None,
    "output_logits": None,
    "output_last_hidden_state": None,
    "include_stop_str_in_output": False,
    "return_ppl": False,
    "with_cache": False,
    "preserve_cache": False,
    "migration_request": None,
    "return_routed_experts": False,
    "repetition_ngram_size": 0,
    "repetition_ngram_threshold": 0,
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_field_is_there_with_its_default_and_may_be_given_it(name: str) -> None:
    value = getattr(GenerationConfig(), name)
    assert value == DEFAULTS[name] and type(value) is type(DEFAULTS[name])
    assert GenerationConfig(**{name: DEFAULTS[name]}) == GenerationConfig()


def test_there_are_no_other_fields_and_both_modules_have_the_class() -> None:
    assert {field.name for field in dataclasses.fields(GenerationConfig)} == DEFAULTS.keys()
    assert messages.GenerationConfig is GenerationConfig


RESPONSE_DEFAULTS = {
    "finish_reason": None,
    "token_ids": [],
    "logprobs": None,
    "logits": None,
    "last_hidden_state": None,
    "index": 0,
    "routed_experts": None,
    "cached_tokens": 0,
    "error_code": None,
    "error_message": None,
}


def test_a_response_has_the_fields_and_defaults_of_lmdeploys() -> None:
    response = Response(text="x", generate_token_len=1, input_token_len=2)
    assert {name: getattr(response, name) for name in RESPONSE_DEFAULTS} == RESPONSE_DEFAULTS
    assert messages.Response is Response


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_p", -0.01),
        ("top_p", 1.01),
        ("min_p", -0.01),
        ("min_p", 1.01),
        ("temperature", -1),
        ("temperature", 2.01),
        ("top_k", -1),
        ("n", 0),
        ("n", -1),
        ("n", 1.5),
        ("min_new_tokens", -1),
        ("repetition_penalty", 0),
        ("stop_words", "</s>"),
        ("stop_words", [5]),
        ("bad_words", "star"),
        ("stop_token_ids", [-1]),
        ("output_logits", "some"),
        ("output_last_hidden_state", True),
        ("logprobs", -1),
        ("do_sample", "yes"),
        ("logits_processors", ["x"]),
        ("response_format", {"type": "xml"}),
        ("with_cache", True),
        ("preserve_cache", True),
        ("migration_request", {"protocol": 1}),
        ("return_routed_experts", True),
    ],
)
def test_a_value_out_of_range_is_refused_when_the_config_is_made(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        GenerationConfig(**{name: value})
    assert isinstance(caught.value, VlmflowError)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_p", 0.0),
        ("top_p", 1),
        ("min_p", 1.0),
        ("temperature", 0),
        ("temperature", 2),
        ("top_k", 0),
        ("max_new_tokens", None),
        ("max_new_tokens", 0),
        ("random_seed", 2**64 - 1),
        ("min_new_tokens", 0),
        ("logprobs", 0),
    ],
)
def test_a_value_at_the_edge_is_taken_and_answered_with(
    name: str, value: Any, pipe: Pipeline
) -> None:
    config = GenerationConfig(**{"max_new_tokens": 3, "do_sample": True} | {name: value})
    response = pipe("red", config)
    if name == "max_new_tokens" and value == 0:
        assert response.error_code == "invalid_request"
    else:
        assert response.finish_reason in ("stop", "length")


@pytest.mark.parametrize(("size", "threshold"), [(-1, 3), (3, 0), (0, 3), (-5, -5)])
def test_an_ngram_that_is_not_above_zero_means_none(size: int, threshold: int) -> None:
    config = GenerationConfig(repetition_ngram_size=size, repetition_ngram_threshold=threshold)
    assert (config.repetition_ngram_size, config.repetition_ngram_threshold) == (0, 0)


def test_a_short_session_answers_a_long_prompt_with_an_error(tiny_llava: Path) -> None:
    config = PytorchEngineConfig(device_type="cpu", session_len=10, num_preprocess_workers=0)
    with pipeline(str(tiny_llava), backend_config=config) as short:
        prompts = ["how many stars are there in this one", ("x", IMAGE)]
        for response in short(prompts):
            assert (response.text, response.finish_reason) == ("", "error")
            assert response.error_code == "context_length_exceeded"
            assert "10" in response.error_message
        fits = short("a", do_preprocess=False)
        assert fits.input_token_len + fits.generate_token_len <= 10
        assert fits.error_code is None


@pytest.mark.parametrize("max_new_tokens", [1, 5, 50])
def test_an_answer_that_may_not_end_is_as_long_as_allowed(
    max_new_tokens: int, pipe: Pipeline
) -> None:
    response = pipe("red", GenerationConfig(max_new_tokens=max_new_tokens, ignore_eos=True))
    assert response.generate_token_len == len(response.token_ids) == max_new_tokens
    assert response.finish_reason == "length"


def test_without_a_limit_an_answer_fills_the_context(pipe: Pipeline) -> None:
    response = pipe("word " * 300, GenerationConfig(max_new_tokens=None, ignore_eos=True))
    assert response.input_token_len + response.generate_token_len == pipe.info.session_len
    assert response.finish_reason == "length"


def say(tokenizer: Tokenizer, text: str, **options: Any) -> GenerationConfig:
    """Make the answer be a text, and then the end."""
    ids = [*tokenizer.encode(text, add_bos=False), EOS]
    return GenerationConfig(**{"max_new_tokens": 40} | options, logits_processors=saying(ids))


def test_the_end_token_ends_an_answer_and_is_not_counted(
    pipe: Pipeline, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("a red star", add_bos=False)
    response = pipe("x", say(tokenizer, "a red star"))
    assert (response.text, response.finish_reason) == ("a red star", "stop")
    assert response.token_ids == ids and response.generate_token_len == len(ids)


def test_the_end_token_may_be_shown_and_is_counted_then(
    pipe: Pipeline, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("a red star", add_bos=False)
    response = pipe("x", say(tokenizer, "a red star", include_stop_str_in_output=True))
    assert (response.text, response.finish_reason) == ("a red star</s>", "stop")
    assert response.token_ids == [*ids, EOS] and response.generate_token_len == len(ids) + 1


def test_ignoring_the_end_goes_on_to_the_limit(pipe: Pipeline, tokenizer: Tokenizer) -> None:
    response = pipe("x", say(tokenizer, "a red star", ignore_eos=True, max_new_tokens=20))
    assert response.finish_reason == "length" and response.generate_token_len == 20
    assert EOS in response.token_ids


def test_no_answer_ends_before_its_least_tokens(pipe: Pipeline, tokenizer: Tokenizer) -> None:
    response = pipe("x", say(tokenizer, "a red star", min_new_tokens=12, max_new_tokens=12))
    assert response.generate_token_len == 12 and response.finish_reason == "length"
    assert EOS not in response.token_ids
    both = GenerationConfig(max_new_tokens=9, min_new_tokens=9, ignore_eos=True)
    assert pipe("x", both).finish_reason == "length"


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_are_shown_on_demand(
    skip: bool, pipe: Pipeline, tokenizer: Tokenizer
) -> None:
    red, star = (tokenizer.encode(word, add_bos=False) for word in ("red", " star"))
    ids = [*red, 1, *star]
    config = GenerationConfig(
        max_new_tokens=len(ids),
        ignore_eos=True,
        skip_special_tokens=skip,
        logits_processors=saying(ids),
    )
    response = pipe("x", config)
    assert response.text == ("red star" if skip else "red<s> star")
    assert response.token_ids == ids
    streamed = "".join(chunk.text for chunk in pipe.stream_infer("x", gen_config=config))
    assert streamed == response.text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["star"], "a red "),
        (["d s"], "a re"),
        (["star", "red"], "a "),
        (["green"], "a red star and a blue"),
        (["</s>"], "a red star and a blue"),
    ],
)
def test_a_stop_word_ends_an_answer_where_it_is_spelled(
    words: list[str], text: str, pipe: Pipeline, tokenizer: Tokenizer
) -> None:
    response = pipe("x", say(tokenizer, "a red star and a blue", stop_words=words))
    assert (response.text, response.finish_reason) == (text, "stop")


def test_a_stop_word_may_be_shown(pipe: Pipeline, tokenizer: Tokenizer) -> None:
    config = say(tokenizer, "a red star and", stop_words=["star"], include_stop_str_in_output=True)
    assert pipe("x", config).text == "a red star"


def test_a_stop_token_id_ends_an_answer_though_the_end_is_ignored(
    pipe: Pipeline, tokenizer: Tokenizer
) -> None:
    [star] = tokenizer.encode(" star", add_bos=False)
    config = say(tokenizer, "a red star and", stop_token_ids=[star], ignore_eos=True)
    response = pipe("x", config)
    assert (response.text, response.finish_reason) == ("a red", "stop")


def test_a_bad_word_is_never_said(pipe: Pipeline, tokenizer: Tokenizer) -> None:
    response = pipe("x", say(tokenizer, "a red star and a blue", bad_words=["red", "blue"]))
    assert response.text.startswith("a")
    assert "red" not in response.text and "blue" not in response.text
    assert "star" in response.text


def test_a_bad_token_id_is_never_drawn(pipe: Pipeline) -> None:
    free = pipe("red", GenerationConfig(**FREE))
    banned = pipe("red", GenerationConfig(**FREE, bad_token_ids=free.token_ids[:4]))
    assert not set(banned.token_ids) & set(free.token_ids[:4])


def test_an_answer_is_greedy_unless_sampling_is_asked_for(pipe: Pipeline) -> None:
    plain = pipe(("red", IMAGE), GenerationConfig(**FREE))
    for options in (
        {"temperature": 2.0, "top_k": 5, "random_seed": 4},
        {"do_sample": True, "top_k": 1},
        {"do_sample": True, "temperature": 0.0},
        {"do_sample": True, "top_p": 0.0},
        {"do_sample": True, "min_p": 1.0},
    ):
        assert pipe(("red", IMAGE), GenerationConfig(**FREE, **options)).text == plain.text


def test_the_same_seed_draws_the_same_and_another_seed_another(pipe: Pipeline) -> None:
    first, again, other = (
        pipe(("what", IMAGE), GenerationConfig(**SAMPLED, random_seed=seed)) for seed in (1, 1, 2)
    )
    assert first.token_ids == again.token_ids != other.token_ids


def test_a_batch_of_one_prompt_without_a_seed_has_different_answers(pipe: Pipeline) -> None:
    responses = pipe(["what"] * 4, GenerationConfig(**SAMPLED))
    assert len({response.text for response in responses}) == 4


def test_with_a_seed_every_prompt_of_a_batch_draws_as_it_does_alone(pipe: Pipeline) -> None:
    config = GenerationConfig(**SAMPLED, random_seed=9)
    alone = pipe("what", config).token_ids
    assert [r.token_ids for r in pipe(["what", "what"], config)] == [alone, alone]


def test_only_the_likeliest_are_drawn_from(pipe: Pipeline) -> None:
    config = GenerationConfig(
        max_new_tokens=16, do_sample=True, temperature=2.0, top_k=3, logprobs=3, ignore_eos=True
    )
    ranks = []
    for response in pipe(["what"] * 16, config):
        for token, logprobs in zip(response.token_ids, response.logprobs, strict=True):
            # The token drawn stands there beside the three likeliest, unless it is one of them.
            assert len(logprobs) == 3
            ranks.append(sorted(logprobs, key=lambda t: -logprobs[t]).index(token))
    assert len(ranks) == 16 * 16 and set(ranks) == {0, 1, 2}


def test_a_higher_temperature_draws_more_widely(pipe: Pipeline) -> None:
    def count(temperature: float) -> int:
        config = GenerationConfig(
            max_new_tokens=1, do_sample=True, temperature=temperature, top_k=0, ignore_eos=True
        )
        return len({r.text for r in pipe(["what"] * 64, config)})

    assert count(0.05) < count(2.0)


def test_a_penalty_makes_what_was_said_less_likely(pipe: Pipeline) -> None:
    ids = {}
    for penalty in (1.0, 50.0):
        config = GenerationConfig(max_new_tokens=60, ignore_eos=True, repetition_penalty=penalty)
        ids[penalty] = pipe("red", config).token_ids
    assert len(set(ids[50.0])) > len(set(ids[1.0]))


def test_a_repeated_ngram_ends_an_answer(pipe: Pipeline, tokenizer: Tokenizer) -> None:
    text = "a red star" * 6
    config = say(tokenizer, text, repetition_ngram_size=3, repetition_ngram_threshold=3)
    response = pipe("x", config)
    assert response.finish_reason == "stop"
    once = len(tokenizer.encode("a red star", add_bos=False))
    assert once == 3 and response.generate_token_len == 9


@pytest.mark.parametrize("n", [2, 3])
def test_several_answers_to_one_prompt_are_a_list(n: int, pipe: Pipeline) -> None:
    responses = pipe("what", GenerationConfig(**SAMPLED, random_seed=5, n=n))
    assert [(r.index, r.choice) for r in responses] == [(0, choice) for choice in range(n)]
    assert len({r.text for r in responses}) == n
    one = pipe("what", GenerationConfig(**SAMPLED, random_seed=5))
    assert responses[0].text == one.text


@pytest.mark.parametrize("top", [0, 1, 5])
def test_logprobs_are_those_of_the_logits(top: int, pipe: Pipeline) -> None:
    config = GenerationConfig(**FREE, logprobs=top, output_logits="generation")
    response = pipe(("red", IMAGE), config)
    expected = response.logits.log_softmax(-1)
    assert len(response.logprobs) == response.generate_token_len == 16
    for row, token_id, values in zip(expected, response.token_ids, response.logprobs, strict=True):
        assert next(iter(values)) == token_id
        assert set(values) == {token_id, *row.topk(top).indices.tolist()}
        for key, value in values.items():
            assert math.isclose(value, row[key].item(), abs_tol=1e-4)


def test_raw_logits_are_reported_where_the_engine_is_told_so(tiny_llava: Path) -> None:
    engine = PytorchEngineConfig(
        dtype="float32", device_type="cpu", logprobs_mode="raw_logits", num_preprocess_workers=0
    )
    config = GenerationConfig(max_new_tokens=2, logprobs=1, output_logits="generation")
    with pipeline(str(tiny_llava), backend_config=engine) as pipe:
        response = pipe("red", config)
    for row, values in zip(response.logits, response.logprobs, strict=True):
        for token_id, value in values.items():
            assert math.isclose(value, row[token_id].item(), abs_tol=1e-4)


@pytest.mark.parametrize("which", ["all", "generation"])
@pytest.mark.parametrize(
    ("option", "field"),
    [("output_logits", "logits"), ("output_last_hidden_state", "last_hidden_state")],
)
def test_rows_of_the_decoder_are_handed_out_on_demand(
    option: str, field: str, which: str, pipe: Pipeline
) -> None:
    response = pipe(("red", IMAGE), GenerationConfig(**FREE, **{option: which}))
    rows = getattr(response, field)
    num_rows = 16 if which == "generation" else response.input_token_len + 15
    assert rows.shape[0] == num_rows and rows.dtype == torch.float32
    if field == "logits":
        assert rows[-16:].argmax(-1).tolist() == response.token_ids
    others = {"logits", "last_hidden_state"} - {field}
    assert all(getattr(response, other) is None for other in others)


def test_a_logits_processor_sees_the_answer_so_far_and_decides(pipe: Pipeline) -> None:
    seen: list[list[int]] = []

    def only(generated: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        seen.append(generated.tolist())
        return torch.full_like(logits, -torch.inf).index_fill(0, torch.tensor([70]), 0.0)

    config = GenerationConfig(max_new_tokens=3, ignore_eos=True, logits_processors=[only])
    assert pipe("red", config).token_ids == [70, 70, 70]
    assert seen == [[], [70], [70, 70]]


def test_a_logits_processor_that_fails_is_its_own_prompts_error(pipe: Pipeline) -> None:
    def broken(generated: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        raise KeyError("oh")

    configs = [
        GenerationConfig(**FREE),
        GenerationConfig(**FREE, logits_processors=[broken]),
    ]
    good, bad = pipe(["red", "red"], configs)
    assert good.error_code is None
    assert bad.finish_reason == "error" and "KeyError" in bad.error_message


def test_the_perplexity_of_a_prompt_is_handed_out_on_demand(
    pipe: Pipeline, tokenizer: Tokenizer
) -> None:
    config = GenerationConfig(max_new_tokens=1, return_ppl=True)
    response = pipe("a red star", config, do_preprocess=False)
    [expected] = pipe.get_ppl(tokenizer.encode("a red star"))
    assert response.ppl == pytest.approx(expected, abs=1e-5)
    assert pipe("a red star", GenerationConfig(max_new_tokens=1)).ppl is None
