"""The next tokens of a step, drawn on the device but for those that the host has a say in.

Imported late: the kernels import triton.
"""

from collections.abc import Sequence as AbstractSequence

import torch
from torch import Tensor

from vlmflow_engine.plan import SampledToken
from vlmflow_engine.runner.device_sampler import (
    DeviceSampler,
    DrawnLogprobs,
    needs_host,
    read_logprobs,
)
from vlmflow_engine.runner.sampler import NOTHING_LEFT, Draw
from vlmflow_engine.runner.transfer import Download, upload_list
from vlmflow_engine.sequence import Sequence


class DeviceDrawer:
    """Draws for the sequences of a table of fixed size."""

    def __init__(
        self, num_rows: int, vocab_size: int, device: torch.device, logprobs_mode: str | None
    ) -> None:
        self._sampler = DeviceSampler(num_rows, vocab_size, device)
        self._logprobs_mode = logprobs_mode

    def admit(self, row: int, sequence: Sequence) -> None:
        """Send what the sequence asks of its draws, with the next one."""
        self._sampler.set_row(row, sequence)

    def release(self, row: int) -> None:
        """Forget what the row's sequence asks."""
        self._sampler.clear_row(row)

    def draw(
        self,
        logits: Tensor,
        sequences: AbstractSequence[Sequence],
        rows: Tensor,
        positions: Tensor,
    ) -> "DeviceDraw":
        """See `Drawer.draw`."""
        return DeviceDraw(
            self._sampler, logits, sequences, rows, positions, logprobs_mode=self._logprobs_mode
        )


class DeviceDraw:
    """A `Drawn` whose tokens and logprobs are copied home while the next step is computed."""

    def __init__(
        self,
        sampler: DeviceSampler,
        logits: Tensor,
        sequences: AbstractSequence[Sequence],
        rows: Tensor,
        positions: Tensor,
        *,
        logprobs_mode: str | None = None,
    ) -> None:
        """Draw.

        logits     [num_sequences, vocab_size] float32; left as they are
        rows       [num_sequences], of the sequence table
        positions  [num_sequences], where the tokens will stand
        """
        on_host = [row for row, sequence in enumerate(sequences) if needs_host(sequence)]
        self.is_known = bool(on_host)
        self._on_host = on_host
        self._host_draw: Draw | None = None
        own_rows = rows.int()
        if on_host:
            index = upload_list(on_host, logits.device)
            own_rows[index] = -1
        self.chosen = sampler.draw(logits, own_rows, positions.int())  # [num_sequences] int64
        if on_host:
            self._host_draw = Draw(
                logits[index], [sequences[row] for row in on_host], logprobs_mode=logprobs_mode
            )
            self.chosen[index] = self._host_draw.chosen
        wanted = {
            row: sequence.request.generation.logprobs
            for row, sequence in enumerate(sequences)
            if sequence.request.generation.logprobs is not None and row not in on_host
        }
        self._logprobs: DrawnLogprobs | None = None
        if wanted:
            self._logprobs = sampler.logprobs(logits, self.chosen, wanted, mode=logprobs_mode)
        self._tokens = Download(self.chosen)

    def take(self) -> list[SampledToken]:
        """Bring the tokens home."""
        logprobs = {} if self._logprobs is None else read_logprobs(self._logprobs)
        tokens = [
            SampledToken(-1, error=NOTHING_LEFT)
            if token_id < 0
            else SampledToken(token_id, logprobs.get(row))
            for row, token_id in enumerate(self._tokens.wait().tolist())
        ]
        if self._host_draw is not None:
            for row, token in zip(self._on_host, self._host_draw.take(), strict=True):
                tokens[row] = token
        return tokens
