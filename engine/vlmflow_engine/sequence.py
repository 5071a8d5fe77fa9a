"""A request inside the engine: its tokens, its blocks, how far it is computed."""

import enum
from collections.abc import Iterator
from typing import Any

from vlmflow_engine.request import ImageInput, Request


class SequenceStatus(enum.Enum):
    WAITING = enum.auto()  # holds no block
    RUNNING = enum.auto()
    FINISHED = enum.auto()  # holds no block, never scheduled again


class Sequence:
    """The engine appends to `token_ids` and sets `finish_reason`; all else the scheduler moves."""

    __slots__ = (
        "block_hashes",
        "block_ids",
        "finish_reason",
        "logprobs",
        "matcher",
        "max_num_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_prompt_tokens",
        "num_preemptions",
        "request",
        "status",
        "stop_token_ids",
        "token_ids",
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
        # How far its grammar has come, if it has one: mask(logits), accept(token_id), is_finished.
        self.matcher: Any = request.grammar and request.grammar.new_matcher()
        self.logprobs: list[dict[int, float]] = []  # of each output token, where asked for
        self.status = SequenceStatus.WAITING
        self.num_computed_tokens = 0  # tokens whose KV is stored
        self.num_cached_tokens = 0  # of the first admission, for the response
        self.num_preemptions = 0
        self.block_ids: list[int] = []
        self.block_hashes: list[bytes] = []  # chain over its full blocks, as far as known

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def ends_with_stop_token(self) -> bool:
        """Whether its last token only says that the answer is over."""
        return self.finish_reason == "stop" and self.token_ids[-1] in self.stop_token_ids

    @property
    def is_finished(self) -> bool:
        return self.status is SequenceStatus.FINISHED

    def append(self, token_id: int) -> None:
        """Take a sampled token and decide whether it is the last one."""
        self.token_ids.append(token_id)
        if token_id in self.stop_token_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.max_num_tokens:
            self.finish_reason = "length"

    def images_within(self, start: int, end: int) -> Iterator[ImageInput]:
        """Yield the images with a placeholder among positions [start, end), by offset."""
        for image in self.request.images:
            if image.offset >= end:
                return
            if image.end > start:
                yield image
