"""Requests of the four APIs become the prompt, the images and the options that they ask for."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.job.dialects.manifests import LINES, PROMPT, one, read, reason, record, user_message
from vlmflow.job.dialects import BadLine
from vlmflow.job.record import Record

SYSTEM = {"role": "system", "content": "Be brief."}
SYSTEM_PARTS = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}


def changed(dialect: str, *path: str | int, to: Any) -> dict[str, Any]:
    """The example of a dialect with another value at a place."""
    line: Any = copy.deepcopy(LINES[dialect])
    place = line
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    assert isinstance(line, dict)
    return line


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        (
            "openai",
            Record(
                *(0, 1, "r1", [SYSTEM, user_message(0, PROMPT)], ("a.png",)),
                {
                    "max_new_tokens": 32,
                    "temperature": 0.5,
                    "do_sample": True,
                    "stop_words": ["\n"],
                },
                {"metadata": {"split": "test"}},
            ),
        ),
        (
            "anthropic",
            Record(
                *(0, 1, "r1", [SYSTEM, user_message(0, PROMPT)], ("a.png",)),
                *({"max_new_tokens": 32, "stop_words": ["\n"]}, {}),
            ),
        ),
        (
            "bedrock",
            Record(
                *(0, 1, "r1", [SYSTEM_PARTS, user_message(0, PROMPT)], ("s3://bucket/a.png",)),
                {"max_new_tokens": 32, "stop_words": ["\n"], "top_k": 5, "do_sample": True},
                {},
            ),
        ),
        (
            "gemini",
            Record(
                *(0, 1, "r1", [SYSTEM_PARTS, user_message(0, PROMPT)], ("s3://bucket/a.png",)),
                *({"max_new_tokens": 32, "stop_words": ["\n"]}, {}),
            ),
        ),
    ],
)
def test_request_becomes_the_record_that_it_says(
    dialect: str, expected: Record, tmp_path: Path
) -> None:
    assert record(tmp_path, LINES[dialect]) == expected


def test_responses_of_openai_are_read_like_chat_completions(tmp_path: Path) -> None:
    body = {
        "model": "m",
        "instructions": "Be brief.",
        "input": [
            {
                "role": "user",
                "content": [
                    {"type": "input_image", "image_url": "a.png", "detail": "auto"},
                    {"type": "input_text", "text": PROMPT},
                ],
            }
        ],
        "max_output_tokens": 32,
        "store": False,
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
    }
    line = {"custom_id": "r1", "method": "POST", "url": "/v1/responses", "body": body}
    found = record(tmp_path, line)
    assert found.prompt == [SYSTEM, user_message(0, PROMPT)]
    assert found.image_uris == ("a.png",)
    assert found.generation == {
        "max_new_tokens": 32,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "object"}},
        },
    }
    line["body"] = {"model": "m", "input": PROMPT, "text": {"format": {"type": "text"}}}
    found = record(tmp_path, line)
    assert (found.prompt, found.generation) == ([{"role": "user", "content": PROMPT}], {})


@pytest.mark.parametrize(
    ("dialect", "path", "part"),
    [
        (
            "openai",
            ("body", "messages", 1, "content", 0),
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
        ),
        (
            "anthropic",
            ("params", "messages", 0, "content", 0),
            {
                "type": "image",
                "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"},
            },
        ),
        (
            "bedrock",
            ("modelInput", "messages", 0, "content", 0),
            {"image": {"format": "png", "source": {"bytes": "QUJD"}}},
        ),
        (
            "gemini",
            ("request", "contents", 0, "parts", 0),
            {"inlineData": {"mimeType": "image/png", "data": "QUJD"}},
        ),
        (
            "gemini",
            ("request", "contents", 0, "parts", 0),
            {"inline_data": {"mime_type": "image/png", "data": "QUJD"}},
        ),
    ],
)
def test_base64_of_every_api_becomes_a_data_uri(
    dialect: str, path: tuple[str | int, ...], part: Any, tmp_path: Path
) -> None:
    found = record(tmp_path, changed(dialect, *path, to=part))
    assert found.image_uris == ("data:image/png;base64,QUJD",)


@pytest.mark.parametrize(
    ("fields", "generation"),
    [
        ({"temperature": 0}, {"temperature": 0, "do_sample": False}),
        ({"temperature": 1, "top_p": 0.9}, {"temperature": 1, "top_p": 0.9, "do_sample": True}),
        ({"top_p": 0.9}, {"top_p": 0.9, "do_sample": True}),
        ({"top_p": 1}, {"top_p": 1}),
        ({"top_k": -1}, {"top_k": 0, "do_sample": True}),
        ({"seed": 7, "n": 1, "stream": False}, {"random_seed": 7}),
        ({"max_tokens": 5, "max_completion_tokens": 5}, {"max_new_tokens": 5}),
        ({"stop": ["a", "b"]}, {"stop_words": ["a", "b"]}),
        ({"response_format": {"type": "text"}, "user": "u", "store": True}, {}),
        (
            {"response_format": {"type": "json_object"}, "tools": [], "logit_bias": {}},
            {"response_format": {"type": "json_object"}},
        ),
        ({"temperature": None, "max_tokens": None, "tools": None, "stop": None}, {}),
    ],
    ids=str,
)
def test_options_of_openai_become_ours(
    fields: dict[str, Any], generation: dict[str, Any], tmp_path: Path
) -> None:
    body = {"messages": [{"role": "user", "content": PROMPT}], **fields}
    line = {"custom_id": "r1", "url": "/v1/chat/completions", "body": body}
    assert record(tmp_path, line).generation == generation


MESSAGES = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("fields", "reason_part"),
    [
        ({"tools": [{"type": "function"}]}, "body.tools is not supported but for []"),
        ({"stream": True}, "body.stream is not supported but for false"),
        ({"n": 2}, "body.n is not supported but for 1"),
        ({"logprobs": True}, "body.logprobs is not supported but for false"),
        ({"presence_penalty": 0.5}, "body.presence_penalty is not supported but for 0"),
        ({"audio": {}}, "body.audio is not supported; leave it out"),
        ({"max_tokns": 5}, "body.max_tokns is not supported; leave it out"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "'max_completion_tokens' contradicts"),
        ({"max_tokens": 0}, "'generation': max_new_tokens must be at least 1"),
        ({"temperature": 3}, "'generation': temperature"),
        ({"temperature": "hot"}, "'generation': temperature"),
        ({"response_format": {"type": "xml"}}, "'generation': response_format"),
        ({"messages": []}, "'messages' must be a list"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "'role' must be one of"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "'role' must be one of"),
        ({"messages": [{"role": "user"}]}, "'content' must be a string"),
        ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "calls of tools"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "it is 'input_audio'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "'file_id' is not supported",
        ),
        ({"model": 5}, "'model' must be a string"),
    ],
    ids=str,
)
def test_what_a_job_cannot_do_is_refused_by_name(
    fields: dict[str, Any], reason_part: str, tmp_path: Path
) -> None:
    body = {"messages": MESSAGES} | fields
    line = {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    assert reason_part in reason(tmp_path, line)
    assert one(tmp_path, line).record_id == "r1"


@pytest.mark.parametrize(
    ("dialect", "path", "value", "reason_part"),
    [
        ("openai", ("url",), "/v1/embeddings", "it is '/v1/embeddings'"),
        ("openai", ("url",), None, "'url' must be"),
        ("openai", ("method",), "GET", "'method' must be 'POST'"),
        ("openai", ("body",), [], "'body' must be an object"),
        ("openai", ("custom_id",), "", "'custom_id' must be"),
        ("anthropic", ("custom_id",), "a b", "'custom_id' must be 1 to 64 letters"),
        ("anthropic", ("custom_id",), "a" * 65, "'custom_id' must be 1 to 64 letters"),
        ("anthropic", ("params", "tools"), [{}], "params.tools is not supported but for []"),
        ("anthropic", ("params", "thinking"), {"type": "enabled"}, "params.thinking"),
        ("anthropic", ("params", "messages", 0, "role"), "system", "user or assistant"),
        ("anthropic", ("params", "messages", 0, "content"), [{"type": "document"}], "'document'"),
        (
            "anthropic",
            ("params", "messages", 0, "content", 0, "source"),
            {"type": "file", "file_id": "f"},
            "must be base64 or url",
        ),
        (
            "anthropic",
            ("params", "messages", 0, "content", 0, "source"),
            {"type": "base64", "media_type": "text/html", "data": "QUJD"},
            "the media type must be that of an image",
        ),
        ("bedrock", ("recordId",), 5, "'recordId' must be"),
        ("bedrock", ("modelInput",), {"inputText": "x"}, "must be a body of Converse"),
        ("bedrock", ("modelInput", "toolConfig"), {}, "modelInput.toolConfig is not supported"),
        ("bedrock", ("modelInput", "inferenceConfig"), {"max_new_tokens": 5}, "inferenceConfig."),
        (
            "bedrock",
            ("modelInput", "messages", 0, "content", 0),
            {"video": {}},
            "a block must be a text or an image, it is 'video'",
        ),
        (
            "bedrock",
            ("modelInput", "messages", 0, "content", 0, "image", "source", "s3Location", "uri"),
            "/etc/passwd",
            "must begin with s3://",
        ),
        (
            "bedrock",
            ("modelInput", "messages", 0, "content", 0, "image"),
            {"format": "tiff", "source": {"bytes": "QUJD"}},
            "'format' must be one of png",
        ),
        (
            "gemini",
            ("request", "contents", 0, "parts", 0, "fileData", "fileUri"),
            "gs://bucket/a.png",
            "gs:// is not read; copy the images to S3",
        ),
        ("gemini", ("request", "contents", 0, "role"), "function", "'role' (user or model)"),
        ("gemini", ("request", "contents", 0, "parts", 0), {"functionCall": {}}, "a part must be"),
        ("gemini", ("request", "generationConfig", "candidateCount"), 2, "candidateCount"),
        ("gemini", ("request", "generationConfig", "responseSchema"), {}, "responseSchema"),
        ("gemini", ("request", "tools"), [{}], "request.tools is not supported"),
        ("ground-truth", ("source",), "x", "either 'source-ref' or 'source'"),
        ("ground-truth", ("source-ref",), 5, "'source-ref' must be a URI"),
    ],
    ids=str,
)
def test_request_that_cannot_be_read_is_refused_with_the_reason(
    dialect: str, path: tuple[str | int, ...], value: Any, reason_part: str, tmp_path: Path
) -> None:
    assert reason_part in reason(tmp_path, changed(dialect, *path, to=value), dialect)


def test_bedrock_takes_bodies_of_three_shapes(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = [
        LINES["openai"]["body"],
        LINES["anthropic"]["params"] | {"anthropic_version": "bedrock-2023-05-31"},
        LINES["bedrock"]["modelInput"],
    ]
    for body in bodies:
        found = record(tmp_path, {"recordId": "r1", "modelInput": body})
        assert found.prompt[-1] == user_message(0, PROMPT)
        assert found.image_uris[0].endswith("a.png")
        assert found.generation["max_new_tokens"] == 32
    least = {"messages": [{"role": "user", "content": [{"text": PROMPT}]}]}
    assert record(tmp_path, {"modelInput": least}).prompt == [user_message(PROMPT)]
    plain = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5}
    assert record(tmp_path, {"modelInput": plain}).generation == {"max_new_tokens": 5}


@pytest.mark.parametrize("dialect", ["bedrock", "gemini", "ground-truth"])
def test_record_without_an_id_is_named_by_its_line(dialect: str, tmp_path: Path) -> None:
    fields = ("modelInput", "request", "source-ref")
    line = {name: value for name, value in LINES[dialect].items() if name in fields}
    assert record(tmp_path, line, dialect).record_id == "line-1"


def test_further_fields_become_metadata_whatever_their_names(tmp_path: Path) -> None:
    line = LINES["openai"] | {"expected": "a cat", "error": 1, "metadata": {"a": 2}, "images": 3}
    assert record(tmp_path, line).passed_through == {
        "expected": "a cat",
        "metadata": {"split": "test", "a": 2, "error": 1, "images": 3},
    }


def test_ground_truth_asks_the_prompt_of_the_job_and_passes_its_labels_through(
    tmp_path: Path,
) -> None:
    found = record(tmp_path, LINES["ground-truth"], "ground-truth")
    assert found.prompt == [user_message(0, PROMPT)]
    assert found.image_uris == ("s3://bucket/a.png",)
    assert found.passed_through == {
        "metadata": {
            "class": 3,
            "class-metadata": {"class-name": "cat", "confidence": 0.9},
        }
    }
    found = record(tmp_path, {"source": "a text"}, "ground-truth")
    assert found.prompt == [{"role": "user", "content": f"a text\n\n{PROMPT}"}]


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_manifest_asks_for_one_model(dialect: str, tmp_path: Path) -> None:
    body = {"openai": "body", "anthropic": "params"}[dialect]
    data = "\n".join(
        json.dumps(changed(dialect, body, "model", to=model)) for model in ("m", None, "n", "m")
    ).encode()
    items = read(tmp_path, data)
    assert [type(item) for item in items] == [Record, Record, BadLine, Record]
    assert isinstance(items[2], BadLine)
    assert "model 'n', but the manifest begins with 'm'" in items[2].failure.message
    items = read(tmp_path, data, model_names=frozenset(("n", "mine")))
    assert [type(item) for item in items] == [BadLine, Record, Record, BadLine]
    assert isinstance(items[0], BadLine)
    assert "model 'm' is not the job's: 'mine', 'n'" in items[0].failure.message
