"""LoRA adapters by name through the front door: calls, streams and conversations."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from tests.engine.runner.grammars import as_regex, as_schema
from tests.engine.test_formats import keeps
from tests.engine.test_offline import FLOAT32, SHORT, picture
from tests.peft_adapters import save_adapter
from vlmflow_engine import GenerationConfig, Response, pipeline

NAMES = (None, "stars", "moons")
LONG = GenerationConfig(max_new_tokens=60, ignore_eos=True)
LONGER = replace(LONG, max_new_tokens=300)  # than it takes to prepare all that is asked
PROMPTS = ["how many are there", ("what is it", picture(3)), ("and these", [picture(4)] * 2)]
# The same prompt under every name, long enough to be cached.
SHARED = ("of all that can be seen in here " * 4, picture(5))


@pytest.fixture(scope="module")
def pipe(tiny_llava, tmp_path_factory):
    adapters = {
        name: str(save_adapter(tmp_path_factory.mktemp(name), seed=seed))
        for seed, name in enumerate(NAMES[1:], 1)
    }
    with pipeline(str(tiny_llava), replace(FLOAT32, adapters=adapters)) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def alone(pipe) -> dict[str | None, list[list[int]]]:
    """The tokens of every prompt's answer under every name, one at a time."""
    answers = {
        name: [pipe(prompt, LONG, adapter_name=name).token_ids for prompt in PROMPTS]
        for name in NAMES
    }
    assert len({tuple(answer) for own in answers.values() for answer in own}) == 9
    return answers


def in_turns(streams: dict[Any, Iterator[Response]]) -> Iterator[tuple[Any, Response]]:
    """Take one chunk of each stream after the other, until all have ended."""
    while streams:
        for key, stream in list(streams.items()):
            chunk = next(stream, None)
            if chunk is None:
                del streams[key]
            else:
                yield key, chunk


def test_streams_of_several_adapters_and_of_none_share_steps_and_answer_as_alone(pipe, alone):
    streams = {
        name: pipe.stream_infer(PROMPTS, gen_config=LONGER, adapter_name=name) for name in NAMES
    }
    answers: dict[Any, list[list[int]]] = {name: [[] for _ in PROMPTS] for name in NAMES}
    most_running = 0
    for name, chunk in in_turns(streams):
        answers[name][chunk.index] += chunk.token_ids
        most_running = max(most_running, pipe.stats.num_running)
    length = LONG.max_new_tokens
    assert {name: [ids[:length] for ids in own] for name, own in answers.items()} == alone
    assert most_running > 2 * len(PROMPTS)  # no two calls could be so many


def test_calls_from_threads_have_their_own_adapters(pipe, alone):
    with ThreadPoolExecutor(6) as pool:
        calls = [
            (name, pool.submit(partial(pipe.infer, PROMPTS, LONG, adapter_name=name)))
            for name in NAMES * 2
        ]
    for name, call in calls:
        assert [response.token_ids for response in call.result()] == alone[name]


def test_a_form_is_kept_under_an_adapter_and_the_answer_is_the_adapters(pipe):
    colours = {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 6, "maxItems": 6}
    forms = [as_schema(colours), as_regex("[a-z]{12}")]
    config = GenerationConfig(max_new_tokens=200, do_sample=True, random_seed=1)
    configs = [replace(config, response_format=form) for form in forms]
    expected = {
        name: [pipe("say it", c, adapter_name=name).text for c in configs] for name in NAMES
    }
    streams = {
        name: pipe.stream_infer(["say it"] * 2, None, configs, adapter_name=name) for name in NAMES
    }
    texts = {name: ["", ""] for name in NAMES}
    for name, chunk in in_turns(streams):
        assert chunk.error_code is None
        texts[name][chunk.index] += chunk.text
    assert texts == expected
    assert all(keeps(forms[index], own[index]) for own in texts.values() for index in range(2))
    assert len({tuple(own) for own in texts.values()}) == 3


def test_a_conversation_reuses_what_its_own_adapter_has_computed_and_nothing_else(pipe):
    sessions = {}
    for name in NAMES:
        session = pipe.chat(SHARED, gen_config=SHORT, adapter_name=name)
        assert session.response.cached_tokens == 0, "computed under another adapter"
        assert session.response.text == pipe(SHARED, SHORT, adapter_name=name).text
        sessions[name] = session
    assert len({session.response.text for session in sessions.values()}) == 3
    first_turn = sessions["stars"].response.input_token_len
    for name in NAMES:
        session = pipe.chat("are you sure", sessions[name], SHORT, adapter_name=name)
        assert session.response.cached_tokens >= first_turn // 16 * 16
        assert len(session.history) == 2


def test_a_turn_under_another_adapter_is_computed_from_its_beginning(pipe):
    prompt = ("a story of many words, told by two " * 3, picture(8))
    session = pipe.chat(prompt, gen_config=SHORT, adapter_name="stars")
    pipe.chat("go on", session, SHORT, adapter_name="moons")
    assert session.response.finish_reason == "length"
    assert session.response.cached_tokens == 0
    again = pipe.chat("go on", session, SHORT, adapter_name="moons").response
    assert again.cached_tokens > 0


@pytest.mark.parametrize("name", ["suns", "", 5, ["stars"]], ids=str)
def test_an_adapter_that_is_not_known_is_an_error_of_those_who_ask_for_it(pipe, alone, name):
    others = pipe.stream_infer(PROMPTS, gen_config=LONG, adapter_name="stars")
    answers: list[list[int]] = [[] for _ in PROMPTS]
    for number, chunk in enumerate(others):
        answers[chunk.index] += chunk.token_ids
        if number == 5:
            failed = [
                *pipe(["red", ("x", picture(1))], SHORT, adapter_name=name),
                *pipe.stream_infer("red", adapter_name=name),
            ]
            session = pipe.chat("red", gen_config=SHORT, adapter_name=name)
    assert answers == alone["stars"]
    for response in [*failed, session.response]:
        assert (response.finish_reason, response.error_code) == ("error", "invalid_request")
        assert response.error_message == (
            f"adapter_name={name!r} is not known; the engine's adapters are 'stars', 'moons'"
        )
    assert len(failed) == 3 and session.history == []


def test_several_answers_of_one_adapter_are_those_of_its_seeds(pipe):
    config = GenerationConfig(
        max_new_tokens=12, ignore_eos=True, do_sample=True, random_seed=3, n=3
    )
    answers = {name: pipe("red", config, adapter_name=name) for name in NAMES}
    first = {name: pipe("red", replace(config, n=1), adapter_name=name).text for name in NAMES}
    assert {name: own[0].text for name, own in answers.items()} == first
    assert len({response.text for own in answers.values() for response in own}) == 9
