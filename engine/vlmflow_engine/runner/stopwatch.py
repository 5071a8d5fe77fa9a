"""Measures parts of a step, on a CPU and on a device that works behind the host's back."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Adds up the seconds that a device spends inside `measure`; nothing waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._seconds = 0.0
        self._pending: deque[tuple[Any, Any]] = deque()

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Count what is computed, or queued on the device, in this block."""
        if self._is_cuda:
            start, end = _event(), _event()
            start.record()
            yield
            end.record()
            self._pending.append((start, end))
        else:
            begun = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - begun

    @property
    def seconds(self) -> float:
        """All that was measured and is done; on a GPU the rest is counted by a later call."""
        while self._pending and self._pending[0][1].query():
            start, end = self._pending.popleft()
            self._seconds += start.elapsed_time(end) / 1000
        return self._seconds


def _event() -> Any:  # torch's stubs say nothing of its methods
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
