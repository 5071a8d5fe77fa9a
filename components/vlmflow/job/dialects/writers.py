"""The output dialects of JSON lines, by name.

Each makes a line of (the manifest's own line, parsed, or None; a line of our results or failures;
facts of the job).
"""

from collections.abc import Callable
from typing import Any

from vlmflow.job.dialects.anthropic_output import anthropic_line
from vlmflow.job.dialects.bedrock_output import bedrock_line
from vlmflow.job.dialects.gemini_output import gemini_line
from vlmflow.job.dialects.job_facts import JobFacts
from vlmflow.job.dialects.openai_output import openai_line

LINE_WRITERS: dict[
    str, Callable[[dict[str, Any] | None, dict[str, Any], JobFacts], dict[str, Any]]
] = {
    "openai": openai_line,
    "anthropic": anthropic_line,
    "bedrock": bedrock_line,
    "gemini": gemini_line,
}
