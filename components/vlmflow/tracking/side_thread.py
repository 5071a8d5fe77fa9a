"""A thread that talks to a tracking server, so that nobody else ever waits for one."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from vlmflow.tracking.metric_point import MAX_BATCH, MetricPoint

FLUSH_SECONDS = 1.0
MAX_POINTS = 20_000  # metric points that wait; beyond that the oldest go

Batch = tuple[str, list[MetricPoint]]  # points of one run


class SideThread:
    """Runs calls in order and sends metric points in batches, each to the run of a name.

    A call that fails is reported and skipped; what comes after it is still tried.
    """

    def __init__(
        self,
        send: Callable[[str, list[MetricPoint]], None],
        report_error: Callable[[Exception], None],
    ) -> None:
        self._send = send
        self._report_error = report_error
        self._calls: deque[Callable[[], None]] = deque()
        self._points: deque[tuple[str, MetricPoint]] = deque(maxlen=MAX_POINTS)
        self._sending: Batch | None = None
        self._wake = threading.Event()
        self._is_closing = False
        self.is_abandoned = False  # `close` gave up: nothing more is begun
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self.num_dropped = 0

    def start(self) -> None:
        self._thread.start()

    def call(self, task: Callable[[], None]) -> None:
        """Queue a call. Calls are few; metric points are not, so they have a way of their own."""
        self._calls.append(task)
        self._wake.set()

    def add_points(self, run: str, step: int, metrics: dict[str, float]) -> None:
        """Queue one value of each metric, stamped now. Never waits."""
        now = time.time_ns() // 1_000_000
        full = len(self._points) + len(metrics) - MAX_POINTS
        self.num_dropped += max(0, full)
        self._points.extend(
            (run, MetricPoint(key, value, step, now)) for key, value in metrics.items()
        )

    def drain(self, timeout_seconds: float) -> bool:
        """Wait until what is queued now was tried; False if it takes longer than that."""
        done = threading.Event()
        self.call(done.set)
        return done.wait(max(0.0, timeout_seconds))

    def close(self, timeout_seconds: float) -> bool:
        """Let the thread finish what is queued; False if it takes longer than that.

        Then it begins nothing more, and `left` has the points.
        """
        self._is_closing = True
        self._wake.set()
        self._thread.join(max(0.0, timeout_seconds))
        self.is_abandoned = self._thread.is_alive()
        return not self.is_abandoned

    def left(self) -> Iterator[Batch]:
        """Yield what was not sent when `close` gave up.

        What was being sent may yet arrive, and is then there twice: MLflow keeps one of them.
        """
        sending = self._sending
        if sending is not None:
            yield sending
        while self._points:
            yield self._take_batch()

    def _run(self) -> None:
        while True:
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()
            # Points that were there before a call are sent before it.
            self._flush()
            while self._calls and not self.is_abandoned:
                self._attempt(self._calls.popleft())
            if self.is_abandoned:
                return
            if self._is_closing and not self._calls:
                self._flush()
                return

    def _flush(self) -> None:
        while self._points and not self.is_abandoned:
            batch = self._sending = self._take_batch()
            self._attempt(lambda batch=batch: self._send(*batch))  # type: ignore[misc]
            self._sending = None

    def _take_batch(self) -> Batch:
        run, point = self._points.popleft()
        batch = [point]
        while self._points and len(batch) < MAX_BATCH and self._points[0][0] == run:
            batch.append(self._points.popleft()[1])
        return run, batch

    def _attempt(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as error:  # a tracking server must never end a job
            self._report_error(error)
