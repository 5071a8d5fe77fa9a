"""Tells a person how far a job is: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

LINE_SECONDS = 10.0
Say = Callable[[str], None]  # tells a person one sentence


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the job stands."""

    num_records: int
    num_done: int  # with those of earlier attempts and those set aside
    num_failed: int
    records_per_second: float

    @property
    def eta_seconds(self) -> float | None:
        left = self.num_records - self.num_done
        return left / self.records_per_second if self.records_per_second else None


class Display(Protocol):
    def say(self, message: str) -> None: ...

    def show(self, progress: Progress) -> None: ...

    def close(self) -> None: ...


def make_display() -> Display:
    """A bar where a person looks on, lines where a log is kept."""
    return TerminalDisplay() if sys.stderr.isatty() else LineDisplay()


class LineDisplay:
    """A line every LINE_SECONDS on standard error."""

    def __init__(self) -> None:
        self._last = -LINE_SECONDS
        self._is_done = False

    def say(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    def show(self, progress: Progress) -> None:
        now = time.monotonic()
        is_done = progress.num_done == progress.num_records
        was_done, self._is_done = self._is_done, is_done
        if is_done and was_done or (now - self._last < LINE_SECONDS and not is_done):
            return
        self._last = now
        eta = progress.eta_seconds
        self.say(
            f"{progress.num_done}/{progress.num_records} records, "
            f"{progress.records_per_second:.1f}/s, "
            f"ETA {format_seconds(eta) if eta is not None else '-'}, {progress.num_failed} failed"
        )

    def close(self) -> None:
        pass


class TerminalDisplay:
    """A bar that is drawn over itself."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.completed:.0f}/{task.total:.0f} records"),
            BarColumn(),
            TextColumn("{task.fields[rate]:.1f}/s  ETA {task.fields[eta]}  {task.fields[failed]}"),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("", total=1, visible=False, rate=0.0, eta="-", failed="")
        self._bar.start()

    def say(self, message: str) -> None:
        self._bar.console.print(message, markup=False, highlight=False)

    def show(self, progress: Progress) -> None:
        eta = progress.eta_seconds
        self._bar.update(
            self._task,
            visible=True,
            total=progress.num_records,
            completed=progress.num_done,
            rate=progress.records_per_second,
            eta=format_seconds(eta) if eta is not None else "-",
            failed=f"{progress.num_failed} failed" if progress.num_failed else "",
        )

    def close(self) -> None:
        self._bar.stop()


def format_seconds(seconds: float) -> str:
    """75 -> 1m15s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
