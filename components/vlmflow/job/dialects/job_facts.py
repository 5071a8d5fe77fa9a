"""What the outputs in other dialects say of the job, and names made of it."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Any


@dataclass(frozen=True, slots=True)
class JobFacts:
    """Of the job, not of a record."""

    job_id: str  # the identity's digest, or any other name that is this job's alone
    model: str  # where the request names none
    created: int  # seconds since 1970

    def request_id(self, line: dict[str, Any]) -> str:
        """24 letters that are a record's own, and the same whenever they are made."""
        return sha256(f"{self.job_id}\0{line['ordinal']}".encode()).hexdigest()[:24]


def usage_of(line: dict[str, Any]) -> tuple[int, int, int]:
    """(tokens of the prompt, those of them from the cache, tokens of the answer)."""
    usage = line["usage"]
    return usage["prompt_tokens"], usage["cached_tokens"], usage["completion_tokens"]


def is_cut_off(line: dict[str, Any]) -> bool:
    """Whether the answer ended at its limit of tokens."""
    return bool(line["finish_reason"] == "length")
