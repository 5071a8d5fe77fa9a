"""What the device knows of the sequences that are being answered: a row of tensors for each.

The host sends what is new and nothing twice: a block when it is allocated, a token never, for it
was drawn on the device. So a step of decoding needs no more than the list of its rows, and that
only when it has changed.
"""

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlmflow_engine.runner.positions import position_shift
from vlmflow_engine.runner.transfer import upload
from vlmflow_engine.sequence import Sequence


@dataclass(slots=True)
class _Row:
    index: int
    num_blocks: int = 0  # that the device knows
    num_tokens: int = 0  # as the device has it, or will have once the steps launched are done


class SequenceTable:
    """`num_rows` rows, and behind them one for the padding of a batch.

    Every change is queued on the device behind the steps that were launched before it, so a row may
    be given to another sequence as soon as the host knows that the first one has ended.
    """

    def __init__(self, *, num_rows: int, blocks_per_row: int, device: torch.device) -> None:
        self._device = device
        self.padding_row = num_rows
        shape = num_rows + 1
        self.last_tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        # Of prompt and output, the last token included. 0 in the padding row.
        self.num_tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        # What is added to a token's place in the sequence to get its position, once it is text
        # behind all images: see `runner.positions`.
        self.position_shifts = torch.zeros(shape, dtype=torch.int64, device=device)
        self.block_tables = torch.zeros(shape, blocks_per_row, dtype=torch.int32, device=device)
        self._rows: dict[int, _Row] = {}  # by request id
        self._free = list(range(num_rows - 1, -1, -1))

    def knows_last_token(self, sequence: Sequence) -> bool:
        """Whether the device has a sequence's last token and its number, drawn or not yet drawn."""
        row = self._rows.get(sequence.request.request_id)
        return row is not None and row.num_tokens == sequence.num_drawn_tokens

    def row_of(self, sequence: Sequence) -> int:
        """The row of a sequence that was admitted."""
        return self._rows[sequence.request.request_id].index

    def admit(
        self, sequences: AbstractSequence[Sequence], *, num_position_axes: int
    ) -> list[Sequence]:
        """Give each sequence a row that has none, and send what blocks are new.

        Returns those that are new here.
        """
        added: list[Sequence] = []
        places: list[tuple[int, int, int]] = []  # row, column, block
        for sequence in sequences:
            request_id = sequence.request.request_id
            row = self._rows.get(request_id)
            if row is None:
                row = self._rows[request_id] = _Row(self._free.pop())
                added.append(sequence)
            for column in range(row.num_blocks, len(sequence.block_ids)):
                places.append((row.index, column, sequence.block_ids[column]))
            row.num_blocks = len(sequence.block_ids)
        if places:
            array: NDArray[np.int64] = np.array(places, dtype=np.int64)
            (sent,) = upload([array], self._device)
            self.block_tables[sent[:, 0], sent[:, 1]] = sent[:, 2].int()
        if added and num_position_axes > 1:
            rows, shifts = upload(
                [
                    np.array([self.row_of(sequence) for sequence in added], dtype=np.int64),
                    np.array([position_shift(sequence) for sequence in added], dtype=np.int64),
                ],
                self._device,
            )
            self.position_shifts[rows] = shifts
        return added

    def note(
        self,
        sequences: AbstractSequence[Sequence],
        rows: Tensor,
        tokens: Tensor,
        num_tokens: Tensor,
    ) -> None:
        """Take the tokens that a step has drawn for sequences, before they count as pending.

        rows, tokens  [num_sampled] int64
        num_tokens    [num_sampled] int64, with the token drawn
        """
        # Where none could be drawn the sequence ends, but a step may be on its way with it.
        self.last_tokens[rows] = tokens.clamp(min=0)
        self.num_tokens[rows] = num_tokens
        for sequence in sequences:
            self._rows[sequence.request.request_id].num_tokens = sequence.num_drawn_tokens + 1

    def release(self, sequence: Sequence) -> int | None:
        """Take a sequence's row back and return it, if it has one."""
        row = self._rows.pop(sequence.request.request_id, None)
        if row is None:
            return None
        self._free.append(row.index)
        return row.index
