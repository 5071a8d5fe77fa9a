"""Commits outcomes on a thread of its own."""

import queue
import threading
import time
from collections.abc import Callable

from vlmflow.job.commit_log import CommitLog
from vlmflow.job.record import Outcome
from vlmflow.job.spec import Limits

_FULL = 4  # times commit_records: the store is slower than the engine then


class Committer:
    """Takes outcomes; commits after `commit_records` of them or `commit_seconds`."""

    def __init__(self, log: CommitLog, limits: Limits, write_progress: Callable[[], None]) -> None:
        """`write_progress` is called every few seconds, on the committer's thread."""
        self._log = log
        self._limits = limits
        self._write_progress = write_progress
        self._queue: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self.error: Exception | None = None  # the first one; nothing is committed after it
        self.num_waiting = 0

    @property
    def is_full(self) -> bool:
        """Whether the caller had better wait."""
        return self.num_waiting >= _FULL * self._limits.commit_records

    def start(self) -> None:
        self._thread.start()

    def add(self, outcome: Outcome) -> None:
        self.num_waiting += 1
        self._queue.put(outcome)

    def close(self) -> None:
        """Commit what is left and end. Raises the error that stopped the thread, if one did."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            self._commit_until_closed()
        except Exception as error:  # whatever it was, the loop must hear of it
            self.error = error

    def _commit_until_closed(self) -> None:
        batch: list[Outcome] = []
        now = time.monotonic()
        first = last_progress = now
        is_open = True
        while is_open:
            try:
                outcome = self._queue.get(timeout=0.5)
            except queue.Empty:
                pass
            else:
                if outcome is None:
                    is_open = False
                else:
                    first = first if batch else time.monotonic()
                    batch.append(outcome)
            now = time.monotonic()
            is_due = (
                len(batch) >= self._limits.commit_records
                or now - first >= self._limits.commit_seconds
                or not is_open
            )
            if batch and is_due:
                self._log.commit(batch)
                self.num_waiting -= len(batch)
                batch = []
            if now - last_progress >= 5.0:
                last_progress = now
                self._write_progress()
