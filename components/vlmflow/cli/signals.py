"""Ctrl-C and SIGTERM."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmflow.job.loop import StopSignal


@contextmanager
def handling_signals(stop: "StopSignal") -> Iterator[None]:
    """Let SIGTERM and Ctrl-C drain the job instead of tearing it down."""
    before = {
        number: signal.signal(number, lambda *_: stop())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
