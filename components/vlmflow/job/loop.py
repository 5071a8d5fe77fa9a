"""The job's event loop: records in, images fetched, the engine asked, outcomes out.

All state is this thread's own. Fetching, the engine's frames and commits happen on other threads
and reach it through one queue.
"""

import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from vlmflow.job import outcomes
from vlmflow.job.committer import Committer
from vlmflow.job.dedup import Answer, Deduplicator, question_key
from vlmflow.job.engine_process import EngineEvent, EngineProcess
from vlmflow.job.errors import EngineDiedError, SpecError
from vlmflow.job.generation import RecordOptions
from vlmflow.job.media import MediaFetcher
from vlmflow.job.record import Failure, FetchedImage, Outcome, Record
from vlmflow.job.spec import JobSpec
from vlmflow.job.suspects import Suspects
from vlmflow.job.throughput import Throughput

_MAX_READY_BYTES = 256 << 20  # of fetched images that wait for the engine
_WINDOW = 512  # records between manifest and outcome; more if the engine takes more than half
_MAX_CRASHES = 15  # without a result or a culprit; bisecting 1,024 records takes up to 13
_FETCH_DELAYS = (5.0, 30.0)  # seconds before an image that could not be had is fetched again
_ENGINE_DIED = "engine_died"  # class of failure


@dataclass(frozen=True, slots=True)
class Fetched:
    """A record whose images were fetched, or were not."""

    record: Record
    result: list[FetchedImage] | Failure | BaseException
    attempts: int = 1


@dataclass(slots=True)
class _Asked:
    record: Record
    images: list[FetchedImage]
    generation: dict[str, Any]
    key: bytes | None  # equal for those that ask the same; None: asked in any case
    attempts: int = 0


class StopSignal:
    """Set by signal handlers: the first asks to drain, the second to leave at once."""

    def __init__(self) -> None:
        self.count = 0
        self.since = 0.0

    def __call__(self) -> None:
        self.count += 1
        self.since = self.since or time.monotonic()


class RecordLoop:
    """Takes every record of an iterator to its outcome."""

    def __init__(
        self,
        spec: JobSpec,
        records: Iterator[Record],
        *,
        fetcher: MediaFetcher,
        engine: EngineProcess,
        events: "queue.SimpleQueue[EngineEvent | Fetched]",
        committer: Committer,
        throughput: Throughput,
        stop: StopSignal,
        on_tick: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        self._spec = spec
        self._records = records
        self._fetcher = fetcher
        self._engine = engine
        self._events = events
        self._committer = committer
        self._throughput = throughput
        self._stop = stop
        self._on_tick = on_tick
        self._tell = tell
        self._options = RecordOptions(spec.generation, spec.seed)
        self._pool = ThreadPoolExecutor(spec.limits.num_fetchers, thread_name_prefix="fetch")
        self._num_fetching = 0
        self._later: list[tuple[float, Record, int]] = []  # when to fetch again, and for what time
        self._ready: deque[_Asked] = deque()
        self._ready_bytes = 0
        self._asked: dict[int, _Asked] = {}
        self._suspects: Suspects[int] = Suspects()
        self._dedup: Deduplicator[_Asked] = Deduplicator()
        self._is_exhausted = False
        self._num_crashes = 0

    def run(self) -> bool:
        """Run until every record has its outcome; False if it was told to stop before that.

        Raises EngineDiedError, SpecError, ManifestError, or what stopped the committer.
        """
        try:
            while not self._is_finished():
                if self._stop.count and self._is_drained():
                    return False
                self._admit()
                self._fetch_again()
                self._ask()
                self._engine.flush()
                self._throughput.activity.enter(self._activity())
                self._take_events()
                self._check()
            return True
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def num_fetching(self) -> int:
        """Records whose images are being fetched."""
        return self._num_fetching

    @property
    def num_ready(self) -> int:
        """Records with their images that the engine has no room for yet."""
        return len(self._ready)

    def _activity(self) -> str:
        """What is waited for now; see activity.py."""
        if self._engine.in_flight:
            return "engine"
        if not self._engine.is_ready:
            return "restart"
        if self._committer.is_full:
            return "store"
        return "images" if self._num_fetching else "other"

    def _is_finished(self) -> bool:
        return self._is_exhausted and not (self._num_fetching or self._ready or self._asked)

    def _is_drained(self) -> bool:
        """Whether a stop may be carried out: the engine is empty, or time is up."""
        waited = time.monotonic() - self._stop.since
        is_late = self._stop.count > 1 or waited >= self._spec.limits.grace_seconds
        return is_late or not self._engine.in_flight

    def _admit(self) -> None:
        """Start fetching for as many records as there is room for."""
        while not (self._is_exhausted or self._stop.count or self._committer.is_full):
            num_waiting = len(self._ready) + self._dedup.num_waiting
            num_inside = self._num_fetching + num_waiting + len(self._asked)
            window = max(_WINDOW, 2 * self._engine.num_credits)
            if num_inside >= window or self._ready_bytes >= _MAX_READY_BYTES:
                return
            record = next(self._records, None)
            if record is None:
                self._is_exhausted = True
                return
            self._num_fetching += 1
            if record.image_uris:
                self._pool.submit(self._fetch, record, 1)
            else:
                self._events.put(Fetched(record, []))

    def _fetch(self, record: Record, attempts: int) -> None:  # on a thread of the pool
        try:
            result: list[FetchedImage] | Failure | BaseException = self._fetcher.fetch(record)
        except Exception as error:
            result = error
        self._events.put(Fetched(record, result, attempts))

    def _fetch_again(self) -> None:
        """Fetch once more for those whose time has come."""
        now = time.monotonic()
        for item in [item for item in self._later if item[0] <= now]:
            self._later.remove(item)
            self._pool.submit(self._fetch, item[1], item[2])

    def _ask(self) -> None:
        """Send the engine what it takes; suspects go first, a group at a time."""
        if not self._engine.is_ready:
            return
        if not self._suspects.is_empty:
            if not self._engine.in_flight:
                for ordinal in self._suspects.next_group():
                    self._send(self._asked[ordinal])
            return
        if self._suspects.is_trial:
            return
        while self._ready and not self._stop.count:
            if not self._engine.can_take(self._ready[0].images):
                return
            asked = self._ready.popleft()
            self._ready_bytes -= _num_bytes(asked.images)
            self._asked[asked.record.ordinal] = asked
            self._send(asked)

    def _send(self, asked: _Asked) -> None:
        asked.attempts += 1
        self._engine.send(asked.record, asked.images, asked.generation)

    def _question(self, record: Record, images: list[FetchedImage]) -> _Asked:
        generation, has_own_seed = self._options.of(record)
        # With a seed of its own no record asks what another does.
        is_shared = self._spec.deduplicate and not has_own_seed
        key = question_key(record.prompt, images, generation) if is_shared else None
        return _Asked(record, images, generation, key)

    def _take_events(self) -> None:
        """Wait a moment for an event, then take all that have come."""
        try:
            event = self._events.get(timeout=0.1)
            while True:
                if isinstance(event, Fetched):
                    self._fetched(event)
                elif event.incarnation == self._engine.incarnation:
                    self._engine_event(event.frame)
                event = self._events.get_nowait()
        except queue.Empty:
            return

    def _fetched(self, fetched: Fetched) -> None:
        record, result, attempts = fetched.record, fetched.result, fetched.attempts
        if isinstance(result, Failure) and result.retryable and attempts <= len(_FETCH_DELAYS):
            due = time.monotonic() + _FETCH_DELAYS[attempts - 1]
            self._later.append((due, record, attempts + 1))
            return
        self._num_fetching -= 1
        if isinstance(result, BaseException):
            raise result  # no credentials, or a bug of ours: better the job stops than loses one
        if isinstance(result, Failure):
            self._finish(outcomes.failure(record, replace(result, attempts=attempts)))
            return
        asked = self._question(record, result)
        if asked.key is not None:
            answer = self._dedup.find(asked.key)
            if answer is not None:
                self._finish(outcomes.duplicate(record, result, answer))
                return
            leader = self._dedup.wait(asked.key, asked)
            if leader is not None:
                # The same bytes under other names: while they wait, one copy is enough.
                asked.images = [
                    replace(image, data=same.data)
                    for image, same in zip(asked.images, leader.images, strict=True)
                ]
                return
        self._make_ready(asked)

    def _make_ready(self, asked: _Asked) -> None:
        self._ready.append(asked)
        self._ready_bytes += _num_bytes(asked.images)

    def _engine_event(self, frame: dict[str, Any] | None) -> None:
        if frame is None:
            self._engine_died()
            return
        self._engine.heard(frame)
        if frame["type"] == "failed":
            raise SpecError(frame["message"])
        if frame["type"] == "stats":
            self._throughput.add_engine_stats(frame["stats"])
        if frame["type"] == "result":
            self._num_crashes = 0
            self._answered(self._asked[frame["ticket"]], frame)
            if not self._engine.in_flight:
                self._suspects.acquit()

    def _answered(self, asked: _Asked, frame: dict[str, Any]) -> None:
        record, error = asked.record, frame["error"]
        if error is None:
            outcome = outcomes.success(
                record,
                asked.images,
                frame["response"],
                seconds=frame["seconds"],
                attempts=asked.attempts,
            )
        elif error["retryable"] and asked.attempts == 1:
            # A step failed, and everybody in it with the culprit: each is asked once more, alone.
            self._suspects.add_alone(record.ordinal)
            return
        else:
            reason = Failure(
                error["stage"],
                error["class"],
                error["message"],
                error["retryable"],
                asked.attempts,
            )
            outcome = outcomes.failure(record, reason)
        del self._asked[record.ordinal]
        self._finish(outcome)
        self._settle(asked, outcome)

    def _settle(self, asked: _Asked, outcome: Outcome) -> None:
        """Give the answer to whoever waited for it. Where there is none, each asks for himself."""
        if asked.key is None:
            return
        reason, line = outcome.failure, outcome.line
        if reason is None:
            answer = Answer(line["id"], line["text"], line["finish_reason"])
            for waiting in self._dedup.settle(asked.key, answer):
                self._finish(outcomes.duplicate(waiting.record, waiting.images, answer))
            return
        for waiting in self._dedup.settle(asked.key, None):
            waiting.key = None
            if reason.retryable or reason.error_class == _ENGINE_DIED:
                # What harmed the engine may do it again; nobody shall be near.
                self._asked[waiting.record.ordinal] = waiting
                self._suspects.add_alone(waiting.record.ordinal)
            else:
                self._make_ready(waiting)

    def _engine_died(self) -> None:
        how = self._engine.exit_description()
        in_engine = sorted(self._engine.in_flight)
        self._num_crashes += 1
        if self._num_crashes > _MAX_CRASHES:
            raise EngineDiedError(
                f"the engine died {self._num_crashes} times without answering a record ({how}); "
                "what is committed stays, the same command goes on"
            )
        culprit = self._suspects.accuse(in_engine)
        if culprit is not None:
            self._num_crashes = 0
            asked = self._asked.pop(culprit)
            message = f"the engine died each time it was asked this record ({how})"
            reason = Failure("generate", _ENGINE_DIED, message, False, asked.attempts)
            outcome = outcomes.failure(asked.record, reason)
            self._finish(outcome)
            self._settle(asked, outcome)
        self._tell(
            f"the engine died ({how}) with {len(in_engine)} records in it; starting it again"
        )
        self._throughput.engine_restarted()
        self._engine.start()

    def _finish(self, outcome: Outcome) -> None:
        self._throughput.add(outcome)
        self._committer.add(outcome)

    def _check(self) -> None:
        if self._committer.error is not None:
            raise self._committer.error
        silence = time.monotonic() - self._engine.last_heard
        if silence > self._spec.limits.engine_silence_seconds:
            self._tell(f"the engine has been silent for {silence:.0f} s; ending it")
            self._engine.last_heard = time.monotonic()
            self._engine.kill()
        self._on_tick()


def _num_bytes(images: list[FetchedImage]) -> int:
    return sum(len(image.data) for image in images)
