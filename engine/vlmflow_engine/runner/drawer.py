"""Who draws a step's tokens: the host's sampler, or the device's."""

from collections.abc import Sequence as AbstractSequence
from typing import Protocol

import torch
from torch import Tensor

from vlmflow_engine.plan import SampledToken
from vlmflow_engine.runner.sampler import Draw
from vlmflow_engine.sequence import Sequence


class Drawn(Protocol):
    """The next tokens of a step, on their way home."""

    # Whether the host has looked at a sequence's tokens to draw the next: it must know that one
    # before it draws another.
    is_known: bool
    chosen: Tensor  # [num_sequences] int64, on the device; -1: none could be chosen

    def take(self) -> list[SampledToken]:
        """Bring the tokens home, and let grammars accept theirs."""


class Drawer(Protocol):
    """Draws tokens for sequences that have rows of the sequence table."""

    def admit(self, row: int, sequence: Sequence) -> None:
        """A sequence has got a row."""

    def release(self, row: int) -> None:
        """The sequence of a row has ended, or will begin again."""

    def draw(
        self,
        logits: Tensor,
        sequences: AbstractSequence[Sequence],
        rows: Tensor,
        positions: Tensor,
    ) -> Drawn:
        """Draw.

        logits     [num_sequences, vocab_size] float32; left as they are
        rows       [num_sequences] int64, of the sequence table
        positions  [num_sequences] int64, where the tokens will stand
        """


def make_drawer(
    *,
    has_triton: bool,
    num_rows: int,
    vocab_size: int,
    device: torch.device,
    logprobs_mode: str | None,
) -> Drawer:
    """The device's where Triton kernels run."""
    if not has_triton:
        return _HostDrawer(logprobs_mode)
    # Late: who computes on a CPU needs no triton.
    from vlmflow_engine.runner.device_draw import DeviceDrawer

    return DeviceDrawer(num_rows, vocab_size, device, logprobs_mode)


class _HostDrawer:
    def __init__(self, logprobs_mode: str | None) -> None:
        self._logprobs_mode = logprobs_mode

    def admit(self, row: int, sequence: Sequence) -> None:
        pass

    def release(self, row: int) -> None:
        pass

    def draw(
        self,
        logits: Tensor,
        sequences: AbstractSequence[Sequence],
        rows: Tensor,
        positions: Tensor,
    ) -> Drawn:
        return Draw(logits, sequences, logprobs_mode=self._logprobs_mode)
