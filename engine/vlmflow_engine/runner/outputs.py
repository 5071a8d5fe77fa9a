"""What a request may ask for beside its tokens: logits, hidden states, the prompt's cross-entropy.

Rows are counted by position, so what a preemption has computed again is not taken twice. Row `p`
holds what the model knows once it has read token `p`: the token `p + 1` was drawn from it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmflow_engine.runner.batch import OutputRows
from vlmflow_engine.sequence import Sequence

# Rows of a prompt whose logits are computed at once: each is a vocabulary wide.
_ROWS_PER_PASS = 256


@dataclass(frozen=True, slots=True)
class RequestOutputs:
    """Of one request; tensors in float32 on the CPU.

    The first row is that of the prompt's first token if "all" was asked for, else of its last; the
    last row is the one that the answer's last token was drawn from.
    """

    logits: Tensor | None = None  # [positions, vocab_size]
    last_hidden_state: Tensor | None = None  # [positions, hidden_size], after the final norm
    ppl: float | None = None  # mean cross-entropy of the prompt's tokens but the first


@dataclass(slots=True)
class _Collected:
    next_row: int
    logits: list[Tensor] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)
    loss: float = 0.0


class OutputCollector:
    """Collects rows of the decoder, step by step."""

    def __init__(self, head: Callable[[Tensor], Tensor]) -> None:
        self._head = head  # hidden states [rows, hidden_size] -> logits [rows, vocab_size]
        self._collected: dict[int, _Collected] = {}

    def collect(self, rows: OutputRows, hidden: Tensor) -> None:
        """Take a sequence's rows of a step's hidden states [num_hidden, hidden_size]."""
        sequence = rows.sequence
        collected = self._collected.get(sequence.request.request_id)
        if collected is None:
            wants_prompt = sequence.request.generation.wants_prompt_rows
            collected = _Collected(0 if wants_prompt else sequence.num_prompt_tokens - 1)
            self._collected[sequence.request.request_id] = collected
        end = rows.start + rows.num_rows
        for start in range(max(rows.start, collected.next_row), end, _ROWS_PER_PASS):
            stop = min(start + _ROWS_PER_PASS, end)
            first = rows.row - rows.start
            part = hidden[first + start : first + stop]
            _take_rows(collected, sequence, start, part, self._head)
            collected.next_row = stop

    def take(self, sequence: Sequence, num_output_tokens: int) -> RequestOutputs:
        """Hand out what was collected for an answer of so many tokens, and forget it."""
        collected = self._collected.pop(sequence.request.request_id, None)
        if collected is None:
            return RequestOutputs()
        generation, num_prompt = sequence.request.generation, sequence.num_prompt_tokens

        def joined(rows: list[Tensor], kind: str | None) -> Tensor | None:
            if not rows or kind is None:
                return None
            first = 0 if kind == "all" else num_prompt - 1
            return torch.cat(rows)[: num_prompt - 1 + num_output_tokens - first]

        return RequestOutputs(
            logits=joined(collected.logits, generation.output_logits),
            last_hidden_state=joined(collected.hidden, generation.output_last_hidden_state),
            ppl=collected.loss / (num_prompt - 1)
            if generation.return_ppl and num_prompt > 1
            else None,
        )

    def forget(self, request_id: int) -> None:
        """Drop what was collected for a request that ends without an answer."""
        self._collected.pop(request_id, None)


def _take_rows(
    collected: _Collected,
    sequence: Sequence,
    start: int,
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
) -> None:
    """Take rows [start, start + len(hidden)) of a sequence."""
    generation, num_prompt = sequence.request.generation, sequence.num_prompt_tokens

    def wanted(rows: Tensor, kind: str | None) -> Tensor:
        first = 0 if kind == "all" else num_prompt - 1
        return rows[max(0, first - start) :] if kind is not None else rows[:0]

    # Of the rows in the prompt all but its last foretell a token of the prompt.
    num_foretold = min(len(hidden), num_prompt - 1 - start) if generation.return_ppl else 0
    needs_logits = generation.output_logits is not None or num_foretold > 0
    logits = head(hidden).float() if needs_logits else hidden[:0]
    if num_foretold > 0:
        targets = torch.tensor(sequence.token_ids[start + 1 : start + 1 + num_foretold])
        loss = F.cross_entropy(logits[:num_foretold], targets.to(logits.device), reduction="sum")
        collected.loss += loss.item()
    collected.logits.append(wanted(logits, generation.output_logits).cpu())
    collected.hidden.append(wanted(hidden, generation.output_last_hidden_state).float().cpu())
