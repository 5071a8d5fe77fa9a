"""One seed, one text: whatever is computed beside it, and in whichever process."""

import json
import os
import subprocess
import sys

import pytest

from tests.engine.test_offline import FLOAT32, picture
from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig, pipeline

SAMPLINGS = {
    "everything": {"temperature": 1.0, "top_k": 0},
    "top_k": {"temperature": 1.5, "top_k": 12},
    "top_p": {"temperature": 1.2, "top_k": 0, "top_p": 0.7},
    "all": {"temperature": 2.0, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
}
PROMPTS = ["what is this", ("what is in it", picture(1)), ("and in both", [picture(2), picture(3)])]
# A pool in which about five of the requests fit at once.
SMALL = PytorchEngineConfig(
    dtype="float32", device_type="cpu", num_gpu_blocks=150, block_size=4, session_len=256
)


def seeded(sampling: str, seed: int = 7, **options) -> GenerationConfig:
    fields = {"max_new_tokens": 48, "ignore_eos": True, "do_sample": True, "random_seed": seed}
    return GenerationConfig(**fields | SAMPLINGS[sampling] | options)


ASKED = [(prompt, seeded(sampling)) for sampling in SAMPLINGS for prompt in PROMPTS]
CONFIGS = [config for _, config in ASKED]


@pytest.fixture(scope="module")
def pipe(tiny_llava):
    with pipeline(str(tiny_llava), backend_config=FLOAT32) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def alone(pipe) -> list[list[int]]:
    """What each request is answered when it has the engine to itself."""
    answers = [pipe(prompt, config).token_ids for prompt, config in ASKED]
    assert len({tuple(answer) for answer in answers}) == len(ASKED)
    return answers


def among_others(pipe: Pipeline, num_others: int) -> list[list[int]]:
    """Answers to what is asked, in between requests of other prompts, seeds and lengths."""
    asked = [*ASKED]
    for number in range(num_others):
        prompt = (f"other {number}", picture(number % 5 + 10)) if number % 4 == 0 else "x " * number
        other = GenerationConfig(
            max_new_tokens=5 + number % 50, do_sample=number % 3 > 0, random_seed=number % 9
        )
        asked.insert(number * 7 % len(asked), (prompt, other))
    prompts, configs = zip(*asked, strict=True)
    responses = pipe(list(prompts), list(configs))
    own = {id(config): response for config, response in zip(configs, responses, strict=True)}
    return [own[id(config)].token_ids for config in CONFIGS]


def test_a_seed_gives_the_same_text_alone_and_among_64_others(pipe, alone):
    assert among_others(pipe, 64) == alone


def test_a_seed_gives_the_same_text_where_sequences_are_preempted(tiny_llava, alone):
    with Pipeline(str(tiny_llava), SMALL) as pipe:
        assert among_others(pipe, 64) == alone
        assert pipe.stats.num_preemptions > 10


@pytest.mark.parametrize("is_ordered", [True, False])
def test_a_seed_gives_the_same_text_from_a_generator(pipe, alone, is_ordered):
    prompts = (prompt for prompt, _ in ASKED)
    responses = pipe.iter_infer(prompts, CONFIGS, is_ordered=is_ordered)
    assert [r.token_ids for r in sorted(responses, key=lambda r: r.index)] == alone


def test_a_seed_gives_the_same_text_as_a_stream(pipe, alone):
    answers: list[list[int]] = [[] for _ in ASKED]
    prompts = [prompt for prompt, _ in ASKED]
    for chunk in pipe.stream_infer(prompts, gen_config=CONFIGS):
        answers[chunk.index] += chunk.token_ids
    assert answers == alone


def test_a_seed_gives_the_same_text_in_another_process(tiny_llava, alone):
    code = "from tests.engine.test_seeds import main; main()"
    command = [sys.executable, "-c", code, str(tiny_llava)]
    # Neither hashes of strings nor anything else that changes with a process may count.
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout
    assert json.loads(printed.splitlines()[-1]) == alone


def main() -> None:
    """Print the answers to what is asked, by an engine over the folder that argv names."""
    with Pipeline(sys.argv[1], FLOAT32) as pipe:
        responses = pipe([prompt for prompt, _ in ASKED], CONFIGS)
        print(json.dumps([response.token_ids for response in responses]))


def test_the_answers_to_one_prompt_differ_and_each_comes_again(pipe):
    config = seeded("everything", n=4)
    first, again = pipe("what is this", config), pipe("what is this", config)
    assert [r.token_ids for r in first] == [r.token_ids for r in again]
    assert len({tuple(r.token_ids) for r in first}) == 4


def test_other_seeds_and_no_seed_give_other_texts(pipe):
    def ask(seed: int | None) -> tuple[int, ...]:
        return tuple(pipe("what is this", seeded("everything", seed)).token_ids)

    assert len({ask(seed) for seed in (*range(-2, 3), 2**63, None, None, None)}) == 9


def test_without_a_seed_the_requests_of_one_call_differ(pipe):
    config = seeded("everything", None)
    responses = pipe(["what is this"] * 16, config)
    assert len({tuple(response.token_ids) for response in responses}) == 16
