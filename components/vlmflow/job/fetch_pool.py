"""Threads that fetch. Nobody waits for them: a job that is told to stop leaves them behind."""

import queue
import threading
from collections.abc import Callable


class FetchPool:
    """Runs tasks on a few threads, oldest first.

    Not a ThreadPoolExecutor: Python waits for the threads of those before it exits, so a store that
    does not answer would hold up the end of a job for minutes.
    """

    def __init__(self, num_threads: int) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"fetch-{number}", daemon=True)
            for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Callable[[], None]) -> None:
        """Have a task run. It must not raise."""
        self._tasks.put(task)

    def close(self) -> None:
        """Begin no more tasks, and let each thread end when it comes out of its own."""
        self._is_closed = True
        for _ in self._threads:
            self._tasks.put(None)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None and not self._is_closed:
            task()
