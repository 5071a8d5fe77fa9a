"""OpenAI's batch output: a line for the output file, or for the error file."""

from typing import Any

from vlmflow.job.dialects.job_facts import JobFacts, is_cut_off, usage_of
from vlmflow.job.dialects.openai import RESPONSES_URL


def openai_line(
    original: dict[str, Any] | None, line: dict[str, Any], job: JobFacts
) -> dict[str, Any]:
    """Make one line. It is the error file's if its `error` is not None.

    original  the manifest's line, where it is OpenAI's; a record of another dialect is answered
              as a chat completion
    line      of our results or failures
    """
    request_id = job.request_id(line)
    answer = {"id": f"batch_req_{request_id}", "custom_id": line["id"]}
    if "error" in line:
        error = {"code": line["error"]["class"], "message": line["error"]["message"]}
        return answer | {"response": None, "error": error}
    original = original or {}
    body = original.get("body") or {}
    make_body = response_body if original.get("url") == RESPONSES_URL else chat_body
    response = {
        "status_code": 200,
        "request_id": f"req_{request_id}",
        "body": make_body(body, line, job),
    }
    return answer | {"response": response, "error": None}


def chat_body(request: dict[str, Any], line: dict[str, Any], job: JobFacts) -> dict[str, Any]:
    """A chat completion with the record's answer."""
    num_prompt, num_cached, num_answer = usage_of(line)
    message = {"role": "assistant", "content": line["text"], "refusal": None}
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": line["finish_reason"],
    }
    return {
        "id": f"chatcmpl-{job.request_id(line)}",
        "object": "chat.completion",
        "created": job.created,
        "model": request.get("model") or job.model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_answer,
            "total_tokens": num_prompt + num_answer,
            "prompt_tokens_details": {"cached_tokens": num_cached},
        },
    }


def response_body(request: dict[str, Any], line: dict[str, Any], job: JobFacts) -> dict[str, Any]:
    """A response with the record's answer."""
    num_prompt, num_cached, num_answer = usage_of(line)
    status = "incomplete" if is_cut_off(line) else "completed"
    message = {
        "id": f"msg_{job.request_id(line)}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [{"type": "output_text", "text": line["text"], "annotations": []}],
    }
    return {
        "id": f"resp_{job.request_id(line)}",
        "object": "response",
        "created_at": job.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut_off(line) else None,
        "model": request.get("model") or job.model,
        "output": [message],
        "usage": {
            "input_tokens": num_prompt,
            "input_tokens_details": {"cached_tokens": num_cached},
            "output_tokens": num_answer,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": num_prompt + num_answer,
        },
    }
