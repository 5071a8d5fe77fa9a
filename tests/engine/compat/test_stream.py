"""`stream_infer`: chunks of all answers, interleaved, that add up to what `infer` answers."""

from itertools import accumulate
from typing import Any

import pytest

from tests.engine.compat.scripted import saying
from tests.engine.inputs.pictures import noise
from vlmflow_engine import GenerationConfig, Pipeline, Response, Tokenizer

IMAGE = noise(96, 96, seed=2)
LONG = GenerationConfig(max_new_tokens=30, ignore_eos=True)
PROMPTS = [
    "red",
    ("what is it", IMAGE),
    "how many stars are there",
    [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
]


def by_index(chunks: Any) -> dict[int, list[Response]]:
    """Sort a stream's chunks as LMDeploy's users do."""
    streams: dict[int, list[Response]] = {}
    for chunk in chunks:
        streams.setdefault(chunk.index, []).append(chunk)
    return streams


def script(tokenizer: Tokenizer, text: str, **options: Any) -> GenerationConfig:
    """Make the answer begin with a text."""
    ids = tokenizer.encode(text, add_bos=False)
    options = {"max_new_tokens": len(ids), "ignore_eos": True} | options
    return GenerationConfig(logits_processors=saying(ids), **options)


@pytest.fixture(scope="module")
def streams(pipe: Pipeline) -> dict[int, list[Response]]:
    """Four prompts' chunks, by prompt."""
    return by_index(pipe.stream_infer(PROMPTS, gen_config=LONG))


@pytest.fixture(scope="module")
def answers(pipe: Pipeline) -> list[Response]:
    """The same prompts' answers, whole."""
    return pipe(PROMPTS, LONG)


each_answer = pytest.mark.parametrize("index", range(len(PROMPTS)))
Chunks = dict[int, list[Response]]


@each_answer
def test_texts_make_up_the_answer(index: int, streams: Chunks, answers: list[Response]) -> None:
    assert "".join(chunk.text for chunk in streams[index]) == answers[index].text


@each_answer
def test_token_ids_make_up_the_answers(
    index: int, streams: Chunks, answers: list[Response]
) -> None:
    ids = [token_id for chunk in streams[index] for token_id in chunk.token_ids]
    assert ids == answers[index].token_ids


@each_answer
def test_every_chunk_but_the_last_has_text_and_tokens_and_no_reason(
    index: int, streams: Chunks
) -> None:
    for chunk in streams[index][:-1]:
        assert chunk.text and chunk.token_ids and chunk.finish_reason is None


@each_answer
def test_the_last_chunk_has_the_reason_and_nothing_else(
    index: int, streams: Chunks, answers: list[Response]
) -> None:
    last = streams[index][-1]
    assert last.finish_reason == answers[index].finish_reason == "length"
    assert (last.text, last.token_ids, last.logprobs) == ("", [], None)


@each_answer
def test_each_chunk_counts_the_tokens_so_far(index: int, streams: Chunks) -> None:
    counts = list(accumulate(len(chunk.token_ids) for chunk in streams[index]))
    assert [chunk.generate_token_len for chunk in streams[index]] == counts
    assert counts[-1] == 30


@each_answer
def test_each_chunk_knows_the_prompts_tokens(
    index: int, streams: Chunks, answers: list[Response]
) -> None:
    counts = {chunk.input_token_len for chunk in streams[index]}
    assert counts == {answers[index].input_token_len}


@each_answer
def test_chunks_can_be_put_together(index: int, streams: Chunks, answers: list[Response]) -> None:
    whole, *others = streams[index]
    for chunk in others:
        whole = whole.extend(chunk)
    assert (whole.text, whole.index) == (answers[index].text, index)
    assert whole.token_ids == answers[index].token_ids
    assert (whole.generate_token_len, whole.finish_reason) == (30, "length")


def test_there_is_a_stream_for_each_prompt(streams: dict[int, list[Response]]) -> None:
    assert sorted(streams) == [0, 1, 2, 3]


def test_one_prompt_is_a_stream_of_index_zero(pipe: Pipeline) -> None:
    chunks = list(pipe.stream_infer("red", gen_config=LONG))
    assert {chunk.index for chunk in chunks} == {0} and len(chunks) > 2
    assert "".join(chunk.text for chunk in chunks) == pipe("red", LONG).text


def test_chunks_of_several_answers_are_interleaved(pipe: Pipeline) -> None:
    # Longer than it takes to prepare the second prompt.
    config = GenerationConfig(max_new_tokens=400, ignore_eos=True)
    indices = [chunk.index for chunk in pipe.stream_infer(["red", "blue"], gen_config=config)]
    assert set(indices) == {0, 1}
    assert indices != sorted(indices) and indices != sorted(indices, reverse=True)


def test_each_prompt_may_have_its_own_config(pipe: Pipeline) -> None:
    configs = [GenerationConfig(max_new_tokens=n, ignore_eos=True) for n in (2, 7)]
    streams = by_index(pipe.stream_infer(["red", "red"], gen_config=configs))
    assert [streams[index][-1].generate_token_len for index in (0, 1)] == [2, 7]


def test_a_sampled_answer_is_the_same_streamed_and_whole(pipe: Pipeline) -> None:
    config = GenerationConfig(max_new_tokens=20, ignore_eos=True, do_sample=True, random_seed=11)
    chunks = list(pipe.stream_infer("red", gen_config=config))
    assert "".join(chunk.text for chunk in chunks) == pipe("red", config).text


@pytest.mark.parametrize("what", ["gen_config", "sessions"])
def test_a_list_of_another_length_is_told_at_once_and_nothing_hangs(
    what: str, pipe: Pipeline
) -> None:
    lists = {"gen_config": [LONG] * 3, "sessions": [pipe.session() for _ in range(3)]}
    with pytest.raises(ValueError, match="3 .* for 2 prompts"):
        pipe.stream_infer(["red", "blue"], **{what: lists[what]})


def test_a_prompt_that_fails_is_one_chunk_and_the_others_go_on(pipe: Pipeline) -> None:
    prompts = ["red", ("x", "/nowhere/a.png"), "blue"]
    streams = by_index(pipe.stream_infer(prompts, gen_config=LONG))
    [failed] = streams[1]
    assert (failed.finish_reason, failed.error_code) == ("error", "preprocess_failed")
    assert (failed.text, failed.token_ids, failed.generate_token_len) == ("", [], 0)
    texts = ["".join(chunk.text for chunk in streams[index]) for index in (0, 2)]
    assert texts == [r.text for r in pipe(["red", "blue"], LONG)]


def test_without_streaming_each_answer_is_one_whole_chunk(pipe: Pipeline) -> None:
    chunks = pipe.stream_infer(["red", "blue"], gen_config=LONG, stream_response=False)
    streams = by_index(chunks)
    for index, answer in enumerate(pipe(["red", "blue"], LONG)):
        [chunk] = streams[index]
        assert (chunk.text, chunk.token_ids) == (answer.text, answer.token_ids)
        assert chunk.finish_reason == "length"


@pytest.mark.parametrize("text", ["日本の星", "😀😀 red", "naïve ☂", "한국어"])
def test_a_character_of_several_tokens_comes_whole(
    text: str, pipe: Pipeline, tokenizer: Tokenizer
) -> None:
    config = script(tokenizer, text)
    assert config.max_new_tokens is not None and config.max_new_tokens > len(text.split())
    chunks = list(pipe.stream_infer("red", gen_config=config))
    assert "".join(chunk.text for chunk in chunks) == text
    assert not any("\ufffd" in chunk.text for chunk in chunks)
    assert len(chunks) > 2


def test_half_a_character_at_the_end_is_given_out_at_last(
    pipe: Pipeline, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("red 日", add_bos=False)[:-1]
    config = GenerationConfig(
        max_new_tokens=len(ids), ignore_eos=True, logits_processors=saying(ids)
    )
    *chunks, last = pipe.stream_infer("red", gen_config=config)
    assert "".join(chunk.text for chunk in chunks).startswith("red ")
    assert chunks[-1].text.endswith("\ufffd") and last.text == ""
    assert "".join(chunk.text for chunk in chunks) == pipe("red", config).text


@pytest.mark.parametrize("is_included", [False, True])
def test_nothing_of_a_stop_word_is_shown_before_it_is_known_to_be_none(
    is_included: bool, pipe: Pipeline, tokenizer: Tokenizer
) -> None:
    config = script(
        tokenizer,
        "a red square, a red star, a blue one",
        stop_words=["red star"],
        include_stop_str_in_output=is_included,
    )
    texts = [chunk.text for chunk in pipe.stream_infer("x", gen_config=config)]
    shown = list(accumulate(texts))
    whole = "a red square, a red star" if is_included else "a red square, a "
    assert shown[-1] == whole == pipe("x", config).text
    assert not any(text.endswith("red ") for text in shown[:-1])


def test_logprobs_come_with_the_tokens_they_belong_to(pipe: Pipeline) -> None:
    config = GenerationConfig(max_new_tokens=12, ignore_eos=True, logprobs=2)
    *chunks, last = pipe.stream_infer("red", gen_config=config)
    for chunk in chunks:
        assert [next(iter(values)) for values in chunk.logprobs] == chunk.token_ids
    assert last.logprobs is None
    streamed = [values for chunk in chunks for values in chunk.logprobs]
    assert [list(values) for values in streamed] == [
        list(values) for values in pipe("red", config).logprobs
    ]


def test_a_session_ends_its_own_answer_and_no_other(pipe: Pipeline) -> None:
    config = GenerationConfig(max_new_tokens=600, ignore_eos=True)
    first, second = pipe.session(), pipe.session()
    chunks = pipe.stream_infer(["red", "blue"], [first, second], gen_config=config)
    seen = []
    for chunk in chunks:
        seen.append(chunk)
        if chunk.index == 0 and len(seen) > 2 and chunk.finish_reason is None:
            first.abort()
    streams = by_index(seen)
    assert streams[0][-1].finish_reason == "abort"
    assert streams[0][-1].error_code == "request_cancelled"
    assert streams[1][-1].finish_reason == "length"
    assert "".join(c.text for c in streams[1]) == pipe("blue", config).text


def test_a_session_of_a_stream_has_no_history_from_it(pipe: Pipeline) -> None:
    session = pipe.session()
    assert list(pipe.stream_infer("red", session, LONG))[-1].finish_reason == "length"
    assert session.history == []


def test_a_stream_that_is_left_is_no_hindrance(pipe: Pipeline) -> None:
    endless = GenerationConfig(max_new_tokens=None, ignore_eos=True)
    for chunk in pipe.stream_infer(["red"] * 50, gen_config=endless):
        assert chunk.text
        break
    assert pipe("blue", LONG).generate_token_len == 30


def test_several_answers_to_a_prompt_are_streams_by_choice(pipe: Pipeline) -> None:
    config = GenerationConfig(
        n=2, max_new_tokens=10, ignore_eos=True, do_sample=True, temperature=2.0, random_seed=1
    )
    texts = {0: "", 1: ""}
    for chunk in pipe.stream_infer("red", gen_config=config):
        assert chunk.index == 0
        texts[chunk.choice] += chunk.text
    assert list(texts.values()) == [r.text for r in pipe("red", config)]
    assert texts[0] != texts[1]


def test_extending_takes_counts_and_reason_of_the_later_chunk() -> None:
    first = Response("a", 1, 5, token_ids=[7], logprobs=[{7: -0.5}], index=2)
    second = Response("b", 2, 5, "stop", [8], [{8: -1.0}], index=2, cached_tokens=4)
    whole = first.extend(second)
    assert (whole.text, whole.token_ids) == ("ab", [7, 8])
    assert whole.logprobs == [{7: -0.5}, {8: -1.0}]
    assert (whole.generate_token_len, whole.finish_reason, whole.index) == (2, "stop", 2)
    failed = first.extend(Response("", 0, 5, "error", error_code="internal_error"))
    assert (failed.text, failed.error_code) == ("a", "internal_error")
