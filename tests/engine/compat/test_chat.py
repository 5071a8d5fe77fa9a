"""`chat` and `session`: turns build on one another, and nobody hears another's conversation."""

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from tests.engine.inputs.pictures import noise
from vlmflow_engine import (
    GenerationConfig,
    Pipeline,
    PytorchEngineConfig,
    Session,
    pipeline,
)
from vlmflow_engine.errors import RequestConflictError

SHORT = GenerationConfig(max_new_tokens=8, ignore_eos=True)
ENDLESS = GenerationConfig(max_new_tokens=None, ignore_eos=True)
IMAGE, OTHER = noise(96, 96, seed=4), noise(96, 96, seed=5)


def user(*parts: Any) -> dict[str, Any]:
    """A message of texts and images."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_data", "image_data": {"data": part}}
        for part in parts
    ]
    return {"role": "user", "content": content}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def test_the_example_of_the_documentation_runs(pipe: Pipeline) -> None:
    session = pipe.chat(("What is in this image?", IMAGE), gen_config=SHORT)
    assert isinstance(session, Session)
    first = session.response.text
    again = pipe.chat("How many objects are there?", session=session, gen_config=SHORT)
    assert again is session
    assert [answer for _, answer in session.history] == [first, session.response.text]
    assert [prompt for prompt, _ in session.history] == [
        ("What is in this image?", IMAGE),
        "How many objects are there?",
    ]


def test_a_second_turn_sends_the_first_ones_image_again(pipe: Pipeline) -> None:
    session = pipe.chat(("what is it", IMAGE), gen_config=SHORT)
    first = session.response.text
    pipe.chat("and now", session, SHORT)
    messages = [user(IMAGE, "what is it"), assistant(first), user("and now")]
    whole = pipe(messages, SHORT)
    assert session.response.token_ids == whole.token_ids
    assert session.response.input_token_len == whole.input_token_len
    messages[0] = user(OTHER, "what is it")
    assert session.response.token_ids != pipe(messages, SHORT).token_ids


def test_a_second_turn_may_bring_an_image_of_its_own(pipe: Pipeline) -> None:
    session = pipe.chat(("what is it", IMAGE), gen_config=SHORT)
    first = session.response.text
    pipe.chat(("and this", [OTHER]), session, SHORT)
    messages = [user(IMAGE, "what is it"), assistant(first), user(OTHER, "and this")]
    assert session.response.token_ids == pipe(messages, SHORT).token_ids


def test_a_turn_may_be_a_list_of_messages(pipe: Pipeline) -> None:
    system = {"role": "system", "content": "Be brief."}
    session = pipe.chat([system, user("what is it", IMAGE)], gen_config=SHORT)
    first = session.response.text
    pipe.chat([user("are you sure")], session, SHORT)
    messages = [system, user(IMAGE, "what is it"), assistant(first), user("are you sure")]
    assert session.response.token_ids == pipe(messages, SHORT).token_ids


def test_a_history_that_a_script_has_kept_is_gone_on_with(pipe: Pipeline) -> None:
    session = pipe.session()
    session.history = [("hello", "good day"), (("what is it", IMAGE), "a star")]
    pipe.chat("why", session, SHORT)
    messages = [
        user("hello"),
        assistant("good day"),
        user(IMAGE, "what is it"),
        assistant("a star"),
        user("why"),
    ]
    assert session.response.token_ids == pipe(messages, SHORT).token_ids
    assert len(session.history) == 3


def test_a_second_turn_finds_the_first_in_the_prefix_cache(pipe: Pipeline) -> None:
    session = pipe.chat(("tell me all about it, and slowly", noise(96, 96, seed=77)), None, SHORT)
    assert session.response.cached_tokens < 16
    num_prompt = session.response.input_token_len
    pipe.chat("go on", session, SHORT)
    assert session.response.cached_tokens >= num_prompt // 16 * 16


def test_two_sessions_do_not_hear_one_another(pipe: Pipeline) -> None:
    first, second = pipe.session(), pipe.session()
    assert first.session_id != second.session_id
    pipe.chat(("what is it", IMAGE), first, SHORT)
    pipe.chat(("what is it", OTHER), second, SHORT)
    pipe.chat("and", first, SHORT)
    pipe.chat("or", second, SHORT)
    for session, image, word in [(first, IMAGE, "and"), (second, OTHER, "or")]:
        alone = pipe.chat(word, pipe.chat(("what is it", image), None, SHORT), SHORT)
        assert [text for _, text in session.history] == [text for _, text in alone.history]


def test_two_streamed_turns_of_two_sessions_run_at_once(pipe: Pipeline) -> None:
    sessions = [pipe.session(), pipe.session()]
    streams = [
        pipe.chat(word, session, SHORT, stream_response=True)
        for word, session in zip(["red", "blue"], sessions, strict=True)
    ]
    begun = [next(stream) for stream in streams]
    texts = [
        chunk.text + "".join(rest.text for rest in stream)
        for chunk, stream in zip(begun, streams, strict=True)
    ]
    assert texts == [r.text for r in pipe(["red", "blue"], SHORT)]
    assert [session.history for session in sessions] == [
        [("red", texts[0])],
        [("blue", texts[1])],
    ]


def test_a_streamed_turn_is_chunks_and_then_history(pipe: Pipeline) -> None:
    session = pipe.session()
    chunks = []
    for chunk in pipe.chat(("what is it", IMAGE), session, SHORT, stream_response=True):
        chunks.append(chunk)
        assert session.response.text == "".join(c.text for c in chunks)
    assert chunks[-1].finish_reason == "length" and len(chunks) > 2
    assert session.response.generate_token_len == 8
    assert session.history == [(("what is it", IMAGE), session.response.text)]


def test_a_turn_that_fails_is_told_and_forgotten(pipe: Pipeline) -> None:
    session = pipe.chat("red", gen_config=SHORT)
    before = list(session.history)
    pipe.chat(("x", "/nowhere/a.png"), session, SHORT)
    assert session.response.error_code == "preprocess_failed"
    assert session.prompt == ("x", "/nowhere/a.png")
    assert session.history == before
    pipe.chat("blue", session, SHORT)
    assert session.response.error_code is None and len(session.history) == 2


def test_a_turn_that_outgrows_the_context_is_an_error(pipe: Pipeline) -> None:
    session = pipe.session()
    session.history = [("word " * 600, "yes")]
    pipe.chat("and", session, SHORT)
    assert session.response.error_code == "context_length_exceeded"
    assert len(session.history) == 1


@pytest.mark.parametrize("do_preprocess", [None, True])
def test_a_turn_is_put_into_the_chat_template(do_preprocess: Any, pipe: Pipeline) -> None:
    session = pipe.chat("red", gen_config=SHORT, do_preprocess=do_preprocess)
    assert session.response.input_token_len == pipe("red", SHORT).input_token_len


def test_without_preprocessing_a_turn_is_the_text_as_it_is(pipe: Pipeline) -> None:
    session = pipe.chat("USER: red ASSISTANT:", gen_config=SHORT, do_preprocess=False)
    assert session.response.token_ids == pipe("red", SHORT).token_ids


def test_a_busy_session_takes_no_second_turn(pipe: Pipeline) -> None:
    session = pipe.session()
    stream = pipe.chat("red", session, ENDLESS, stream_response=True)
    next(stream)
    assert "is_active=True" in repr(session)
    with pytest.raises(RequestConflictError, match=f"session {session.session_id}"):
        pipe.chat("blue", session, SHORT)
    stream.close()
    assert pipe.chat("blue", session, SHORT).response.finish_reason == "length"


@pytest.mark.parametrize("how", ["abort", "async_abort", "close", "async_close"])
def test_a_turn_can_be_ended_from_outside(how: str, pipe: Pipeline) -> None:
    session = pipe.session()
    stream = pipe.chat("red", session, ENDLESS, stream_response=True)
    next(stream)
    end = getattr(session, how)
    if how.startswith("async"):
        asyncio.run(end())
    else:
        end()
    assert list(stream)[-1].finish_reason == "abort"
    assert session.history == [] and "is_active=False" in repr(session)


def test_leaving_a_stream_ends_its_turn(pipe: Pipeline) -> None:
    session = pipe.session()
    for chunk in pipe.chat("red", session, ENDLESS, stream_response=True):
        assert chunk.finish_reason is None
        break
    assert session.history == []
    assert pipe.chat("blue", session, SHORT).response.text == pipe("blue", SHORT).text


def test_a_session_can_be_called(pipe: Pipeline) -> None:
    with pipe.session() as session:
        texts = [chunk.text for chunk in session("red", SHORT)]
        response = session("why", gen_config=SHORT, stream_response=False)
    assert "".join(texts) == pipe("red", SHORT).text
    assert response is session.response
    assert [prompt for prompt, _ in session.history] == ["red", "why"]
    asked = pipe.chat("why", pipe.chat("red", gen_config=SHORT), SHORT)
    assert response.token_ids == asked.response.token_ids


def test_the_chunks_of_a_turn_may_be_taken_from_the_session(pipe: Pipeline) -> None:
    session = pipe.session()
    pipe.chat("red", session, SHORT, stream_response=True)
    text = "".join(chunk.text for chunk in session.generator)
    assert text == pipe("red", SHORT).text
    assert session.history == [("red", text)] and session.generator is None


def test_a_session_without_its_pipeline_says_so(tiny_llava: Path) -> None:
    with pytest.raises(RuntimeError, match=r"pipe\.chat\(prompt, session\)"):
        Session()("red")
    config = PytorchEngineConfig(device_type="cpu", num_preprocess_workers=0)
    pipe = pipeline(str(tiny_llava), backend_config=config)
    session, held = pipe.session(), weakref.ref(pipe)
    del pipe
    gc.collect()
    assert held() is None
    with pytest.raises(RuntimeError, match="gone"):
        session("red")


def test_a_session_is_printed_as_a_conversation(pipe: Pipeline) -> None:
    session = pipe.chat("red", pipe.chat("blue", gen_config=SHORT), SHORT)
    lines = str(session).split("\n")
    assert lines[:2] == [f"Session(id={session.session_id})", "History:"]
    printed = str(session)
    places = [printed.index(word) for word in ("USER: 'blue'", "ASSISTANT: ", "USER: 'red'")]
    assert places == sorted(places)
    assert f"session_id={session.session_id}" in repr(session) and "turns=2" in repr(session)


def test_what_is_set_by_update_is_what_the_next_turn_uses(pipe: Pipeline) -> None:
    session = pipe.session()
    session.update(gen_config=GenerationConfig(max_new_tokens=3, ignore_eos=True))
    assert pipe.chat("red", session).response.generate_token_len == 3
    assert pipe.chat("red", session, SHORT).response.generate_token_len == 8


def test_a_session_that_is_reset_has_heard_nothing(pipe: Pipeline) -> None:
    session = pipe.chat(("what is it", IMAGE), gen_config=SHORT)
    epoch = session.epoch
    session.reset()
    assert (session.prompt, session.response, session.history) == (None, None, [])
    assert session.epoch > epoch
    assert pipe.chat("red", session, SHORT).response.text == pipe("red", SHORT).text
