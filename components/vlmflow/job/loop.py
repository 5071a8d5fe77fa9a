"""The job's event loop: records in, images fetched, the engine asked, outcomes out.

All state is this thread's own. Fetching, the engine's frames and commits happen on other threads
and reach it through one queue.
"""

import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from vlmflow.job import outcomes
from vlmflow.job.committer import Committer
from vlmflow.job.dedup import Answer, Deduplicator, question_key
from vlmflow.job.engine_process import EngineEvent, EngineProcess
from vlmflow.job.errors import EngineDiedError, SpecError, TooManyFailuresError
from vlmflow.job.generation import RecordOptions
from vlmflow.job.media import MediaFetcher
from vlmflow.job.record import Failure, FetchedImage, Outcome, Record
from vlmflow.job.record_fetches import Fetched, RecordFetches
from vlmflow.job.spec import JobSpec
from vlmflow.job.suspects import Suspects
from vlmflow.job.throughput import Throughput

_MAX_READY_BYTES = 256 << 20  # of fetched images that wait for the engine
_WINDOW = 512  # records between manifest and outcome; more if the engine takes more than half
_MAX_CRASHES = 15  # without a result or a culprit; bisecting 1,024 records takes up to 13
_ENGINE_DIED = "engine_died"  # class of failure


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
        self._engine = engine
        self._events = events
        self._committer = committer
        self._throughput = throughput
        self._stop = stop
        self._on_tick = on_tick
        self._tell = tell
        self._options = RecordOptions(spec.generation, spec.seed)
        self._fetches = RecordFetches(fetcher, spec.limits.num_fetchers, events.put)
        self._ready: deque[_Asked] = deque()
        self._ready_bytes = 0
        self._asked: dict[int, _Asked] = {}
        self._suspects: Suspects[int] = Suspects()
        self._dedup: Deduplicator[_Asked] = Deduplicator()
        self._is_exhausted = False
        self._num_crashes = 0

    def run(self) -> bool:
        """Run until every record has its outcome; False if it was told to stop before that.

        Raises TooManyFailuresError, EngineDiedError, SpecError, ManifestError, or what stopped the
        committer.
        """
        try:
            while not self._is_finished():
                if self._stop.count and self._is_drained():
                    return False
                self._admit()
                self._fetches.begin_again()
                self._ask()
                self._engine.flush()
                self._throughput.activity.enter(self._activity())
                self._take_events()
                self._check()
            return True
        finally:
            self._fetches.close()

    @property
    def num_fetching(self) -> int:
        """Records whose images are being fetched."""
        return self._fetches.num_records

    @property
    def num_ready(self) -> int:
        """Records with their images that the engine has no room for yet."""
        return len(self._ready)

    def _activity(self) -> str:
        """What is waited for now; see activity.py."""
        if self._engine.num_in_flight:
            return "engine"
        if not self._engine.is_ready:
            return "restart"
        if self._committer.is_full:
            return "store"
        return "images" if self.num_fetching else "other"

    def _is_finished(self) -> bool:
        return self._is_exhausted and not self._num_inside

    @property
    def _num_inside(self) -> int:
        """Records between manifest and outcome."""
        num_waiting = len(self._ready) + self._dedup.num_waiting
        return self.num_fetching + num_waiting + len(self._asked)

    def _is_drained(self) -> bool:
        """Whether a stop may be carried out: the engine is empty, or time is up."""
        waited = time.monotonic() - self._stop.since
        is_late = self._stop.count > 1 or waited >= self._spec.limits.grace_seconds
        return is_late or not self._engine.num_in_flight

    def _admit(self) -> None:
        """Start fetching for as many records as there is room for."""
        while not (self._is_exhausted or self._stop.count or self._committer.is_full):
            window = max(_WINDOW, 2 * self._engine.num_credits)
            if self._num_inside >= window or self._ready_bytes >= _MAX_READY_BYTES:
                return
            record = next(self._records, None)
            if record is None:
                self._is_exhausted = True
                return
            self._fetches.begin(record)

    def _ask(self) -> None:
        """Send the engine what it takes; suspects go first, a group at a time."""
        if not self._engine.is_ready:
            return
        if not self._suspects.is_empty:
            if not self._engine.num_in_flight:
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
        self._throughput.times.sent(asked.record.ordinal)
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
        record, result = fetched.record, self._fetches.take(fetched)
        if result is None:
            return
        if isinstance(result, Failure):
            self._finish(outcomes.failure(record, result))
            return
        self._throughput.times.fetched(record.ordinal, fetched.begun)
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
            if not self._engine.num_in_flight:
                self._suspects.acquit()

    def _answered(self, asked: _Asked, frame: dict[str, Any]) -> None:
        record, error = asked.record, frame["error"]
        self._throughput.times.answered(record.ordinal, frame)
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
        self._check_failure_rate()
        silence = self._engine.end_if_silent(self._spec.limits)
        if silence:
            self._tell(f"the engine has been silent for {silence:.0f} s; ending it")
        self._on_tick()

    def _check_failure_rate(self) -> None:
        """End a job early that is on its way to fail: it would only burn time."""
        throughput, limits = self._throughput, self._spec.limits
        if throughput.num_finished < limits.min_records:
            return
        # Failures come early: an image that is not there is known before the first answer. What is
        # still in flight counts as good, else a few of them would look like many.
        num_begun = throughput.num_finished + self._num_inside
        if throughput.num_failed > limits.max_failure_rate * num_begun:
            kinds = ", ".join(f"{name} {n}" for name, n in sorted(throughput.failures.items()))
            raise TooManyFailuresError(
                f"{throughput.num_failed} of the first {num_begun} records failed, "
                f"{throughput.num_failed / num_begun:.1%}, more than --max-failure-rate "
                f"{limits.max_failure_rate:.1%} ({kinds}); what is committed stays, the same "
                "command with a higher --max-failure-rate or --min-records goes on"
            )


def _num_bytes(images: list[FetchedImage]) -> int:
    return sum(len(image.data) for image in images)
