"""A request inside the engine: its tokens, its blocks, how far it is computed."""

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vlmflow_engine.request import ImageInput, Request


class SequenceStatus(enum.Enum):
    WAITING = enum.auto()  # holds no block
    RUNNING = enum.auto()
    FINISHED = enum.auto()  # holds no block, never scheduled again


@dataclass(slots=True)
class VisionTime:
    """When images were encoded, and beside how many others: the encoder runs once a step."""

    started_at: float  # of time.monotonic()
    seconds: float
    num_images: int


class Sequence:
    """The engine appends to `token_ids` and sets `finish_reason`; all else the scheduler moves."""

    __slots__ = (
        "_ngram_counts",
        "banned_after",
        "banned_token_ids",
        "block_hashes",
        "block_ids",
        "error",
        "finish_reason",
        "first_token_at",
        "logprobs",
        "matcher",
        "max_num_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_named_blocks",
        "num_pending",
        "num_prompt_tokens",
        "num_preemptions",
        "request",
        "scheduled_at",
        "status",
        "stop_token_ids",
        "token_ids",
        "vision",
    )

    def __init__(
        self, request: Request, *, max_num_tokens: int, stop_token_ids: frozenset[int]
    ) -> None:
        self.request = request
        self.token_ids = list(request.prompt_token_ids)  # prompt and output
        self.num_prompt_tokens = len(self.token_ids)
        self.max_num_tokens = max_num_tokens  # prompt and output may not outgrow it
        self.stop_token_ids = stop_token_ids
        self.finish_reason: str | None = None
        self.error: str | None = None  # where finish_reason is "error"
        # How far its grammar has come, if it has one: allowed(), accept(token_id), is_finished.
        self.matcher: Any = request.grammar and request.grammar.new_matcher()
        self.logprobs: list[dict[int, float]] = []  # of each output token, where asked for
        banned = request.banned_sequences
        # Never generated, and not after the tokens before them: by the last of those.
        self.banned_token_ids = tuple(
            dict.fromkeys(
                [*(request.generation.bad_token_ids or ()), *(i[0] for i in banned if len(i) == 1)]
            )
        )
        self.banned_after: dict[int, list[tuple[int, ...]]] = {}
        for ids in banned:
            if len(ids) > 1:
                self.banned_after.setdefault(ids[-2], []).append(ids)
        self._ngram_counts: dict[tuple[int, ...], int] = {}  # of the output, where they may end it
        self.status = SequenceStatus.WAITING
        self.num_computed_tokens = 0  # tokens whose KV is stored
        # Tokens drawn in steps that have not come home: one at most when the next is planned.
        self.num_pending = 0
        self.num_cached_tokens = 0  # of the first admission, for the response
        self.num_preemptions = 0
        # Of time.monotonic(), for the response's times; None as long as it has not come to that.
        self.scheduled_at: float | None = None  # its first step began
        self.first_token_at: float | None = None  # the step that gave its first token ended
        self.vision: VisionTime | None = None  # where its images were encoded, if they were
        self.block_ids: list[int] = []
        self.block_hashes: list[bytes] = []  # chain over its full blocks, as far as known
        self.num_named_blocks = 0  # of its blocks, that the prefix cache knows

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_drawn_tokens(self) -> int:
        """Tokens of prompt and output, the one that is still on the device included."""
        return len(self.token_ids) + self.num_pending

    @property
    def num_ready_tokens(self) -> int:
        """How many of them a step may compute: who has reached his last token needs no other."""
        if self.num_pending and self.num_drawn_tokens >= self.max_num_tokens:
            return len(self.token_ids)
        return self.num_drawn_tokens

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def is_finished(self) -> bool:
        return self.status is SequenceStatus.FINISHED

    @property
    def must_go_on(self) -> bool:
        """Whether min_new_tokens still keeps it from stopping."""
        min_new_tokens = self.request.generation.min_new_tokens
        return min_new_tokens is not None and self.num_output_tokens < min_new_tokens

    @property
    def has_stop_token(self) -> bool:
        """Whether it ended with a stop token, which is no part of the answer."""
        return self.finish_reason == "stop" and self.token_ids[-1] in self.stop_token_ids

    def append(self, token_id: int) -> None:
        """Take a sampled token and decide whether it is the last one."""
        self.token_ids.append(token_id)
        is_repeated = self._count_ngram()
        if (
            token_id in self.stop_token_ids
            or (is_repeated and not self.must_go_on)
            or (self.matcher is not None and self.matcher.is_finished)
        ):
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.max_num_tokens:
            self.finish_reason = "length"

    def fail(self, reason: str) -> None:
        """End with an error: no next token can be chosen."""
        self.error = reason
        self.finish_reason = "error"

    def banned_next_ids(self) -> tuple[int, ...]:
        """The tokens that would complete a banned sequence now."""
        ids = self.token_ids
        return tuple(
            banned[-1]
            for banned in self.banned_after.get(ids[-1], ())
            if len(banned) - 1 <= self.num_output_tokens
            and tuple(ids[1 - len(banned) :]) == banned[:-1]
        )

    def images_within(self, start: int, end: int) -> Iterator[ImageInput]:
        """Yield the images with a placeholder among positions [start, end), by offset."""
        for image in self.request.images:
            if image.offset >= end:
                return
            if image.end > start:
                yield image

    def _count_ngram(self) -> bool:
        """Whether the output's last n-gram has come as often as ends an answer."""
        generation = self.request.generation
        size, threshold = generation.repetition_ngram_size, generation.repetition_ngram_threshold
        if size <= 0 or threshold <= 0 or self.num_output_tokens < size:
            return False
        ngram = tuple(self.token_ids[-size:])
        self._ngram_counts[ngram] = count = self._ngram_counts.get(ngram, 0) + 1
        return count >= threshold
