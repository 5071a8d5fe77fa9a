"""Next tokens drawn on the device: no number goes home before it is asked for.

What a sequence asks of its draws lies in a table on the device, in the row that is its own while it
runs. A row is sent when a sequence is admitted; afterwards a draw is told rows and positions only.
Tokens are those of runner/sampler.py. What needs the last token on the host (`needs_host`) goes
through there.

Imported late: the kernels import triton.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlmflow_engine.kernels.draw_tokens import draw_tokens
from vlmflow_engine.kernels.edit_logits import edit_logits
from vlmflow_engine.kernels.kept_tokens import kept_tokens
from vlmflow_engine.kernels.sampling_table import (
    NUM_COLUMNS,
    allocate_sampling_table,
    num_words,
)
from vlmflow_engine.kernels.top_logprobs import top_logprobs
from vlmflow_engine.runner.draw import seed_key
from vlmflow_engine.runner.transfer import Download, upload
from vlmflow_engine.sequence import Sequence

# A colder one leaves the largest logits alone just as this does, and divisions would overflow.
_COLDEST = 1e-30
_MASKS = ("seen", "forbidden", "stops")


def needs_host(sequence: Sequence) -> bool:
    """Whether the next token cannot be chosen before the host has seen the last one."""
    return bool(
        sequence.matcher is not None
        or sequence.banned_after
        or sequence.request.generation.logits_processors
    )


@dataclass(frozen=True, slots=True)
class DrawnLogprobs:
    """Log probabilities on their way home."""

    rows: list[int]  # of the step's logits
    counts: list[int]  # of likeliest tokens that each of them asks for
    ids: Download  # [len(rows), 1 + largest count] int64: the chosen token, then the likeliest
    values: Download  # float32, of the same shape


class DeviceSampler:
    """Draws tokens for the sequences of a table of fixed size. Used by one thread."""

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device | str) -> None:
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._table = allocate_sampling_table(num_rows, vocab_size, self._device)
        self._edited: set[int] = set()  # rows whose logits are changed before they are filtered
        # What is not yet sent, by row.
        self._options: dict[int, NDArray[np.int32]] = {}
        self._masks: dict[str, dict[int, NDArray[np.int32]]] = {name: {} for name in _MASKS}

    @property
    def is_editing(self) -> bool:
        """Whether a draw changes logits: then it launches one kernel more."""
        return bool(self._edited)

    def set_row(self, row: int, sequence: Sequence) -> None:
        """Give a row to a sequence; it is sent with the next draw."""
        generation = sequence.request.generation
        options = np.zeros(NUM_COLUMNS, dtype=np.int32)
        seeds, floats = options.view(np.uint64), options.view(np.float32)
        seeds[0] = seed_key(sequence.request.seed)
        floats[2:6] = (
            max(generation.temperature, _COLDEST),
            generation.top_p,
            generation.min_p,
            generation.repetition_penalty,
        )
        top_k = generation.top_k if generation.top_k < self._vocab_size else 0
        options[6] = 1 if generation.is_greedy else top_k
        forbidden = self._known(sequence.banned_token_ids)
        options[7] = bool(forbidden)
        stops = self._known(sequence.stop_token_ids)
        if stops and generation.min_new_tokens:
            options[8] = sequence.num_prompt_tokens + generation.min_new_tokens
        self._options[row] = options
        is_penalised = floats[5] != 1
        if is_penalised:
            self._masks["seen"][row] = self._words(set(sequence.output_token_ids))
        if forbidden:
            self._masks["forbidden"][row] = self._words(forbidden)
        if options[8]:
            self._masks["stops"][row] = self._words(stops)
        self.clear_row(row)
        if is_penalised or forbidden or options[8]:
            self._edited.add(row)

    def clear_row(self, row: int) -> None:
        """Take note that the row's sequence has ended. The row may be set again at once."""
        self._edited.discard(row)

    def draw(
        self,
        logits: Tensor,
        rows: Tensor,
        positions: Tensor,
        *,
        allowed: Tensor | None = None,
        allowed_rows: Tensor | None = None,
    ) -> Tensor:
        """Return the next token of each row [num_rows] int64, on the device.

        logits        [num_rows, vocab_size] float32; left as they are
        rows          [num_rows] int32: rows of the table, all different; -1: padded
        positions     [num_rows] int32: where the tokens stand
        allowed       what grammars allow, in words (`pack_masks`), on the device
        allowed_rows  [num_rows] int32: each one's row of `allowed`; -1: no grammar
        -1 stands where no token can be chosen, and for padded rows.
        """
        self.send()
        scores = logits
        if self._edited or allowed is not None:
            scores = edit_logits(
                logits, rows, positions, self._table, allowed=allowed, allowed_rows=allowed_rows
            )
        table = self._table
        kept = kept_tokens(
            scores, rows, temperature=table.temperature, top_k=table.top_k, top_p=table.top_p
        )
        return draw_tokens(scores, rows, positions, kept, table)

    def logprobs(
        self, logits: Tensor, token_ids: Tensor, wanted: dict[int, int], *, mode: str | None
    ) -> DrawnLogprobs:
        """Return the values of chosen tokens and, after each, of the likeliest ones.

        logits     [num_rows, vocab_size] as the model gave them
        token_ids  [num_rows] int64 as they were drawn
        wanted     how many likeliest tokens, by row; other rows are left out
        mode       "raw_logprobs", the same as None, or "raw_logits"
        """
        rows = list(wanted)
        counts = [min(count, self._vocab_size) for count in wanted.values()]
        index = self._sent(np.array(rows, dtype=np.int64))
        ids, values = top_logprobs(
            logits[index], token_ids[index], max(counts, default=0), is_raw=mode == "raw_logits"
        )
        return DrawnLogprobs(rows, counts, Download(ids), Download(values))

    def send(self) -> None:
        """Send the rows that were set since the last time. The host does not wait."""
        if self._options:
            self._write(self._table.options, self._options)
        for name, masks in self._masks.items():
            if masks:
                self._write(getattr(self._table, name), masks)

    def _write(self, target: Tensor, staged: dict[int, NDArray[np.int32]]) -> None:
        rows = self._sent(np.array(list(staged), dtype=np.int64))
        target.index_copy_(0, rows, self._sent(np.stack(list(staged.values()))))
        staged.clear()

    def _sent(self, numbers: NDArray[Any]) -> Tensor:
        return upload([numbers], self._device)[0]

    def _known(self, ids: Iterable[int]) -> list[int]:
        """Ids that have a logit: a tokenizer may know more tokens than the model."""
        return [token_id for token_id in ids if 0 <= token_id < self._vocab_size]

    def _words(self, token_ids: Collection[int]) -> NDArray[np.int32]:
        flags = np.zeros(self._vocab_size, dtype=np.uint8)
        flags[list(token_ids)] = 1
        words: NDArray[np.int32] = pack_masks(
            np.packbits(flags, bitorder="little")[None], self._vocab_size
        )[0]
        return words


def pack_masks(masks: NDArray[np.uint8], vocab_size: int) -> NDArray[np.int32]:
    """Bring sets of tokens, as a grammar gives them, into the kernels' words.

    masks  [num_masks, bytes], a bit a token, the first one's the lowest
    """
    size = -(-vocab_size // 8)
    packed = np.zeros((len(masks), num_words(vocab_size) * 4), dtype=np.uint8)
    packed[:, :size] = masks[:, :size]
    words: NDArray[np.int32] = packed.view("<i4")
    return words


def read_logprobs(drawn: DrawnLogprobs) -> dict[int, dict[int, float]]:
    """Return values by token, by row, as `gather_logprobs` does. Waits for the device."""
    all_ids, all_values = drawn.ids.wait().tolist(), drawn.values.wait().tolist()
    lines = zip(drawn.rows, drawn.counts, all_ids, all_values, strict=True)
    return {
        row: dict(zip(ids[: 1 + count], values, strict=False)) for row, count, ids, values in lines
    }
