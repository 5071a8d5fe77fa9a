"""Launching a step before the tokens of the last one are home changes when, and nothing else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.whole_engine import answers
from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.engine import Engine
from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.models.registry import eos_token_ids, read_config
from vlmflow_engine.request import Request
from vlmflow_engine.sequence import Sequence

PROMPTS = [[5, 6, 7], [9] * 20, [5, 6, 7, 8], [11, 3] * 9, [4]]


@pytest.fixture
def make_engine(tiny_llava: Path) -> Any:
    def make(**config: Any) -> Engine:
        model_config = read_config(tiny_llava)
        asked = PytorchEngineConfig(
            dtype="float32", language_model_only=True, **{"num_gpu_blocks": 40} | config
        )
        return Engine(
            tiny_llava,
            model_config,
            asked,
            None,
            eos_token_ids=eos_token_ids(tiny_llava, model_config),
            rows_per_image=0,
        )

    return make


def requests(**generation: Any) -> Iterator[Request]:
    for number, prompt in enumerate(PROMPTS):
        config = GenerationConfig(
            **{"max_new_tokens": 3 + 4 * number, "ignore_eos": True} | generation
        )
        yield Request(number, tuple(prompt), (), config, seed=number)


@pytest.mark.parametrize(
    "generation",
    [
        {},
        {"do_sample": True, "temperature": 1.5, "top_k": 0},
        {"do_sample": True, "top_k": 5, "logprobs": 3},
        {"repetition_penalty": 1.3},
        {"min_new_tokens": 5, "ignore_eos": False},
        {"repetition_ngram_size": 1, "repetition_ngram_threshold": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("config", [{}, {"num_gpu_blocks": 5}, {"max_batch_size": 2}], ids=str)
def test_answers_are_those_of_one_step_after_the_other(generation, config, make_engine):
    expected = answers(make_engine(**config), list(requests(**generation)))
    assert len(expected) == len(PROMPTS)
    asked = answers(make_engine(**config, async_scheduling=True), list(requests(**generation)))
    assert asked == expected


def test_the_first_step_brings_nothing_home_and_every_other_the_tokens_of_the_one_before(
    make_engine,
):
    engine = make_engine(async_scheduling=True)
    engine.add_request(Request(0, (5, 6), (), GenerationConfig(max_new_tokens=3), seed=0))
    lengths = []
    while engine.num_unfinished:
        engine.step()
        lengths.append(engine.stats.num_output_tokens)
    # Three tokens take three steps; nobody launches a fourth.
    assert lengths == [0, 1, 2, 3]
    assert engine.stats.num_steps == 3


@pytest.mark.parametrize("num_tokens", [2, 3, 4])
def test_who_is_sent_away_while_nothing_is_launched_comes_back_to_the_blocks_he_gets(
    num_tokens, make_engine
):
    # Where the first one's last token is on its way as the second one wants a third block, the
    # second is sent away by a plan that computes nothing.
    asked = [
        Request(0, (9,) * 15, (), GenerationConfig(max_new_tokens=num_tokens), seed=0),
        Request(1, tuple(range(5, 35)), (), GenerationConfig(max_new_tokens=30), seed=0),
    ]
    for request in asked:
        request.generation.ignore_eos = True
    config = {"num_gpu_blocks": 4, "enable_prefix_caching": False}
    expected = answers(make_engine(num_gpu_blocks=40), asked)
    assert answers(make_engine(**config, async_scheduling=True), asked) == expected


def test_where_the_host_must_know_a_token_it_comes_home_in_the_same_step(make_engine):
    engine = make_engine(async_scheduling=True)
    config = GenerationConfig(max_new_tokens=3, repetition_penalty=1.2)
    engine.add_request(Request(0, (5, 6), (), config, seed=0))
    grown = []
    while engine.num_unfinished:
        grown.append(len(engine.step()))
    assert grown == [1, 1, 1]


def test_an_answer_that_ends_while_its_next_step_runs_gets_no_token_more(make_engine):
    engine = make_engine(async_scheduling=True)
    asked = Request(0, (5, 6, 7), (), GenerationConfig(max_new_tokens=20, ignore_eos=True), seed=0)
    (full,) = answers(make_engine(), [asked]).values()
    stop = next(index for index in range(2, 20) if full[index] not in full[:index])
    config = GenerationConfig(max_new_tokens=20, ignore_eos=True, stop_token_ids=[full[stop]])
    (stopped,) = answers(engine, [Request(1, (5, 6, 7), (), config, seed=0)]).values()
    assert stopped == full[: stop + 1]
    # What was on its way is dropped, and harms nobody.
    assert answers(engine, list(requests())) == answers(make_engine(), list(requests()))


def test_a_request_taken_back_in_flight_leaves_nothing(make_engine):
    engine = make_engine(async_scheduling=True)
    for request in requests():
        engine.add_request(request)
    for _ in range(3):
        engine.step()
    engine.abort(1)
    grown: list[Sequence] = []
    while engine.num_unfinished:
        grown += engine.step()
    assert all(sequence.request.request_id != 1 for sequence in grown)
    assert answers(engine, list(requests())) == answers(make_engine(), list(requests()))


def test_after_a_failed_step_who_waited_is_answered_as_ever(make_engine, monkeypatch):
    engine = make_engine(async_scheduling=True, max_batch_size=2)
    expected = answers(make_engine(), list(requests()))
    for request in requests():
        engine.add_request(request)
    engine.step()
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "launch", lambda plan: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    aborted = {sequence.request.request_id for sequence in engine.abort_step()}
    assert aborted == {0, 1}
    finished = {}
    while engine.num_unfinished:
        for sequence in engine.step():
            if sequence.finish_reason is not None:
                finished[sequence.request.request_id] = sequence.output_token_ids
    assert finished == {number: expected[number] for number in (2, 3, 4)}
