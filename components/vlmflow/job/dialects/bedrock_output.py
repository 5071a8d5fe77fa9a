"""Bedrock's batch output: the lines of `<manifest>.out`, and the counts of `manifest.json.out`."""

from dataclasses import dataclass
from typing import Any

from vlmflow.job.dialects.anthropic_output import message_body
from vlmflow.job.dialects.bedrock import kind_of_body
from vlmflow.job.dialects.job_facts import JobFacts, is_cut_off, usage_of
from vlmflow.job.dialects.openai_output import chat_body

MANIFEST_OUT = "manifest.json.out"


def bedrock_line(
    original: dict[str, Any] | None, line: dict[str, Any], job: JobFacts
) -> dict[str, Any]:
    """Make one line, with `modelOutput` or with `error`.

    original  the manifest's line, where it is Bedrock's: its body says in whose shape the answer
              is, and is repeated. A record of another dialect is answered as Converse does.
    line      of our results or failures
    """
    body = (original or {}).get("modelInput")
    answer = {"recordId": line["id"], "modelInput": body}
    if "error" in line:
        code = 500 if line["error"]["stage"] == "generate" else 400
        error = {"errorCode": code, "errorMessage": line["error"]["message"]}
        return answer | {"error": error}
    kind = kind_of_body(body) if isinstance(body, dict) else "converse"
    if kind == "anthropic":
        output = message_body(body or {}, line, job)
    elif kind == "openai":
        output = chat_body(body or {}, line, job)
    else:
        output = _converse_body(line)
    return answer | {"modelOutput": output}


def _converse_body(line: dict[str, Any]) -> dict[str, Any]:
    num_prompt, num_cached, num_answer = usage_of(line)
    return {
        "output": {"message": {"role": "assistant", "content": [{"text": line["text"]}]}},
        "stopReason": "max_tokens" if is_cut_off(line) else "end_turn",
        "usage": {
            "inputTokens": num_prompt,
            "outputTokens": num_answer,
            "totalTokens": num_prompt + num_answer,
            "cacheReadInputTokens": num_cached,
        },
        "metrics": {"latencyMs": round(line["seconds"] * 1000)},
    }


@dataclass(slots=True)
class BedrockCounts:
    """What `manifest.json.out` says of all lines."""

    num_success: int = 0
    num_error: int = 0
    num_input_tokens: int = 0
    num_output_tokens: int = 0

    def add(self, line: dict[str, Any]) -> None:
        """Count a line of our results or failures."""
        if "error" in line:
            self.num_error += 1
            return
        num_prompt, _, num_answer = usage_of(line)
        self.num_success += 1
        self.num_input_tokens += num_prompt
        self.num_output_tokens += num_answer

    def as_dict(self) -> dict[str, int]:
        num_records = self.num_success + self.num_error
        return {
            "totalRecordCount": num_records,
            "processedRecordCount": num_records,
            "successRecordCount": self.num_success,
            "errorRecordCount": self.num_error,
            "inputTokenCount": self.num_input_tokens,
            "outputTokenCount": self.num_output_tokens,
        }
