"""Prepares prompts in worker processes. A prompt that ends its worker costs itself only."""

import logging
import threading
import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from vlmflow_engine.errors import (
    ConfigError,
    EngineUnavailableError,
    ModelError,
    PreprocessCrashError,
    RequestError,
)
from vlmflow_engine.inputs.preprocessor import DoneQueue, Preprocessor, attempt
from vlmflow_engine.inputs.prompts import DEFAULT_OPTIONS, PromptOptions
from vlmflow_engine.inputs.worker_frames import BuilderSpec, PackedPrompt, prompt_frame, read_result
from vlmflow_engine.inputs.worker_process import WALL_SECONDS, WorkerProcess
from vlmflow_engine.wire import ConnectionClosedError

_log = logging.getLogger(__name__)

# Sent to a worker and not answered: enough that it never waits, few enough to lie with one worker.
_MAX_SENT = 4
_MAX_SENT_BYTES = 16 << 20  # an item that is larger goes alone
_MAX_STARTS = 3  # in a row that fail
_PAUSE_SECONDS = 1.0


@dataclass(slots=True)
class _Item:
    request_id: int
    prompt: Any
    options: PromptOptions
    done: DoneQueue
    num_bytes: int = 0
    was_refused: bool = False  # a worker that had nothing else ended while it was being sent


class ProcessPreprocessor(Preprocessor):
    """A `Preprocessor` of N processes, each kept by a thread that starts, feeds and replaces it."""

    def __init__(
        self, spec: BuilderSpec, *, num_workers: int, wall_seconds: float = WALL_SECONDS
    ) -> None:
        """Start the workers and return at once.

        wall_seconds  longest that a prompt may take, fetching included
        """
        super().__init__()
        self._crew = _Crew(spec, num_workers, wall_seconds)
        # Also when it is dropped, or the interpreter ends, and nobody has closed it.
        self._stop = weakref.finalize(self, self._crew.stop)
        self._threads = [
            # Daemons, and not of this object: neither the interpreter's end nor its own waits.
            threading.Thread(
                target=self._crew.keep_one, name=f"vlmflow-preprocess-{number}", daemon=True
            )
            for number in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return self._crew.pids

    def wait_until_ready(self) -> None:
        """Wait for a worker that takes prompts. Raises ConfigError if none can be had."""
        self._crew.wait_until_ready()

    def submit(
        self, request_id: int, prompt: Any, options: PromptOptions = DEFAULT_OPTIONS
    ) -> None:
        self.num_pending += 1
        self._crew.add(_Item(request_id, prompt, options, self._done))

    def cancel_all(self) -> None:
        super().cancel_all()
        self._crew.drop_waiting()

    def close(self) -> None:
        """End the processes, whatever they are in, and the threads."""
        self._stop()
        for thread in self._threads:
            thread.join()


class _Crew:
    """What the keepers share. `_change` guards all that is written below it."""

    def __init__(self, spec: BuilderSpec, num_keepers: int, wall_seconds: float) -> None:
        self._spec = spec
        self._wall_seconds = wall_seconds
        # A picture in hand may be shared, and Pillow reads its file when it is asked.
        self._in_hand = threading.Lock()
        self._change = threading.Condition()
        self._waiting: deque[_Item] = deque()
        self._workers: set[WorkerProcess] = set()
        self._num_keepers = num_keepers
        self._loaded: set[int] = set()  # keepers whose worker has a prompt, by what they sent
        self._is_ready = False  # a worker has been
        self._is_closing = False
        self._failure = ""  # why the last worker could not be started
        # One copy of an image that several prompts ask about.
        self._pixels: weakref.WeakValueDictionary[bytes, NDArray[Any]] = (
            weakref.WeakValueDictionary()
        )

    @property
    def pids(self) -> list[int]:
        with self._change:
            return [worker.pid for worker in self._workers]

    def add(self, item: _Item) -> None:
        with self._change:
            self._waiting.append(item)
            self._answer_if_deserted()
            self._change.notify_all()

    def drop_waiting(self) -> None:
        with self._change:
            self._waiting.clear()

    def wait_until_ready(self) -> None:
        with self._change:
            self._change.wait_for(lambda: self._is_ready or not self._num_keepers)
            if not self._is_ready:
                raise ConfigError(
                    f"{self._failure}; num_preprocess_workers=0 prepares in this process"
                )

    def stop(self) -> None:
        """End the processes; their keepers end with them."""
        with self._change:
            self._is_closing = True
            self._change.notify_all()
            for worker in self._workers:
                worker.kill()

    def keep_one(self) -> None:
        """Have one worker at work at all times, until `stop`."""
        num_failed_starts = 0
        try:
            while num_failed_starts < _MAX_STARTS and not self._is_closing:
                is_open = self._keep_until_its_end()
                num_failed_starts = 0 if is_open else num_failed_starts + 1
        except ModelError as error:
            self._failure = f"a preprocessing worker refuses the model: {error}"
        finally:
            self._leave()

    def _keep_until_its_end(self) -> bool:
        """Start a worker and feed it until it ends; tell whether it took prompts.

        Raises ModelError if the worker cannot use the model: no other one could.
        """
        worker = self._spawn()
        if worker is None:
            return False
        sent: deque[_Item] = deque()
        is_open, reason = False, ""
        try:
            worker.open(self._spec)
            is_open = True
            self._note_ready()
            self._feed(worker, sent)
        except ModelError:
            self._dismiss(worker)
            raise
        except ConnectionClosedError as error:
            reason = str(error)
        except Exception as error:  # a fault of ours must not leave prompts without an answer
            _log.exception("keeping a preprocessing worker failed")
            reason = f"{type(error).__name__}: {error}"
        ending = self._dismiss(worker)
        if not is_open:
            self._failure = f"a preprocessing worker {ending} at its start: {reason}"
        if not self._is_closing:
            self._settle(sent, ending)
        with self._change:
            self._loaded.discard(id(sent))
        return is_open

    def _spawn(self) -> WorkerProcess | None:
        with self._change:
            if self._is_closing:
                return None
            try:
                worker = WorkerProcess(wall_seconds=self._wall_seconds)
            except OSError as error:
                self._failure = f"a preprocessing worker cannot be started: {error}"
                self._change.wait(_PAUSE_SECONDS)  # there may be room for a process again
                return None
            self._workers.add(worker)
            return worker

    def _dismiss(self, worker: WorkerProcess) -> str:
        ending = worker.end()
        with self._change:
            self._workers.discard(worker)
        return ending

    def _note_ready(self) -> None:
        with self._change:
            self._is_ready = True
            self._change.notify_all()

    def _feed(self, worker: WorkerProcess, sent: deque[_Item]) -> None:
        """Send prompts and hand on what comes back. Raises ConnectionClosedError."""
        while True:
            item = self._next(sent)
            if item is not None:
                self._send(worker, item, sent)
            elif sent:
                self._receive(worker, sent)
            else:
                return

    def _next(self, sent: deque[_Item]) -> _Item | None:
        """The next prompt for a worker; None when it has enough for now, or at the end."""
        with self._change:
            if not sent:
                self._loaded.discard(id(sent))
                self._change.wait_for(lambda: self._waiting or self._is_closing)
            elif (
                len(sent) >= _MAX_SENT
                or sum(item.num_bytes for item in sent) >= _MAX_SENT_BYTES
                # Others have nothing to do, or will have as soon as they are started.
                or len(self._waiting) <= self._num_keepers - len(self._loaded)
            ):
                return None
            if self._is_closing:
                return None
            self._loaded.add(id(sent))
            return self._waiting.popleft()

    def _send(self, worker: WorkerProcess, item: _Item, sent: deque[_Item]) -> None:
        with self._in_hand:
            packed = attempt(item.request_id, lambda: PackedPrompt.pack(item.prompt))
        if isinstance(packed, RequestError):
            item.done.put((item.request_id, packed))
            return
        item.num_bytes = packed.num_bytes
        sent.append(item)
        try:
            worker.send(prompt_frame(item.request_id, packed, item.options))
        except ConnectionClosedError:
            # If it had nothing else to do it has ended earlier, unless that happens twice.
            if len(sent) > 1 or not item.was_refused:
                item.was_refused = len(sent) == 1
                sent.pop()
                self._put_back([item])
            while sent:  # what it answered before its end is still to be read
                self._receive(worker, sent)
            raise

    def _receive(self, worker: WorkerProcess, sent: deque[_Item]) -> None:
        frame = worker.receive()
        result = read_result(frame, self._pixels)
        assert frame["request_id"] == sent[0].request_id
        item = sent.popleft()
        item.done.put((item.request_id, result))

    def _put_back(self, items: Iterable[_Item]) -> None:
        with self._change:
            self._waiting.extendleft(items)
            self._answer_if_deserted()
            self._change.notify_all()

    def _settle(self, sent: deque[_Item], ending: str) -> None:
        """After a worker's end: the prompt it was in has failed, those behind it wait again."""
        if sent:
            culprit = sent.popleft()
            _log.warning("preparing request %d: its worker %s", culprit.request_id, ending)
            error = PreprocessCrashError(f"the worker that prepared the prompt {ending}")
            culprit.done.put((culprit.request_id, error))
        self._put_back(reversed(sent))

    def _leave(self) -> None:
        with self._change:
            if self._is_ready and not self._is_closing:
                _log.warning("one preprocessing worker fewer: %s", self._failure)
            self._num_keepers -= 1
            self._answer_if_deserted()
            self._change.notify_all()

    def _answer_if_deserted(self) -> None:
        """With no worker left nobody else would."""
        if self._num_keepers or self._is_closing:
            return
        while self._waiting:
            item = self._waiting.popleft()
            item.done.put((item.request_id, EngineUnavailableError(self._failure)))
