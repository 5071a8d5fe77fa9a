"""Bisection finds whoever kills the engine, blames nobody else, and always ends."""

from collections import Counter, deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmflow.job.suspects import Suspects


@dataclass
class Run:
    """A loop around an engine that dies of its culprits, and now and then of nothing."""

    num_records: int
    culprits: set[int]
    capacity: int
    answered: list[int] = field(default_factory=list)
    blamed: list[int] = field(default_factory=list)
    killed_alone: Counter[int] = field(default_factory=Counter)  # from outside, while on trial
    num_deaths: int = 0

    def run(self, choices: "Choices") -> None:
        ready = deque(range(self.num_records))
        suspects: Suspects[int] = Suspects()
        in_engine: set[int] = set()
        on_trial: tuple[int, ...] = ()
        for _ in range(100 * self.num_records):
            if not suspects.is_empty:
                if not in_engine:
                    on_trial = suspects.next_group()
                    in_engine = set(on_trial)
            elif not suspects.is_trial:
                on_trial = ()
                while ready and len(in_engine) < self.capacity:
                    in_engine.add(ready.popleft())
            if not in_engine:
                return
            innocents = sorted(in_engine - self.culprits)
            is_killed = choices.is_killed()
            if is_killed and len(on_trial) == 1:
                self.killed_alone.update(in_engine)
            if is_killed or not innocents or choices.dies_now(in_engine & self.culprits):
                self.num_deaths += 1
                culprit = suspects.accuse(sorted(in_engine))
                in_engine.clear()
                if culprit is not None:
                    self.blamed.append(culprit)
            else:
                answered = choices.one_of(innocents)
                in_engine.remove(answered)
                self.answered.append(answered)
                if not in_engine:
                    suspects.acquit()
        raise AssertionError("the search does not end")


class Choices:
    """What hypothesis decides: the order of answers, the moments of deaths."""

    def __init__(self, data: st.DataObject, num_kills: int) -> None:
        self._data = data
        self._num_kills = num_kills

    def is_killed(self) -> bool:
        is_now = self._num_kills > 0 and self._data.draw(st.integers(0, 3)) == 0
        self._num_kills -= is_now
        return is_now

    def dies_now(self, culprits: set[int]) -> bool:
        return bool(culprits) and self._data.draw(st.booleans())

    def one_of(self, records: list[int]) -> int:
        return self._data.draw(st.sampled_from(records))


class AtOnce(Choices):
    """The hardest engine: it dies before anybody is answered."""

    def __init__(self) -> None:
        pass

    def is_killed(self) -> bool:
        return False

    def dies_now(self, culprits: set[int]) -> bool:
        return bool(culprits)

    def one_of(self, records: list[int]) -> int:
        return records[0]


@given(
    data=st.data(),
    num_records=st.integers(1, 20),
    capacity=st.integers(1, 12),
    num_kills=st.integers(0, 3),
)
def test_culprits_are_blamed_and_everybody_else_is_answered(
    data: st.DataObject, num_records: int, capacity: int, num_kills: int
) -> None:
    culprits = data.draw(st.sets(st.integers(0, num_records - 1), max_size=3), "culprits")
    run = Run(num_records, culprits, capacity)
    run.run(Choices(data, num_kills))
    # Of one that went alone and was killed from outside twice nobody can tell the difference.
    guilty = culprits | {record for record, kills in run.killed_alone.items() if kills > 1}
    assert sorted(run.blamed) == sorted(guilty)
    assert sorted(run.answered) == sorted(set(range(num_records)) - guilty)


@pytest.mark.parametrize("culprit", [0, 1, 100, 254, 255])
def test_one_culprit_among_256_is_found_within_eleven_deaths(culprit: int) -> None:
    run = Run(num_records=256, culprits={culprit}, capacity=256)
    run.run(AtOnce())
    assert run.blamed == [culprit]
    assert len(run.answered) == 255
    assert run.num_deaths <= 11


@pytest.mark.parametrize("culprits", [{0, 1}, {0, 255}, {127, 128}, {3, 4, 5}])
def test_several_culprits_cost_each_a_search_of_its_own_at_most(culprits: set[int]) -> None:
    run = Run(num_records=256, culprits=culprits, capacity=256)
    run.run(AtOnce())
    assert sorted(run.blamed) == sorted(culprits)
    assert len(run.answered) == 256 - len(culprits)
    assert run.num_deaths <= 2 + 9 * len(culprits)


def test_engine_that_dies_empty_accuses_nobody() -> None:
    suspects: Suspects[int] = Suspects()
    assert suspects.accuse([]) is None
    assert suspects.is_empty and not suspects.is_trial


def test_who_is_to_be_asked_alone_waits_for_the_groups_before() -> None:
    suspects: Suspects[int] = Suspects()
    suspects.accuse([1, 2])
    suspects.add_alone(9)
    assert suspects.next_group() == (1, 2)
    assert suspects.is_trial
    suspects.acquit()
    assert not suspects.is_trial
    assert suspects.next_group() == (9,)
    assert suspects.is_empty
    assert suspects.accuse([9]) is None
    assert suspects.next_group() == (9,)
    assert suspects.accuse([9]) == 9


def test_survivor_of_a_group_on_trial_is_asked_alone_before_it_is_blamed() -> None:
    suspects: Suspects[int] = Suspects()
    suspects.accuse([1, 2])
    suspects.next_group()
    assert suspects.accuse([2]) is None  # 1 was answered; 2 was not alone when it began
    assert suspects.next_group() == (2,)
    assert suspects.accuse([2]) is None  # perhaps it was somebody else who killed the engine
    assert suspects.next_group() == (2,)
    assert suspects.accuse([2]) == 2
