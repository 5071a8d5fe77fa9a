"""Asks once what several records ask alike: the same images, prompt and generation options."""

import json
import sys
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Generic, TypeVar

from vlmflow.job.record import FetchedImage

_MAX_KEPT_BYTES = 64 << 20
_BYTES_PER_ANSWER = 500  # of a kept answer beside its text

T = TypeVar("T")


def question_key(prompt: Any, images: list[FetchedImage], generation: dict[str, Any]) -> bytes:
    """A digest of all that an answer depends on within a job. `generation` has its seed."""
    question = [prompt, [image.sha256 for image in images], generation]
    text = json.dumps(question, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).digest()


@dataclass(frozen=True, slots=True)
class Answer:
    """What one record was answered, for those that ask the same."""

    record_id: str
    text: str
    finish_reason: str


class Deduplicator(Generic[T]):
    """Knows who asks what, and the latest answers. `T` is a record that waits for another's."""

    def __init__(self, max_kept_bytes: int = _MAX_KEPT_BYTES) -> None:
        self._max_kept_bytes = max_kept_bytes
        # Of each question that is being asked: who asks it, and behind him who waits.
        self._asking: dict[bytes, list[T]] = {}
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()  # the latest used is last
        self._kept_bytes = 0
        self.num_waiting = 0

    def find(self, key: bytes) -> Answer | None:
        """The answer, if it is known."""
        answer = self._answers.get(key)
        if answer is not None:
            self._answers.move_to_end(key)
        return answer

    def wait(self, key: bytes, record: T) -> T | None:
        """Let a record wait for the one that asks this; None if none does: now this one asks."""
        group = self._asking.setdefault(key, [])
        group.append(record)
        if len(group) == 1:
            return None
        self.num_waiting += 1
        return group[0]

    def settle(self, key: bytes, answer: Answer | None) -> list[T]:
        """Return who waited for an answer. None: there is none, and they must ask themselves."""
        _, *waiting = self._asking.pop(key)
        self.num_waiting -= len(waiting)
        if answer is not None and key not in self._answers:
            self._answers[key] = answer
            self._kept_bytes += _num_bytes(answer)
            while self._kept_bytes > self._max_kept_bytes:
                _, oldest = self._answers.popitem(last=False)
                self._kept_bytes -= _num_bytes(oldest)
        return waiting


def _num_bytes(answer: Answer) -> int:
    return _BYTES_PER_ANSWER + sys.getsizeof(answer.text)
