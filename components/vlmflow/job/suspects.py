"""Finds the record that kills the engine, by bisection.

When the engine dies, whoever was in it is suspected. Suspects are asked again in groups, each with
the engine to itself; a group that kills it is halved, and one that goes alone and kills it twice is
the culprit. Twice, for the engine may be killed from outside at any moment: that costs one more
pass of the group and blames nobody.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class Suspects(Generic[T]):
    """The groups still to be asked. Hand the next one out only when the last one is through."""

    _groups: deque[tuple[T, ...]] = field(default_factory=deque)
    _on_trial: tuple[T, ...] = ()
    _warned: set[T] = field(default_factory=set)  # died alone once

    @property
    def is_empty(self) -> bool:
        return not self._groups

    def accuse(self, in_engine: Sequence[T]) -> T | None:
        """Note that the engine died with these in it; return the culprit if it is known now."""
        was_on_trial, self._on_trial = self._on_trial, ()
        group = tuple(in_engine)
        if not group:
            return None
        if not was_on_trial:
            self._groups.appendleft(group)
            return None
        if len(was_on_trial) == 1:
            if group[0] in self._warned:
                return group[0]
            self._warned.add(group[0])
        # Of a group on trial some may have come through before it died; the rest is halved.
        middle = max(1, len(group) // 2)
        halves = [half for half in (group[:middle], group[middle:]) if half]
        self._groups.extendleft(reversed(halves))
        return None

    def next_group(self) -> tuple[T, ...]:
        """Put the next group on trial."""
        self._on_trial = self._groups.popleft()
        return self._on_trial

    @property
    def is_trial(self) -> bool:
        """Whether a group is in the engine, which nobody else may enter."""
        return bool(self._on_trial)

    def add_alone(self, suspect: T) -> None:
        """Let one be asked alone, after the groups that are there."""
        self._groups.append((suspect,))

    def acquit(self) -> None:
        """Note that the engine is empty and alive."""
        self._on_trial = ()
