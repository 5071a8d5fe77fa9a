"""response_format through the whole engine: an answer is of the form asked for, or an error."""

import json
import random
import re
from collections import Counter
from typing import Any

import jsonschema
import pytest

from tests.engine.runner.grammars import as_regex, as_schema
from tests.engine.runner.schemas import SchemaMaker
from tests.engine.test_offline import FLOAT32, picture
from vlmflow_engine import GenerationConfig, Pipeline, Response, pipeline
from vlmflow_engine.runner.response_format import (
    MAX_REGEX_CHARS,
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_DEPTH,
)

Form = dict[str, Any]
Asked = tuple[Any, GenerationConfig]

REGEXES = [r"(yes|no)( [a-z]{2,5}){1,2}", r"\d{4}-\d{2}-\d{2}", "[é✓日]{1,4}", r"[A-Z]{3,400}!"]
NEVER = {"type": "object", "properties": {"a": False}, "required": ["a"]}
BAD_FORMS = {
    "unsatisfiable": as_schema(NEVER),
    "too large": as_schema({"enum": ["x" * 100] * (MAX_SCHEMA_BYTES // 100)}),
    "too deep": as_schema(
        json.loads('{"items":' * MAX_SCHEMA_DEPTH + "{}" + "}" * MAX_SCHEMA_DEPTH)
    ),
    "too long": as_regex("a" * (MAX_REGEX_CHARS + 1)),
    "no regex": as_regex("("),
    "not supported": as_schema({"not": {"type": "string"}}),
}


@pytest.fixture(scope="module")
def pipe(tiny_llava):
    with pipeline(str(tiny_llava), backend_config=FLOAT32) as pipe:
        yield pipe


def ask(number: int, form: Form | None, max_new_tokens: int = 150) -> Asked:
    """Every other request is greedy, every third one about a picture; every draw has a seed."""
    text = f"say it {number}"
    config = GenerationConfig(
        max_new_tokens=max_new_tokens if form else 12,
        do_sample=number % 2 == 1,
        temperature=1.0,
        random_seed=number,
        response_format=form,
    )
    return ((text, picture(number)) if number % 3 == 0 else text), config


def mixed(num_schemas: int, seed: int) -> list[Asked]:
    """Random schemas, regexes, objects and free texts, in any order."""
    maker = SchemaMaker(seed)
    forms: list[Form | None] = [as_schema(maker.make()) for _ in range(num_schemas)]
    forms += [as_regex(regex) for regex in REGEXES] * (num_schemas // 20)
    forms += [{"type": "json_object"}, None] * (num_schemas // 10)
    random.Random(seed).shuffle(forms)
    # Some have no room for any answer but the shortest.
    return [ask(number, form, 5 if number % 10 == 9 else 150) for number, form in enumerate(forms)]


def answer(pipe: Pipeline, asked: list[Asked]) -> list[Response]:
    prompts, configs = zip(*asked, strict=True)
    return pipe(list(prompts), list(configs))


def keeps(form: Form, text: str) -> bool:
    """Whether a text is what a form asks for, by other libraries than the engine's."""
    if form["type"] == "regex_schema":
        return re.fullmatch(form["regex_schema"], text, re.ASCII) is not None
    schema = {"type": "object"}
    if form["type"] == "json_schema":
        schema = form["json_schema"]["schema"]
    try:
        return jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    except json.JSONDecodeError:
        return False


def assert_kept(asked: list[Asked], responses: list[Response]) -> Counter[str]:
    """Each answer is valid, or an error that says so; return how many, by form and outcome."""
    counts: Counter[str] = Counter()
    for (_, config), response in zip(asked, responses, strict=True):
        form = config.response_format
        if form is None:
            assert response.error_code is None
            continue
        outcome = "kept" if response.error_code is None else "cut off"
        counts[f"{form['type']} {outcome}"] += 1
        assert keeps(form, response.text) == (outcome == "kept"), response
        if outcome == "cut off":
            assert (response.finish_reason, response.error_code) == ("error", "invalid_output")
            assert response.generate_token_len == config.max_new_tokens
            assert "raise max_new_tokens" in response.error_message
        else:
            assert response.finish_reason in ("stop", "length")
    return counts


def test_200_random_schemas_in_a_mixed_batch_are_kept_or_told_to_be_cut_off(pipe):
    asked = mixed(200, seed=0)
    counts = assert_kept(asked, answer(pipe, asked))
    assert counts["json_schema kept"] > 150
    assert counts["json_schema cut off"] > 5
    assert counts["regex_schema kept"] > 20
    assert counts["regex_schema cut off"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_2000_more_random_schemas_are_kept_or_told_to_be_cut_off(pipe, seed):
    asked = mixed(400, seed)
    counts = assert_kept(asked, answer(pipe, asked))
    assert counts["json_schema kept"] > 300


def test_a_format_that_cannot_be_had_is_its_own_error_and_harms_nobody(pipe):
    asked = mixed(20, seed=7)
    alone = answer(pipe, asked)
    bad = [ask(number, form) for number, form in enumerate(BAD_FORMS.values())]
    order = [*range(len(asked)), *[-1 - number for number in range(len(bad))]]
    random.Random(0).shuffle(order)
    together = answer(pipe, [asked[i] if i >= 0 else bad[-1 - i] for i in order])
    for index, response in zip(order, together, strict=True):
        if index < 0:
            name = list(BAD_FORMS)[-1 - index]
            assert response.finish_reason == "error", name
            assert response.error_code == "invalid_request", (name, response)
            assert response.error_message.startswith("response_format: "), name
            assert len(response.error_message) < 300
            assert response.text == ""
        else:
            expected = alone[index]
            assert (response.text, response.error_code) == (expected.text, expected.error_code)


def test_a_streamed_answer_is_of_the_form_and_a_streamed_error_is_its_last_chunk(pipe):
    schema = as_schema(
        {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 3, "maxItems": 4}
    )
    for form in (schema, as_regex(REGEXES[1])):
        for room in (150, 4):
            config = GenerationConfig(max_new_tokens=room, response_format=form)
            whole = pipe("say", config)
            *_, last = chunks = list(pipe.stream_infer("say", gen_config=config))
            assert "".join(chunk.text for chunk in chunks) == whole.text
            assert (last.finish_reason, last.error_code) == (whole.finish_reason, whole.error_code)
            assert last.error_code == (None if keeps(form, whole.text) else "invalid_output")
            assert (last.error_code is None) == (room == 150)
