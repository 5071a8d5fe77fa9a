"""A step's plan: pure data, made by the scheduler, carried out by the runner."""

from dataclasses import dataclass, field

from vlmflow_engine.request import ImageInput
from vlmflow_engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """Tokens [start, end) of a sequence are computed; its blocks are there already."""

    sequence: Sequence
    start: int
    end: int
    is_sampled: bool  # the step ends at the last known token, so that a new one is drawn

    @property
    def is_decode(self) -> bool:
        """Whether the only token computed is one that was sampled before."""
        return self.end - self.start == 1 and self.end > self.sequence.num_prompt_tokens


@dataclass(frozen=True, slots=True)
class SampledToken:
    """What the runner returns for a sequence that gets a token."""

    token_id: int
    # The sampled token's own, and those of the likeliest tokens, by id; None if not asked for.
    logprobs: dict[int, float] | None = None
    error: str | None = None  # why no token could be chosen; token_id is -1 then


@dataclass(slots=True)
class StepPlan:
    """What one step computes, in this order."""

    evicted: list[bytes] = field(default_factory=list)  # embeddings to drop, by content hash
    encode: dict[bytes, ImageInput] = field(default_factory=dict)  # images to encode, each once
    scheduled: list[ScheduledSequence] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(item.end - item.start for item in self.scheduled)

    @property
    def sampled(self) -> list[Sequence]:
        """The sequences that get a token, in the order in which the runner returns them."""
        return [item.sequence for item in self.scheduled if item.is_sampled]
