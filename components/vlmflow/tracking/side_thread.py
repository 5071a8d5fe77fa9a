"""A thread that talks to a tracking server, so that nobody else ever waits for one."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

FLUSH_SECONDS = 1.0
MAX_POINTS = 20_000  # metric points that wait; beyond that the oldest go
MAX_BATCH = 1000  # points in one call, MLflow's own limit


@dataclass(frozen=True, slots=True)
class MetricPoint:
    key: str
    value: float
    step: int
    timestamp_ms: int


class SideThread:
    """Runs calls in order and sends metric points in batches.

    A call that fails is reported and skipped; what comes after it is still tried.
    """

    def __init__(
        self,
        send_points: Callable[[list[MetricPoint]], None],
        report_error: Callable[[Exception], None],
    ) -> None:
        self._send_points = send_points
        self._report_error = report_error
        self._calls: deque[Callable[[], None]] = deque()
        self._points: deque[MetricPoint] = deque(maxlen=MAX_POINTS)
        self._wake = threading.Event()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self.num_dropped = 0

    def start(self) -> None:
        self._thread.start()

    def call(self, task: Callable[[], None]) -> None:
        """Queue a call. Calls are few; metric points are not, so they have a way of their own."""
        self._calls.append(task)
        self._wake.set()

    def add_points(self, step: int, metrics: dict[str, float]) -> None:
        """Queue one value of each metric, stamped now. Never waits."""
        timestamp = time.time_ns() // 1_000_000
        full = len(self._points) + len(metrics) - MAX_POINTS
        self.num_dropped += max(0, full)
        self._points.extend(
            MetricPoint(key, value, step, timestamp) for key, value in metrics.items()
        )

    def drain(self, timeout_seconds: float) -> bool:
        """Wait until what is queued now was tried; False if it takes longer than that."""
        done = threading.Event()
        self.call(done.set)
        return done.wait(timeout_seconds)

    def close(self, timeout_seconds: float) -> bool:
        """Let the thread finish what is queued; False if it takes longer than that."""
        self._is_closing = True
        self._wake.set()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()
            # Points that were there before a call are sent before it.
            self._attempt(self._flush)
            while self._calls:
                self._attempt(self._calls.popleft())
            if self._is_closing and not self._calls:
                self._attempt(self._flush)
                return

    def _flush(self) -> None:
        while self._points:
            batch = [self._points.popleft() for _ in range(min(MAX_BATCH, len(self._points)))]
            self._send_points(batch)

    def _attempt(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as error:  # a tracking server must never end a job
            self._report_error(error)
