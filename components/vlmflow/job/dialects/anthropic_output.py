"""Results of Anthropic's message batches."""

from typing import Any

from vlmflow.job.dialects.job_facts import JobFacts, is_cut_off, usage_of


def anthropic_line(
    original: dict[str, Any] | None, line: dict[str, Any], job: JobFacts
) -> dict[str, Any]:
    """Make one line of the results, of one that succeeded or of one that errored.

    original  the manifest's line, where it is Anthropic's
    line      of our results or failures
    """
    if "error" in line:
        is_ours = line["error"]["stage"] == "generate"
        error = {
            "type": "api_error" if is_ours else "invalid_request_error",
            "message": line["error"]["message"],
        }
        result = {"type": "errored", "error": {"type": "error", "error": error}}
    else:
        params = (original or {}).get("params") or {}
        result = {"type": "succeeded", "message": message_body(params, line, job)}
    return {"custom_id": line["id"], "result": result}


def message_body(request: dict[str, Any], line: dict[str, Any], job: JobFacts) -> dict[str, Any]:
    """A message with the record's answer. Tokens from the cache are counted by themselves."""
    num_prompt, num_cached, num_answer = usage_of(line)
    return {
        "id": f"msg_{job.request_id(line)}",
        "type": "message",
        "role": "assistant",
        "model": request.get("model") or job.model,
        "content": [{"type": "text", "text": line["text"]}],
        "stop_reason": "max_tokens" if is_cut_off(line) else "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": num_prompt - num_cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": num_cached,
            "output_tokens": num_answer,
        },
    }
