"""Gemini's batch output: the request's line with `response` and `status`."""

from datetime import UTC, datetime
from typing import Any

from vlmflow.job.dialects.job_facts import JobFacts, is_cut_off, usage_of


def gemini_line(
    original: dict[str, Any] | None, line: dict[str, Any], job: JobFacts
) -> dict[str, Any]:
    """Make one line; `status` is empty where there is an answer.

    original  the manifest's line, where it is Gemini's: it is repeated
    line      of our results or failures
    """
    answer = dict(original or {"request": None}) | {"key": line["id"]}
    time = datetime.fromtimestamp(job.created, UTC).isoformat()
    if "error" in line:
        status = f"{line['error']['class']}: {line['error']['message']}"
        return answer | {"status": status, "processed_time": time, "response": {}}
    num_prompt, num_cached, num_answer = usage_of(line)
    candidate = {
        "index": 0,
        "content": {"role": "model", "parts": [{"text": line["text"]}]},
        "finishReason": "MAX_TOKENS" if is_cut_off(line) else "STOP",
    }
    response = {
        "responseId": job.request_id(line),
        "createTime": time,
        "modelVersion": job.model,
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": num_prompt,
            "candidatesTokenCount": num_answer,
            "totalTokenCount": num_prompt + num_answer,
            "cachedContentTokenCount": num_cached,
        },
    }
    return answer | {"status": "", "processed_time": time, "response": response}
