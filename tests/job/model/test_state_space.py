"""The commit protocol in every interleaving of two workers, with deaths and lost answers.

What runs is the product: S3Store, Claims, CommitLog and ResultsView, on a simulated S3. What is
checked in every state, and what in those where a worker is through, stands in `protocol.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.job.model.exploration import Explored, Explorer, Program, ViolationError
from tests.job.model.protocol import Protocol
from tests.job.model.simulated_s3 import Client
from vlmflow.job import commit_log
from vlmflow.job.commit_log import CommitLog
from vlmflow.job.generations import Generation
from vlmflow.job.plan import Shard
from vlmflow.job.record import Outcome
from vlmflow.job.store import ObjectMissingError, Store
from vlmflow.job.store.s3 import S3Store

# Which records two workers commit together, and in which order: so that they get into each other's
# way with a part of a batch, the whole of one, and one after the other.
CROSSED = ([[0, 1], [2]], [[1, 2], [0]])
ONE_BY_ONE = ([[0], [1], [2]], [[2], [1], [0]])
AT_ONCE = ([[0, 1, 2]], [[0, 1, 2]])
TWO_RECORDS = ([[0], [1]], [[1, 0]])


@pytest.fixture(autouse=True)
def checkpoint_in_every_second_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else none would come up in logs as short as these."""
    monkeypatch.setattr(commit_log, "CHECKPOINT_EVERY", 2)


@pytest.fixture
def protocol(monkeypatch: pytest.MonkeyPatch) -> Protocol:
    return Protocol(3, monkeypatch)


def explore(protocol: Protocol, *workers: Program, deaths: int = 0, losses: int = 0) -> Explored:
    explorer = Explorer(
        programs=workers,
        max_deaths=deaths,
        max_losses=losses,
        check_always=protocol.check_always,
        check_when_one_is_through=protocol.check_when_one_is_through,
    )
    return explorer.explore()


def two_workers(
    protocol: Protocol, batches: Sequence[Sequence[Sequence[int]]], **faults: int
) -> Explored:
    return explore(protocol, *map(protocol.worker, batches), **faults)


def two_claiming_workers(monkeypatch: pytest.MonkeyPatch, **faults: int) -> Explored:
    protocol = Protocol(2, monkeypatch)
    return explore(protocol, *map(protocol.claiming_worker, TWO_RECORDS), **faults)


def test_every_record_is_committed_once_whoever_dies_sleeps_or_hears_nothing(protocol):
    found = two_workers(protocol, CROSSED, deaths=1, losses=1)
    # As many as there were: a change of the protocol changes them, and one that lets the explorer
    # look at a tenth of it without a word would not be noticed otherwise.
    assert found.num_states > 60_000
    assert found.num_buckets > 400
    assert found.num_ends > 2_000
    assert found.num_lives > 4_000


def test_claims_give_every_life_an_epoch_of_its_own(monkeypatch):
    found = two_claiming_workers(monkeypatch)
    assert found.num_states > 8_000
    assert found.num_ends > 200


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "batches, deaths, losses, num_states",
    [
        (CROSSED, 2, 0, 50_000),
        (CROSSED, 3, 0, 200_000),
        (CROSSED, 2, 1, 300_000),
        (CROSSED, 0, 3, 50_000),
        (ONE_BY_ONE, 1, 1, 100_000),
        (AT_ONCE, 2, 2, 100_000),
    ],
)
def test_every_record_is_committed_once_with_more_faults(
    protocol, batches, deaths, losses, num_states
):
    found = two_workers(protocol, batches, deaths=deaths, losses=losses)
    print(found)
    assert found.num_states > num_states


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("deaths, losses, num_states", [(0, 1, 100_000), (1, 0, 500_000)])
def test_claims_hold_with_more_faults(monkeypatch, deaths, losses, num_states):
    found = two_claiming_workers(monkeypatch, deaths=deaths, losses=losses)
    print(found)
    assert found.num_states > num_states


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_three_workers_commit_every_record_once(protocol):
    batches = ([[0, 1], [2]], [[1, 2], [0]], [[2, 0, 1]])
    found = explore(protocol, *map(protocol.worker, batches))
    print(found)
    assert found.num_states > 10_000


# The explorer must find what is wrong: each of these is the protocol with one thought left out.


class OverwritingStore(S3Store):
    """Creates by writing."""

    def create(self, key: str, data: bytes) -> bool:
        self.write(key, data)
        return True


class LookingStore(S3Store):
    """Looks whether an object is there, then writes it: two steps."""

    def create(self, key: str, data: bytes) -> bool:
        try:
            return self.read(key) == data
        except ObjectMissingError:
            self.write(key, data)
            return True


class ForgettingStore(S3Store):
    """Takes what it wrote itself for another's, when the answer was lost."""

    def read(self, key: str, *, max_bytes: int | None = None) -> bytes:
        data = super().read(key, max_bytes=max_bytes)
        return data + b" " if "part-" in key else data  # so no part is what was to be created


class BlindLog(CommitLog):
    """Does not look again what is committed by now when it has lost a number."""

    def commit(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        part = self._write_part(outcomes)
        while not self._append(part, outcomes):
            pass
        return list(outcomes)


class DeafLog(CommitLog):
    """Goes on to the next number without reading who won this one."""

    def _read(self, seq: int) -> dict[str, Any]:
        return super()._read(seq) | {"ordinals": [], "succeeded": 0, "failed": 0}


class LogWithoutCheckpoints(CommitLog):
    """Begins to read where a checkpoint ought to be."""

    def _apply(self, entry: dict[str, Any]) -> None:
        super()._apply({name: value for name, value in entry.items() if name != "checkpoint"})


class LateLog(CommitLog):
    """Writes the part after the entry that names it."""

    def commit(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        new = sorted(
            (o for o in outcomes if o.ordinal not in self.state.committed),
            key=lambda outcome: outcome.ordinal,
        )
        while new and not self._append(self._next_part, new):
            new = [o for o in new if o.ordinal not in self.state.committed]
        if new:
            self._write_part(new)
        return new


class HastyLog(CommitLog):
    """Seals when it has committed something."""

    def commit(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        new = super().commit(outcomes)
        self.seal()
        return new


def with_store(store: Callable[..., Store]) -> Callable[[Protocol], None]:
    def change(protocol: Protocol) -> None:
        def make_store(client: Client) -> Store:
            return store(client, "bucket")

        protocol.make_store = make_store

    return change


def with_log(log_class: type[CommitLog]) -> Callable[[Protocol], None]:
    def change(protocol: Protocol) -> None:
        def open_log(store: Store, generation: Generation, shard: Shard, epoch: int) -> CommitLog:
            log = log_class(
                store, generation.prefix(shard), num_records=shard.num_records, epoch=epoch
            )
            log.load()
            return log

        protocol.open_log = open_log

    return change


def with_one_epoch_for_all(protocol: Protocol) -> None:
    right = protocol.open_log
    protocol.open_log = lambda store, generation, shard, epoch: right(store, generation, shard, 0)


@pytest.mark.parametrize(
    "change, complaint",
    [
        (with_store(OverwritingStore), "committed twice|records lack|the entry says"),
        (with_store(LookingStore), "committed twice|records lack|the entry says"),
        (with_store(ForgettingStore), "exists already"),
        (with_log(BlindLog), "committed twice"),
        (with_log(DeafLog), "committed twice"),
        (with_log(LogWithoutCheckpoints), "committed twice|a checkpoint is not"),
        (with_log(LateLog), "is committed and lacks"),
        (with_log(HastyLog), "sealed, and records lack"),
        (with_one_epoch_for_all, "exists already|the entry says"),
    ],
)
def test_a_wrong_protocol_is_found_out(protocol, change, complaint):
    change(protocol)
    with pytest.raises(ViolationError, match=complaint):
        two_workers(protocol, CROSSED, deaths=1, losses=1)


def test_claims_on_a_store_that_overwrites_are_found_out(monkeypatch):
    protocol = Protocol(2, monkeypatch)
    with_store(OverwritingStore)(protocol)
    with pytest.raises(ViolationError):
        explore(protocol, *map(protocol.claiming_worker, TWO_RECORDS))


def test_a_violation_is_told_with_the_way_to_it(protocol):
    with_log(HastyLog)(protocol)
    with pytest.raises(ViolationError, match=r"(?s)after\n.*put .*commit-00000000.json -> done"):
        two_workers(protocol, CROSSED)
