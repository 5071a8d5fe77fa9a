"""Answers go back in the dialect that the question came in."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from tests.job.dialects.manifests import LINES, reader
from vlmflow.job.dialects import BadLine
from vlmflow.job.dialects.bedrock_output import BedrockCounts
from vlmflow.job.dialects.job_facts import JobFacts
from vlmflow.job.dialects.parquet_output import ResultsTable, results_schema
from vlmflow.job.dialects.writers import LINE_WRITERS, parse_original
from vlmflow.job.outcomes import failure, success
from vlmflow.job.record import Failure, FetchedImage

JOB = JobFacts(job_id="abc", model="ours", created=1_700_000_000)
ANSWER = {
    "text": "a cat",
    "finish_reason": "stop",
    "input_token_len": 10,
    "generate_token_len": 3,
    "cached_tokens": 4,
}


def answered(folder: Path, *lines: Any, **answer: Any) -> list[tuple[dict[str, Any], Any]]:
    """Read lines as a job does, answer all records; each result with the line it came from."""
    pairs = []
    reading = reader(folder, b"\n".join(json.dumps(line).encode() for line in lines)).items()
    for item in reading:
        assert not isinstance(item, BadLine), item
        image = FetchedImage("a.png", b"abc", "0" * 64)
        outcome = success(item, [image], ANSWER | answer, seconds=0.5, attempts=1)
        pairs.append((outcome.line, parse_original(reading.raw)))
    return pairs


def failed(folder: Path, line: Any, stage: str) -> tuple[dict[str, Any], Any]:
    reading = reader(folder, json.dumps(line).encode()).items()
    [item] = reading
    assert not isinstance(item, BadLine), item
    reason = Failure(stage, "image_not_found", "a.png does not exist")
    return failure(item, reason).line, parse_original(reading.raw)


def test_chat_completion_of_openai(tmp_path: Path) -> None:
    [(line, original)] = answered(tmp_path, LINES["openai"])
    written = LINE_WRITERS["openai"](original, line, JOB)
    name = JOB.request_id(line)
    assert len(name) == 24
    assert written == {
        "id": f"batch_req_{name}",
        "custom_id": "r1",
        "response": {
            "status_code": 200,
            "request_id": f"req_{name}",
            "body": {
                "id": f"chatcmpl-{name}",
                "object": "chat.completion",
                "created": 1_700_000_000,
                "model": "m",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "a cat", "refusal": None},
                        "logprobs": None,
                        "finish_reason": "stop",
                    }
                ],
                "usage": {
                    "prompt_tokens": 10,
                    "completion_tokens": 3,
                    "total_tokens": 13,
                    "prompt_tokens_details": {"cached_tokens": 4},
                },
            },
        },
        "error": None,
    }


@pytest.mark.parametrize(
    ("finish_reason", "status"), [("stop", "completed"), ("length", "incomplete")]
)
def test_response_of_openai(finish_reason: str, status: str, tmp_path: Path) -> None:
    question = {"custom_id": "r1", "url": "/v1/responses", "body": {"input": "x", "model": "m"}}
    [(line, original)] = answered(tmp_path, question, finish_reason=finish_reason)
    body = LINE_WRITERS["openai"](original, line, JOB)["response"]["body"]
    assert (body["object"], body["status"], body["model"]) == ("response", status, "m")
    assert body["output"][0]["content"] == [
        {"type": "output_text", "text": "a cat", "annotations": []}
    ]
    assert body["usage"]["total_tokens"] == 13
    is_cut_off = body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert is_cut_off == (finish_reason == "length")


def test_failure_of_openai_is_a_line_of_the_error_file(tmp_path: Path) -> None:
    line, original = failed(tmp_path, LINES["openai"], "fetch")
    written = LINE_WRITERS["openai"](original, line, JOB)
    assert (written["custom_id"], written["response"]) == ("r1", None)
    assert written["error"] == {"code": "image_not_found", "message": "a.png does not exist"}


def test_result_of_anthropic_counts_cached_tokens_by_themselves(tmp_path: Path) -> None:
    [(line, original)] = answered(tmp_path, LINES["anthropic"], finish_reason="length")
    written = LINE_WRITERS["anthropic"](original, line, JOB)
    assert (written["custom_id"], written["result"]["type"]) == ("r1", "succeeded")
    message = written["result"]["message"]
    assert message["content"] == [{"type": "text", "text": "a cat"}]
    assert (message["type"], message["role"], message["model"]) == ("message", "assistant", "m")
    assert (message["stop_reason"], message["stop_sequence"]) == ("max_tokens", None)
    assert message["usage"] == {
        "input_tokens": 6,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 3,
    }


@pytest.mark.parametrize(
    ("stage", "kind"), [("fetch", "invalid_request_error"), ("generate", "api_error")]
)
def test_failure_of_anthropic_says_whose_fault_it_is(stage: str, kind: str, tmp_path: Path) -> None:
    line, original = failed(tmp_path, LINES["anthropic"], stage)
    assert LINE_WRITERS["anthropic"](original, line, JOB) == {
        "custom_id": "r1",
        "result": {
            "type": "errored",
            "error": {"type": "error", "error": {"type": kind, "message": "a.png does not exist"}},
        },
    }


def test_answer_of_bedrock_has_the_shape_of_the_body_it_answers(tmp_path: Path) -> None:
    bodies = [
        LINES["bedrock"]["modelInput"],
        LINES["anthropic"]["params"] | {"anthropic_version": "x"},
        LINES["openai"]["body"],
    ]
    lines = [{"recordId": f"r{n}", "modelInput": body} for n, body in enumerate(bodies)]
    outputs = []
    for (line, original), body in zip(answered(tmp_path, *lines), bodies, strict=True):
        written = LINE_WRITERS["bedrock"](original, line, JOB)
        assert set(written) == {"recordId", "modelInput", "modelOutput"}
        assert (written["recordId"], written["modelInput"]) == (line["id"], body)
        outputs.append(written["modelOutput"])
    converse, anthropic, openai = outputs
    assert converse == {
        "output": {"message": {"role": "assistant", "content": [{"text": "a cat"}]}},
        "stopReason": "end_turn",
        "usage": {
            "inputTokens": 10,
            "outputTokens": 3,
            "totalTokens": 13,
            "cacheReadInputTokens": 4,
        },
        "metrics": {"latencyMs": 500},
    }
    assert (anthropic["type"], anthropic["stop_reason"]) == ("message", "end_turn")
    assert openai["object"] == "chat.completion"


@pytest.mark.parametrize(("stage", "code"), [("decode", 400), ("generate", 500)])
def test_failure_of_bedrock_has_a_code_and_counts_as_an_error(
    stage: str, code: int, tmp_path: Path
) -> None:
    line, original = failed(tmp_path, LINES["bedrock"], stage)
    written = LINE_WRITERS["bedrock"](original, line, JOB)
    assert set(written) == {"recordId", "modelInput", "error"}
    assert written["error"] == {"errorCode": code, "errorMessage": "a.png does not exist"}
    counts = BedrockCounts()
    counts.add(line)
    for result, _ in answered(tmp_path, LINES["bedrock"], LINES["bedrock"] | {"recordId": "r2"}):
        counts.add(result)
    assert counts.as_dict() == {
        "totalRecordCount": 3,
        "processedRecordCount": 3,
        "successRecordCount": 2,
        "errorRecordCount": 1,
        "inputTokenCount": 20,
        "outputTokenCount": 6,
    }


def test_answer_of_gemini_repeats_its_request(tmp_path: Path) -> None:
    [(line, original)] = answered(tmp_path, LINES["gemini"])
    written = LINE_WRITERS["gemini"](original, line, JOB)
    assert (written["key"], written["request"]) == ("r1", LINES["gemini"]["request"])
    assert (written["status"], written["processed_time"]) == ("", "2023-11-14T22:13:20+00:00")
    [candidate] = written["response"]["candidates"]
    assert candidate["content"] == {"role": "model", "parts": [{"text": "a cat"}]}
    assert candidate["finishReason"] == "STOP"
    assert written["response"]["usageMetadata"]["totalTokenCount"] == 13
    line, original = failed(tmp_path, LINES["gemini"], "fetch")
    written = LINE_WRITERS["gemini"](original, line, JOB)
    assert written["status"] == "image_not_found: a.png does not exist"
    assert written["response"] == {}


@pytest.mark.parametrize("dialect", LINE_WRITERS)
def test_records_of_any_dialect_are_answered_in_any_other(dialect: str, tmp_path: Path) -> None:
    [(line, _)] = answered(tmp_path, LINES["native"])
    bad = {"id": None, "ordinal": 3, "line": 4, "error": Failure("manifest", "x", "y").as_dict()}
    for one in (line, bad):
        written = LINE_WRITERS[dialect](None, one, JOB)
        assert json.loads(json.dumps(written, allow_nan=False)) == written
        assert written == LINE_WRITERS[dialect](None, one, JOB)


def test_names_of_requests_are_of_one_job_and_one_record() -> None:
    other = JobFacts("abd", "ours", 0)
    names = {job.request_id({"ordinal": n}) for job in (JOB, other) for n in range(50)}
    assert len(names) == 100


@pytest.mark.parametrize("raw", [None, b"{", b"[]", b"\xff"])
def test_line_that_is_no_object_is_no_original(raw: bytes | None) -> None:
    assert parse_original(raw) is None


def test_table_has_a_row_for_each_result_and_failure(tmp_path: Path) -> None:
    [(result, _)] = answered(tmp_path, LINES["native"])
    lost, _ = failed(tmp_path, LINES["native"] | {"id": "r2", "own": 1}, "fetch")
    bad = {"id": None, "ordinal": 2, "line": 3, "error": Failure("manifest", "x", "y").as_dict()}
    with ResultsTable(tmp_path / "t.parquet") as table:
        for line in (result, lost, bad):
            table.add(line)
    read = pyarrow.parquet.read_table(tmp_path / "t.parquet")
    assert read.schema.equals(results_schema())
    first, second, third = read.to_pylist()
    assert (first["id"], first["ordinal"], first["text"]) == ("r1", 0, "a cat")
    assert (first["prompt_tokens"], first["completion_tokens"], first["cached_tokens"]) == (
        10,
        3,
        4,
    )
    assert first["images"] == [{"uri": "a.png", "sha256": "0" * 64, "num_bytes": 3}]
    assert (first["seconds"], first["attempts"], first["finish_reason"]) == (0.5, 1, "stop")
    assert json.loads(first["metadata"]) == {"expected": "a cat", "metadata": {"split": "test"}}
    assert (first["line"], first["error_class"], first["error_retryable"]) == (None, None, None)
    assert second["images"] == [{"uri": "a.png", "sha256": None, "num_bytes": None}]
    assert (second["text"], second["line"], second["attempts"]) == (None, 1, 1)
    assert (second["error_stage"], second["error_class"]) == ("fetch", "image_not_found")
    assert json.loads(second["metadata"])["own"] == 1
    assert (third["id"], third["error_message"], third["metadata"]) == (None, "y", None)


def test_table_larger_than_a_row_group_is_whole(tmp_path: Path) -> None:
    bad = {"id": None, "line": 3, "error": Failure("manifest", "x", "y").as_dict()}
    with ResultsTable(tmp_path / "t.parquet") as table:
        for ordinal in range(20_001):
            table.add(bad | {"ordinal": ordinal})
    file = pyarrow.parquet.ParquetFile(tmp_path / "t.parquet")
    assert file.num_row_groups == 3
    assert file.read(["ordinal"])["ordinal"].to_pylist() == list(range(20_001))
