"""The output dialects of JSON lines, by name.

Each makes a line of (the manifest's own line, parsed, or None; a line of our results or failures;
facts of the job).
"""

from collections.abc import Callable
from typing import Any

from vlmflow.job.dialects.anthropic_output import anthropic_line
from vlmflow.job.dialects.bedrock_output import bedrock_line
from vlmflow.job.dialects.gemini_output import gemini_line
from vlmflow.job.dialects.item import LineError
from vlmflow.job.dialects.job_facts import JobFacts
from vlmflow.job.dialects.json_lines import parse_object
from vlmflow.job.dialects.openai_output import openai_line


def parse_original(raw: bytes | None) -> dict[str, Any] | None:
    """The manifest's own line for a writer; None if it is no JSON object."""
    try:
        return parse_object(1, raw) if raw is not None else None
    except LineError:
        return None


LINE_WRITERS: dict[
    str, Callable[[dict[str, Any] | None, dict[str, Any], JobFacts], dict[str, Any]]
] = {
    "openai": openai_line,
    "anthropic": anthropic_line,
    "bedrock": bedrock_line,
    "gemini": gemini_line,
}
