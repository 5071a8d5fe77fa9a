"""Prepares prompts on worker threads while the model runs."""

import logging
import queue
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vlmflow_engine.errors import RequestError
from vlmflow_engine.inputs.builder import InputBuilder, PreparedInput

_log = logging.getLogger(__name__)


class Preprocessor:
    """Prompts in by `submit`, prepared inputs or errors out by `take`, in order of completion."""

    def __init__(self, builder: InputBuilder, *, num_workers: int) -> None:
        self._builder = builder
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="vlmflow-preprocess")
        self._done: queue.SimpleQueue[tuple[int, PreparedInput | RequestError]] = (
            queue.SimpleQueue()
        )
        self.num_pending = 0  # submitted and not taken; the caller bounds it

    def submit(self, request_id: int, prompt: Any, options: PromptOptions = _DEFAULTS) -> None:
        self.num_pending += 1
        self._pool.submit(self._prepare, request_id, prompt, options)

    def take(
        self, *, block: bool, timeout: float | None = None
    ) -> tuple[int, PreparedInput | RequestError] | None:
        """Return the next prompt that is done.

        None if there is none yet and `block` is false, or none came within `timeout` seconds.
        """
        try:
            item = self._done.get(block=block and self.num_pending > 0, timeout=timeout)
        except queue.Empty:
            return None
        self.num_pending -= 1
        return item

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, request_id: int, prompt: Any, options: PromptOptions) -> None:
        try:
            result: PreparedInput | RequestError = self._builder.build(prompt, options)
        except RequestError as error:
            result = error
        except BaseException as error:
            # A fault of ours, but it must cost this request only, and never go unanswered.
            _log.exception("preparing request %d failed", request_id)
            result = RequestError(f"the prompt could not be prepared: {type(error).__name__}")
        self._done.put((request_id, result))
