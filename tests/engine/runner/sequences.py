"""Sequences for the sampler's tests, and what transformers makes of their logits."""

from collections.abc import Sequence as AbstractSequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.request import Request
from vlmflow_engine.sequence import Sequence


def make_sequence(
    *,
    seed: int = 0,
    position: int = 1,
    output: AbstractSequence[int] = (),
    stop: AbstractSequence[int] = (),
    banned: tuple[tuple[int, ...], ...] = (),
    grammar: Any = None,
    **generation: Any,
) -> Sequence:
    """A sequence whose next token stands at `position`; sampled from all tokens by default.

    The last of its tokens are `output`, generated already.
    """
    config = GenerationConfig(**{"do_sample": True, "temperature": 1.0, "top_k": 0} | generation)
    prompt = (0,) * (position - len(output))
    request = Request(0, prompt, (), config, seed, grammar=grammar, banned_sequences=banned)
    sequence = Sequence(request, max_num_tokens=10**6, stop_token_ids=frozenset(stop))
    for token_id in output:
        sequence.append(token_id)
    return sequence


def transformers_scores(logits: Tensor, sequence: Sequence) -> Tensor:
    """Let transformers' processors change one row, in LMDeploy's order."""
    request, config = sequence.request, sequence.request.generation
    generated = torch.tensor([sequence.output_token_ids], dtype=torch.int64)
    processors: list[Any] = [_OneRow(processor) for processor in config.logits_processors or ()]
    processors.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if not config.is_greedy:
        processors.append(TemperatureLogitsWarper(config.temperature))
    banned = [[token_id] for token_id in config.bad_token_ids or ()]
    banned += [list(ids) for ids in request.banned_sequences]
    if banned:
        processors.append(NoBadWordsLogitsProcessor(banned))
    if sequence.num_output_tokens < (config.min_new_tokens or 0) and sequence.stop_token_ids:
        processors.append(SuppressTokensLogitsProcessor(list(sequence.stop_token_ids), "cpu"))
    if not config.is_greedy:
        if config.top_k:
            processors.append(TopKLogitsWarper(config.top_k))
        processors += [TopPLogitsWarper(config.top_p), MinPLogitsWarper(config.min_p)]
    return LogitsProcessorList(processors)(generated, logits[None].clone())[0]


class _OneRow:
    """A user's processor, which knows no batch, as one of transformers'."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._processor(input_ids[0], scores[0])[None]


class Spelling:
    """A grammar that allows these tokens, place by place, and is its own matcher."""

    def __init__(self, *allowed: set[int]) -> None:
        self._allowed = allowed
        self.accepted: list[int] = []

    def new_matcher(self) -> "Spelling":
        return self

    @property
    def is_finished(self) -> bool:
        return len(self.accepted) == len(self._allowed)

    def allowed(self) -> NDArray[np.uint8]:
        flags = np.zeros(64, dtype=np.uint8)
        flags[list(self._allowed[len(self.accepted)])] = 1
        return np.packbits(flags, bitorder="little")

    def accept(self, token_id: int) -> None:
        if token_id not in self._allowed[len(self.accepted)]:
            raise ValueError(f"no place for {token_id}")
        self.accepted.append(token_id)
