"""Streams and conversations: chunks make up the answers, turns build on one another."""

import threading
from itertools import groupby

import pytest

from tests.engine.test_offline import FLOAT32, SHORT, picture
from vlmflow_engine import GenerationConfig, Pipeline, Response, pipeline
from vlmflow_engine.errors import ConfigError, RequestConflictError
from vlmflow_engine.session import Session

LONG = GenerationConfig(max_new_tokens=40, ignore_eos=True)
ENDLESS = GenerationConfig(max_new_tokens=None, ignore_eos=True)


@pytest.fixture(scope="module")
def pipe(tiny_llava):
    with pipeline(str(tiny_llava), backend_config=FLOAT32) as pipe:
        yield pipe


def joined(chunks: list[Response]) -> Response:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole.extend(chunk)
    return whole


def by_prompt(chunks) -> list[list[Response]]:
    ordered = sorted(chunks, key=lambda chunk: chunk.index)  # stable
    return [list(group) for _, group in groupby(ordered, key=lambda chunk: chunk.index)]


PROMPTS = ["red", ("what is it", picture(3)), "how many stars are there", ("x", picture(4))]


def test_chunks_of_all_prompts_make_up_what_infer_answers(pipe):
    streams = by_prompt(pipe.stream_infer(PROMPTS, gen_config=LONG))
    for stream, answer in zip(streams, pipe(PROMPTS, LONG), strict=True):
        whole = joined(stream)
        assert (whole.text, whole.token_ids) == (answer.text, answer.token_ids)
        assert whole.generate_token_len == answer.generate_token_len
        assert whole.finish_reason == answer.finish_reason == "length"


def test_every_chunk_but_the_last_has_text_and_tokens_and_the_last_a_reason(pipe):
    for stream in by_prompt(pipe.stream_infer(PROMPTS, gen_config=LONG)):
        *chunks, last = stream
        assert all(c.text and c.token_ids and c.finish_reason is None for c in chunks)
        assert last.finish_reason == "length" and last.text == ""
        lengths = [c.generate_token_len for c in stream]
        assert lengths == sorted(lengths)


def test_answers_are_interleaved_and_do_not_wait_for_one_another(pipe):
    longer = GenerationConfig(max_new_tokens=500, ignore_eos=True)  # than preparing the second
    indices = [chunk.index for chunk in pipe.stream_infer(["red", "blue"], gen_config=longer)]
    assert indices != sorted(indices)


def test_a_bad_prompt_is_one_chunk_and_the_others_go_on(pipe):
    streams = by_prompt(pipe.stream_infer(["red", 5, "blue"], gen_config=SHORT))
    assert [len(stream) for stream in streams][1] == 1
    assert streams[1][0].error_code == "invalid_request"
    assert [joined(s).text for s in streams[::2]] == [r.text for r in pipe(["red", "blue"], SHORT)]


def test_without_streaming_there_is_a_chunk_an_answer(pipe):
    chunks = list(pipe.stream_infer(["red", "blue"], gen_config=SHORT, stream_response=False))
    assert sorted(c.index for c in chunks) == [0, 1]


def test_a_stream_that_is_left_gives_everything_back(pipe):
    for _ in pipe.stream_infer(["red"] * 200, gen_config=ENDLESS):
        break
    assert pipe("blue", SHORT).finish_reason == "length"
    assert pipe.stats.num_running <= 1


def test_two_streams_and_a_call_of_one_thread_do_not_wait_for_each_other(pipe):
    first = pipe.stream_infer("red", gen_config=LONG)
    second = pipe.stream_infer("blue", gen_config=LONG)
    chunks = [next(first), next(second), next(first)]
    whole = pipe(["red", "blue"], LONG)
    assert joined([chunks[0], chunks[2], *first]).text == whole[0].text
    assert joined([chunks[1], *second]).text == whole[1].text


def test_threads_share_a_pipeline(pipe):
    expected = pipe(["red", "blue", "green"], LONG)
    answers = {}

    def ask(index: int, prompt: str) -> None:
        answers[index] = [pipe(prompt, LONG) for _ in range(3)]

    threads = [threading.Thread(target=ask, args=(i, p)) for i, p in enumerate(["red", "blue"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, responses in answers.items():
        assert {r.text for r in responses} == {expected[index].text}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_lists_of_another_length_are_refused_at_once(pipe, count):
    with pytest.raises(ValueError, match=f"{count} gen_configs for 2 prompts"):
        pipe(["red", "blue"], [SHORT] * count)
    with pytest.raises(ValueError, match=f"{count} gen_configs for 2 prompts"):
        pipe.stream_infer(["red", "blue"], gen_config=[SHORT] * count)
    if count:
        with pytest.raises(ValueError, match=f"{count} sessions for 2 prompts"):
            pipe.stream_infer(["red", "blue"], [Session() for _ in range(count)])


def test_a_config_that_was_changed_is_checked_again(pipe):
    config = GenerationConfig()
    config.top_p = 7.0
    with pytest.raises(ConfigError, match="top_p"):
        pipe("red", config)


def test_a_generator_is_taken_a_bounded_way_ahead(tiny_llava):
    taken = 0

    def prompts():
        nonlocal taken
        for index in range(500):
            taken += 1
            yield f"star {index}"

    with Pipeline(str(tiny_llava), FLOAT32) as pipe:
        look_ahead = 2 * pipe.info.max_batch_size
        for number, _ in enumerate(pipe.iter_infer(prompts(), SHORT), 1):
            assert taken <= number + 2 * look_ahead
        assert number == taken == 500


def test_answers_come_in_order_or_as_they_are_done(pipe):
    prompts = ["red", "blue", "green", "star"]
    configs = [GenerationConfig(max_new_tokens=n, ignore_eos=True) for n in (800, 1, 500, 5)]
    ordered = list(pipe.iter_infer(prompts, configs))
    done = list(pipe.iter_infer(prompts, configs, is_ordered=False))
    assert [r.index for r in ordered] == [0, 1, 2, 3]
    assert [r.index for r in done] == [1, 3, 2, 0]
    assert [r.text for r in ordered] == [r.text for r in sorted(done, key=lambda r: r.index)]


def test_a_stop_word_ends_an_answer_whole_or_streamed(pipe):
    text = pipe("red", LONG).text
    word = text[len(text) // 2 : len(text) // 2 + 3]
    config = GenerationConfig(max_new_tokens=40, ignore_eos=True, stop_words=[word])
    answer = pipe("red", config)
    assert answer.text == text[: text.find(word)] and answer.finish_reason == "stop"
    assert answer.generate_token_len == len(answer.token_ids)
    whole = joined(list(pipe.stream_infer("red", gen_config=config)))
    assert (whole.text, whole.token_ids) == (answer.text, answer.token_ids)
    kept = GenerationConfig(
        max_new_tokens=40, ignore_eos=True, stop_words=[word], include_stop_str_in_output=True
    )
    assert pipe("red", kept).text == text[: text.find(word)] + word


def test_a_conversation_is_told_from_its_beginning(pipe):
    session = pipe.chat(("what is it", picture(3)), gen_config=SHORT)
    first = session.response.text
    assert session.history == [(session.prompt, first)]
    pipe.chat("are you sure", session, gen_config=SHORT)
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": picture(3)},
                {"type": "text", "text": "what is it"},
            ],
        },
        {"role": "assistant", "content": first},
        {"role": "user", "content": "are you sure"},
    ]
    assert session.response.text == pipe(messages, SHORT).text
    assert [answer for _, answer in session.history] == [first, session.response.text]


def test_a_second_turn_reuses_what_the_first_has_computed(pipe):
    session = pipe.chat(("tell me of the stars " * 5, picture(9)), gen_config=SHORT)
    assert session.response.cached_tokens == 0
    length = session.response.input_token_len
    pipe.chat("and", session, gen_config=SHORT)
    assert session.response.cached_tokens >= length // 16 * 16


def test_a_streamed_turn_is_in_the_history_once_it_is_complete(pipe):
    session = Session()
    chunks = list(pipe.chat("red", session, SHORT, stream_response=True))
    assert session.history == [("red", "".join(c.text for c in chunks))]
    assert session.history[0][1] == pipe("red", SHORT).text


def test_a_turn_that_fails_is_not_in_the_history(pipe):
    session = pipe.chat(("x", "/nowhere.png"), gen_config=SHORT)
    assert session.response.finish_reason == "error" and session.history == []
    assert pipe.chat("red", session, SHORT).history[0][0] == "red"


def test_a_session_answers_one_turn_at_a_time_and_can_be_aborted(pipe):
    session = pipe.session()
    chunks = pipe.chat("red", session, ENDLESS, stream_response=True)
    next(chunks)
    with pytest.raises(RequestConflictError, match="still answering"):
        pipe.chat("blue", session, SHORT)
    session.abort()
    assert list(chunks)[-1].finish_reason == "abort"
    assert session.history == []
    assert pipe.chat("blue", session, SHORT).response.finish_reason == "length"


def test_a_session_can_be_read_and_forgotten(pipe):
    with pipe.session() as session:
        pipe.chat("red", session, SHORT)
        assert f"Session(id={session.session_id})" in str(session)
        assert "USER: 'red'" in str(session)
        session.reset()
        assert session.history == [] and session.response is None
