"""`response_format`: answers of the form that was asked for, each prompt its own."""

import json
import re
from typing import Any

import jsonschema
import pytest

from tests.engine.compat.scripted import saying
from tests.engine.inputs.pictures import noise
from vlmflow_engine import GenerationConfig, Pipeline, Tokenizer
from vlmflow_engine.errors import ConfigError

IMAGE = noise(96, 96, seed=11)
EOS = 2
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"type": "string", "enum": ["red", "blue", "green"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "kinds": {"type": "array", "items": {"enum": ["star", "cross"]}, "maxItems": 3},
    },
    "required": ["colour", "count", "kinds"],
    "additionalProperties": False,
}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "shapes", "schema": SCHEMA}}
REGEX = {"type": "regex_schema", "regex_schema": r"(yes|no), \d{2,4}"}


def config(response_format: dict[str, Any] | None, **options: Any) -> GenerationConfig:
    return GenerationConfig(**{"max_new_tokens": 200} | options, response_format=response_format)


def test_an_answer_is_what_its_schema_allows(pipe: Pipeline) -> None:
    response = pipe(("what is it", IMAGE), config(JSON_SCHEMA))
    assert response.finish_reason == "stop" and response.error_code is None
    jsonschema.validate(json.loads(response.text), SCHEMA)


@pytest.mark.parametrize("seed", range(3))
def test_a_sampled_answer_is_what_its_schema_allows(seed: int, pipe: Pipeline) -> None:
    sampled = config(JSON_SCHEMA, do_sample=True, temperature=2.0, random_seed=seed)
    jsonschema.validate(json.loads(pipe("what is it", sampled).text), SCHEMA)


def test_an_answer_matches_its_regular_expression(pipe: Pipeline) -> None:
    response = pipe("is it so", config(REGEX))
    assert re.fullmatch(REGEX["regex_schema"], response.text)
    assert response.finish_reason == "stop"


def test_an_answer_is_a_json_object(pipe: Pipeline, tokenizer: Tokenizer) -> None:
    # A model of random weights would write a string that never ends.
    led = saying([*tokenizer.encode('{"a": [1, {}]}', add_bos=False), EOS])
    response = pipe("x", config({"type": "json_object"}, logits_processors=led))
    assert json.loads(response.text) == {"a": [1, {}]} and response.finish_reason == "stop"


def test_what_the_form_forbids_is_not_said_whatever_the_model_prefers(
    pipe: Pipeline, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("maybe", add_bos=False)

    def prefer(generated: Any, logits: Any) -> Any:
        logits[ids] += 1e6  # of what is forbidden, minus infinity stays
        return logits

    response = pipe("x", config(REGEX, logits_processors=[prefer]))
    assert re.fullmatch(REGEX["regex_schema"], response.text)


def test_each_prompt_of_a_batch_has_its_own_form(pipe: Pipeline) -> None:
    free = config(None, max_new_tokens=12, ignore_eos=True)
    configs = [config(JSON_SCHEMA), free, config(REGEX), config(JSON_SCHEMA), free]
    prompts = ["a", ("b", IMAGE), "c", ("d", IMAGE), "e"]
    responses = pipe(prompts, configs)
    for index in (0, 3):
        jsonschema.validate(json.loads(responses[index].text), SCHEMA)
    assert re.fullmatch(REGEX["regex_schema"], responses[2].text)
    for index in (1, 4):
        assert responses[index].text == pipe(prompts[index], free).text
    alone = [pipe(prompt, own).text for prompt, own in zip(prompts, configs, strict=True)]
    assert [response.text for response in responses] == alone


def test_a_form_holds_in_streams_and_conversations(pipe: Pipeline) -> None:
    chunks = list(pipe.stream_infer("what is it", gen_config=config(JSON_SCHEMA)))
    text = "".join(chunk.text for chunk in chunks)
    assert text == pipe("what is it", config(JSON_SCHEMA)).text and len(chunks) > 2
    session = pipe.chat("what is it", gen_config=config(JSON_SCHEMA))
    pipe.chat("sure", session, config(REGEX))
    assert session.history[0][1] == text
    assert re.fullmatch(REGEX["regex_schema"], session.history[1][1])


def test_an_answer_that_is_cut_off_is_an_error_with_its_text(pipe: Pipeline) -> None:
    short, whole = pipe(["x", "x"], [config(JSON_SCHEMA, max_new_tokens=4), config(JSON_SCHEMA)])
    assert (short.finish_reason, short.error_code) == ("error", "invalid_output")
    assert short.text and whole.text.startswith(short.text)
    assert whole.error_code is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "regex_schema", "regex_schema": "("},
        {"type": "json_schema", "json_schema": {"schema": {"type": "colour"}}},
        {"type": "json_schema"},
    ],
)
def test_a_form_that_cannot_be_read_is_an_error_of_its_prompt(
    wrong: dict[str, Any], pipe: Pipeline
) -> None:
    good, bad = pipe(["is it so", "x"], [config(REGEX), config(wrong)])
    assert good.error_code is None
    assert (bad.finish_reason, bad.error_code) == ("error", "invalid_request")
    assert bad.error_message


@pytest.mark.parametrize("wrong", ["json", {"type": "yaml"}, {}])
def test_a_form_of_an_unknown_kind_is_refused_when_the_config_is_made(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="json_schema.*regex_schema.*json_object"):
        config(wrong)
