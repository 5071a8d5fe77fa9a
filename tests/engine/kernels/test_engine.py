"""The whole engine through the kernels, as on a GPU: the answers are those of plain torch."""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_llama import save_tiny_llama
from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.engine import Engine
from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.kernels.attention_backend import without_cpp
from vlmflow_engine.kernels.dispatch import interpreting
from vlmflow_engine.models.registry import read_config
from vlmflow_engine.request import Request

# Prompts of one token, of a page and one more, and a short one.
PROMPTS = [[5], [9] * 17, [5, 6, 7]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny_llama"))


def make_engine(folder: Path, **config: Any) -> Engine:
    asked = PytorchEngineConfig(
        **{"dtype": "float32", "num_gpu_blocks": 24, "block_size": 16, "max_batch_size": 2} | config
    )
    return Engine(
        folder,
        read_config(folder),
        asked,
        None,
        eos_token_ids=frozenset(),
        rows_per_image=0,
    )


def requests(**generation: Any) -> Iterator[Request]:
    for number, prompt in enumerate(PROMPTS):
        config = GenerationConfig(**{"max_new_tokens": 2 + number} | generation)
        yield Request(number, tuple(prompt), (), config, seed=number)


def answers(engine: Engine, **generation: Any) -> dict[int, list[int]]:
    for request in requests(**generation):
        engine.add_request(request)
    finished: dict[int, list[int]] = {}
    while engine.num_unfinished:
        for sequence in engine.step():
            if sequence.finish_reason is not None:
                finished[sequence.request.request_id] = sequence.output_token_ids
    return finished


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[int, list[int]]:
    with without_cpp():
        engine = make_engine(folder)
    assert engine.info.attention_backend == "torch"
    return answers(engine)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"async_scheduling": True},
        pytest.param({"max_prefill_token_num": 5}, marks=pytest.mark.slow),
        pytest.param({"batch_invariant": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_greedy_answers_are_those_of_plain_torch(config, folder, expected):
    with interpreting():
        engine = make_engine(folder, **config)
        assert engine.info.attention_backend == "triton"
        assert answers(engine) == expected


def test_steps_of_decoding_are_laid_out_on_the_device(folder, expected, monkeypatch):
    with interpreting():
        engine = make_engine(folder, async_scheduling=True)
        runner = engine._runner
        laid_out = []
        launch = runner._launch_mixed
        monkeypatch.setattr(
            runner, "_launch_mixed", lambda plan: laid_out.append(plan.num_tokens) or launch(plan)
        )
        assert answers(engine) == expected
    assert len(laid_out) <= 2 < engine.stats.num_steps  # one a prompt that was waited for


@pytest.mark.parametrize(
    "policy", [pytest.param(4, marks=pytest.mark.slow), 8, pytest.param(16, marks=pytest.mark.slow)]
)
def test_a_quantised_cache_gives_the_answers_of_plain_torch(policy, folder):
    config = {"quant_policy": policy}
    plain = answers(make_engine(folder, **config))
    with interpreting():
        assert answers(make_engine(folder, **config)) == plain


def test_sampled_answers_are_those_of_plain_torch(folder):
    sampled = {"do_sample": True, "temperature": 1.3, "top_k": 20, "repetition_penalty": 1.2}
    plain = answers(make_engine(folder), **sampled)
    with interpreting():
        assert answers(make_engine(folder), **sampled) == plain


def test_alone_or_among_others_a_sequence_has_the_same_logits_bit_by_bit(folder):
    def logits(engine: Engine, asked: list[Request]) -> torch.Tensor:
        for request in asked:
            engine.add_request(request)
        while engine.num_unfinished:
            for sequence in engine.step():
                if sequence.finish_reason and sequence.request.request_id == 1:
                    outputs = engine.take_outputs(sequence, sequence.num_output_tokens)
        assert outputs.logits is not None
        return outputs.logits

    wants = {"output_logits": "generation", "max_new_tokens": 4}
    with interpreting():
        config = {"batch_invariant": True, "max_batch_size": 4, "enable_prefix_caching": False}
        alone = [request for request in requests(**wants) if request.request_id == 1]
        one = logits(make_engine(folder, **config), alone)
        among = logits(make_engine(folder, **config), list(requests(**wants)))
    assert torch.equal(one, among)


@pytest.mark.slow
def test_alone_or_among_63_others_a_record_has_the_same_logits_bit_by_bit(folder):
    rng = random.Random(1)
    prompts = [tuple(rng.choices(range(5, 300), k=rng.randint(1, 20))) for _ in range(64)]
    config = GenerationConfig(max_new_tokens=3, output_logits="generation")

    def logits(numbers: Iterable[int]) -> dict[int, torch.Tensor]:
        engine = make_engine(
            folder,
            batch_invariant=True,
            enable_prefix_caching=False,
            max_batch_size=64,
            num_gpu_blocks=200,
        )
        for number in numbers:
            engine.add_request(Request(number, prompts[number], (), config, seed=0))
        found = {}
        while engine.num_unfinished:
            for sequence in engine.step():
                if sequence.finish_reason is not None:
                    outputs = engine.take_outputs(sequence, sequence.num_output_tokens)
                    found[sequence.request.request_id] = outputs.logits
        return found

    with interpreting():
        among = logits(range(64))
        for number in (0, 31, 63):
            assert torch.equal(logits([number])[number], among[number])
