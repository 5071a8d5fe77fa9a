"""Prepares prompts while the model runs: what a preprocessor is, and one made of threads."""

import logging
import queue
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from vlmflow_engine.errors import RequestError
from vlmflow_engine.inputs.builder import InputBuilder, PreparedInput
from vlmflow_engine.inputs.prompts import DEFAULT_OPTIONS, PromptOptions

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
Prepared = PreparedInput | RequestError
DoneQueue = queue.SimpleQueue[tuple[int, Prepared]]


class Preprocessor(ABC):
    """Prompts in by `submit`, prepared inputs or errors out by `take`, in order of completion."""

    def __init__(self) -> None:
        self._done: DoneQueue = queue.SimpleQueue()
        self.num_pending = 0  # submitted and not taken; the caller bounds it

    @abstractmethod
    def wait_until_ready(self) -> None:
        """Wait until prompts can be prepared. Raises ConfigError if they never can."""

    @abstractmethod
    def submit(
        self, request_id: int, prompt: Any, options: PromptOptions = DEFAULT_OPTIONS
    ) -> None:
        """Queue a prompt of any form."""

    def take(self, *, block: bool, timeout: float | None = None) -> tuple[int, Prepared] | None:
        """Return the next prompt that is done.

        None if there is none yet and `block` is false, or none came within `timeout` seconds.
        """
        try:
            item = self._done.get(block=block and self.num_pending > 0, timeout=timeout)
        except queue.Empty:
            return None
        self.num_pending -= 1
        return item

    def cancel_all(self) -> None:
        """Forget what was submitted and not taken, without waiting for it."""
        # What is still in work goes to the old queue, where nobody looks.
        self._done, self.num_pending = queue.SimpleQueue(), 0

    @abstractmethod
    def close(self) -> None:
        """End the workers."""


class ThreadPreprocessor(Preprocessor):
    """Prepares on threads of this process: the model waits for Python's lock now and then."""

    def __init__(self, builder: InputBuilder, *, num_workers: int) -> None:
        super().__init__()
        self._builder = builder
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="vlmflow-preprocess")

    def wait_until_ready(self) -> None:
        """A thread always is."""

    def submit(
        self, request_id: int, prompt: Any, options: PromptOptions = DEFAULT_OPTIONS
    ) -> None:
        self.num_pending += 1
        self._pool.submit(self._prepare, request_id, prompt, options, self._done)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(
        self, request_id: int, prompt: Any, options: PromptOptions, done: DoneQueue
    ) -> None:
        if done is self._done:
            done.put(
                (request_id, attempt(request_id, lambda: self._builder.build(prompt, options)))
            )


def attempt(request_id: int, work: Callable[[], _Result]) -> _Result | RequestError:
    """Do a part of a request's preparation; whatever goes wrong is its error."""
    try:
        return work()
    except RequestError as error:
        return error
    except BaseException as error:
        # A fault of ours, but it must cost this request only, and never go unanswered.
        _log.exception("preparing request %d failed", request_id)
        return RequestError(f"the prompt could not be prepared: {type(error).__name__}")
