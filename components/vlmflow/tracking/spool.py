"""Metric points that the tracking server did not take, kept beside the job until it does.

Below the prefix each run has a folder of JSON Lines, a point a line. They are objects of the job's
own store: a pod's disk is gone with the pod. A file that was sent is removed; one that was sent and
not removed is sent again, which changes nothing (see MetricPoint).
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Protocol

from vlmflow.tracking.metric_point import MAX_BATCH, MetricPoint

FILE_POINTS = 5000  # then the next file begins; a file is written whole each time
WRITE_SECONDS = 30.0  # a kill loses no more than this


class SpoolStore(Protocol):
    """What a spool needs of the job's store."""

    def read(self, key: str) -> bytes: ...

    def write(self, key: str, data: bytes) -> None: ...

    def delete(self, key: str) -> None: ...

    def list(self, prefix: str) -> Iterator[str]: ...


class Spool:
    """One writer's files of one run, `<prefix><writer>-<n>.jsonl`. Threads may share it."""

    def __init__(self, store: SpoolStore, prefix: str, writer: str) -> None:
        self._store = store
        self._stem = f"{prefix}{writer}"
        self._points: list[MetricPoint] = []  # of the current file
        self._num_files = 0
        self._num_written = 0  # of the current file's points
        self._num_on_store = 0  # of all its files
        self._next_write = 0.0
        self._lock = threading.Lock()

    def keep(self, points: list[MetricPoint]) -> None:
        """Keep points; they are on the store after WRITE_SECONDS, or at the next `write`."""
        with self._lock:
            self._points += points
            is_full = len(self._points) >= FILE_POINTS
            if is_full or time.monotonic() >= self._next_write:
                self._write()
            if is_full:
                self._begin_file()

    def write(self) -> int:
        """Put what is kept on the store; return how many points this writer has there."""
        with self._lock:
            self._write()
            return self._num_on_store

    def _write(self) -> None:
        self._next_write = time.monotonic() + WRITE_SECONDS
        if len(self._points) > self._num_written:
            lines = [json.dumps(asdict(p), separators=(",", ":")) + "\n" for p in self._points]
            self._store.write(f"{self._stem}-{self._num_files:06d}.jsonl", "".join(lines).encode())
            self._num_on_store += len(self._points) - self._num_written
            self._num_written = len(self._points)

    def replay(self, send: Callable[[list[MetricPoint]], None]) -> int:
        """Send what is kept by this and by earlier writers of the run; return how many points."""
        with self._lock:
            self._write()
            self._begin_file()  # what is being sent is not written again
        num_sent = replay(self._store, self._stem.rpartition("/")[0] + "/", send)
        self._num_on_store = 0
        return num_sent

    def _begin_file(self) -> None:
        if self._points:
            self._points, self._num_written = [], 0
            self._num_files += 1


def replay(store: SpoolStore, prefix: str, send: Callable[[list[MetricPoint]], None]) -> int:
    """Send the points below a prefix, in order, and remove their files; return how many."""
    num_sent = 0
    for key in list(store.list(prefix)):
        points = [MetricPoint(**json.loads(line)) for line in store.read(key).splitlines()]
        for first in range(0, len(points), MAX_BATCH):
            send(points[first : first + MAX_BATCH])
        store.delete(key)
        num_sent += len(points)
    return num_sent
