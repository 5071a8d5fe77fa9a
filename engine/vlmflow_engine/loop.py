"""The engine on a thread of its own, serving calls from any number of threads.

A `Call` is one caller's set of prompts. What callers want goes to the engine's thread through one
queue; what becomes of it comes back through a queue of each call.
"""

import faulthandler
import itertools
import logging
import queue
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from vlmflow_engine.answers import Answer, Delta, error_response
from vlmflow_engine.driver import RequestDriver
from vlmflow_engine.engine import EngineInfo
from vlmflow_engine.errors import EngineUnavailableError
from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.stats import EngineStats

_log = logging.getLogger(__name__)

_CLOSE_SECONDS = 30.0  # for the step that is being computed


@dataclass(frozen=True, slots=True)
class _Submit:
    ticket: int
    prompt: Any
    generation: GenerationConfig
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Cancel:
    tickets: list[int]


@dataclass(slots=True)
class _Watch:
    """What other threads see of the engine's."""

    step_started: float | None = None  # None: between steps
    stats: EngineStats | None = None
    calls: "dict[int, Call]" = field(default_factory=dict)  # by ticket


class EngineLoop:
    """Owns a `RequestDriver` and the thread that steps it."""

    def __init__(self, make_driver: Callable[[], RequestDriver], *, step_timeout: float) -> None:
        """Load the model; raises whatever `make_driver` raises."""
        self._commands: queue.SimpleQueue[_Submit | _Cancel | None] = queue.SimpleQueue()
        self._step_timeout = step_timeout
        self._tickets = itertools.count()
        self._watch = _Watch()
        self._is_stuck = False
        self._lock = threading.Lock()
        ready: Future[EngineInfo] = Future()
        # A daemon: a script that forgets to close shall end all the same.
        self._thread = threading.Thread(
            target=_run,
            args=(make_driver, ready, self._commands, self._watch),
            name="vlmflow-engine",
            daemon=True,
        )
        self._thread.start()
        self.info = ready.result()

    @property
    def stats(self) -> EngineStats:
        assert self._watch.stats is not None
        return self._watch.stats

    def submit(
        self, call: "Call", prompt: Any, generation: GenerationConfig, options: dict[str, Any]
    ) -> int:
        """Hand in a prompt of a call; return its ticket."""
        ticket = next(self._tickets)
        self._watch.calls[ticket] = call
        self._commands.put(_Submit(ticket, prompt, generation, options))
        return ticket

    def cancel(self, tickets: list[int]) -> None:
        """Take prompts back; each is answered as cancelled unless it has been answered."""
        self._commands.put(_Cancel(tickets))

    def check(self) -> EngineUnavailableError | None:
        """Return why nothing more is to be expected; None while the engine lives."""
        if not self._thread.is_alive():
            return EngineUnavailableError("the engine has ended; make a new pipeline")
        started = self._watch.step_started
        if started is None or time.monotonic() - started < self._step_timeout:
            return None
        with self._lock:
            if not self._is_stuck:
                self._is_stuck = True
                _log.error("a step takes more than %g s\n%s", self._step_timeout, _stacks())
        return EngineUnavailableError(
            f"a step of the engine takes more than step_timeout={self._step_timeout:g} s; "
            "its stacks are in the log; make a new pipeline"
        )

    def close(self) -> None:
        """End the thread and let go of the model. What is in flight is answered as cancelled."""
        self._commands.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(None if self.check() is None else _CLOSE_SECONDS)


class Call:
    """One caller's prompts in flight. Used by one thread."""

    def __init__(self, loop: EngineLoop) -> None:
        self._loop = loop
        self._events: queue.SimpleQueue[Answer | Delta] = queue.SimpleQueue()
        self._open: dict[int, float] = {}  # tickets not answered yet, and when they were submitted

    @property
    def num_in_flight(self) -> int:
        return len(self._open)

    def submit(self, prompt: Any, generation: GenerationConfig, **options: Any) -> int:
        """Hand in a prompt; return its ticket."""
        ticket = self._loop.submit(self, prompt, generation, options)
        self._open[ticket] = time.monotonic()
        return ticket

    def put(self, event: Answer | Delta) -> None:
        """Take an event from the engine's thread."""
        self._events.put(event)

    def next(self) -> Answer | Delta:
        """Wait for the next event. Never for ever: an engine that is gone is an answer too."""
        assert self._open
        while True:
            try:
                event = self._events.get(timeout=0.5)
                break
            except queue.Empty:
                error = self._loop.check()
            if error is not None and self._events.empty():
                ticket, submitted = next(iter(self._open.items()))
                seconds = time.monotonic() - submitted
                event = Answer(ticket, error_response(error), error, seconds)
                break
        return self._noted(event)

    def poll(self) -> Answer | Delta | None:
        """The next event if there is one already."""
        try:
            return self._noted(self._events.get_nowait())
        except queue.Empty:
            return None

    def cancel(self, tickets: list[int] | None = None) -> None:
        """Take back some prompts, or all that are in flight."""
        wanted = list(self._open) if tickets is None else [t for t in tickets if t in self._open]
        if wanted:
            self._loop.cancel(wanted)

    def _noted(self, event: Answer | Delta) -> Answer | Delta:
        if isinstance(event, Answer) and event.is_last:
            self._open.pop(event.ticket, None)
        return event


def _run(
    make_driver: Callable[[], RequestDriver],
    ready: "Future[EngineInfo]",
    commands: "queue.SimpleQueue[_Submit | _Cancel | None]",
    watch: _Watch,
) -> None:
    """The engine's thread."""
    try:
        driver = make_driver()
        watch.stats, info = driver.stats, driver.info
    except BaseException as error:  # else the caller would wait for ever
        ready.set_exception(error)
        return
    ready.set_result(info)
    try:
        while _obey(driver, commands, watch):
            watch.step_started = time.monotonic()
            events = driver.step()
            watch.step_started = None
            _deliver(events, watch)
    except BaseException:  # a fault of ours: callers see that the thread is gone
        _log.exception("the engine's thread ends")
    finally:
        watch.step_started = None
        _deliver(driver.cancel_all(), watch)
        driver.close()


def _obey(
    driver: RequestDriver,
    commands: "queue.SimpleQueue[_Submit | _Cancel | None]",
    watch: _Watch,
) -> bool:
    """Carry out what has been asked for; wait for it if there is nothing else to do."""
    while True:
        try:
            command = commands.get(block=driver.num_in_flight == 0)
        except queue.Empty:
            return True
        if command is None:
            return False
        if isinstance(command, _Submit):
            driver.submit(command.ticket, command.prompt, command.generation, **command.options)
        else:
            for ticket in command.tickets:
                _deliver(driver.cancel(ticket), watch)


def _deliver(events: list[Answer | Delta], watch: _Watch) -> None:
    for event in events:
        if isinstance(event, Answer) and event.is_last:
            call = watch.calls.pop(event.ticket)
        else:
            call = watch.calls[event.ticket]
        call.put(event)


def _stacks() -> str:
    """The stacks of all threads. faulthandler asks nobody's leave, and no lock."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read()
