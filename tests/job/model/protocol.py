"""A worker on a shard, made of the job's own parts, and what must hold of the bucket it writes to.

The store, the claims, the log and the view are the product's. What is left out is what asks the
engine and when: which records a worker commits together, and in which order, is given.
"""

import itertools
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.job.model.exploration import Program
from tests.job.model.simulated_s3 import Client, Objects, client_to_read
from vlmflow.job import claim as claim_module
from vlmflow.job import commit_log as commit_log_module
from vlmflow.job.claim import LEASE_SECONDS, Claim, Claims
from vlmflow.job.commit_log import CommitLog, is_sealed
from vlmflow.job.generations import Generation
from vlmflow.job.ordinals import OrdinalSet
from vlmflow.job.plan import Plan, Shard
from vlmflow.job.record import Failure, Outcome
from vlmflow.job.results import ResultsView
from vlmflow.job.shard_log import open_log
from vlmflow.job.store import Store
from vlmflow.job.store.s3 import S3Store

LogOpener = Callable[[Store, Generation, Shard, int], CommitLog]
StoreMaker = Callable[[Client], Store]


class Protocol:
    """The parts that a worker is made of. A test of the tests replaces one by a wrong one."""

    def __init__(self, num_records: int, monkeypatch: pytest.MonkeyPatch) -> None:
        shard = Shard(0, 0, num_records)
        self.shard = shard
        self.plan = Plan("etag", "digest", 0, "native", num_records, {}, {}, (shard,))
        self.generation = Generation(0, OrdinalSet.full(num_records))
        self.prefix = self.generation.prefix(shard)
        self.make_store: StoreMaker = lambda client: S3Store(client, "bucket")  # type: ignore[arg-type]
        self.open_log: LogOpener = lambda store, generation, shard, epoch: open_log(
            store, generation, shard, epoch=epoch
        )
        self._names: Any = None  # of the life that runs just now
        self._life = ""
        self.lives: list[str] = []  # in the order in which they began; a place here is an epoch
        # What differs from run to run in real life must not here: a life is run anew for each of
        # its requests.
        for module in (claim_module, commit_log_module):
            monkeypatch.setattr(module, "uuid4", self._make_name)
        monkeypatch.setattr(claim_module, "_this_process", self._describe_process)

    def worker(self, batches: Sequence[Sequence[int]]) -> Program:
        """One that commits these ordinals, as far as they are not done when it begins.

        It asks nobody's leave, and has an epoch of its own: what claims promise at the least.
        """

        def program(name: str, client: Client) -> None:
            store = self._begin(name, client)
            self._work(store, self.lives.index(name), batches)

        return program

    def claiming_worker(self, batches: Sequence[Sequence[int]]) -> Program:
        """One that takes a claim before, and gives it back afterwards."""

        def program(name: str, client: Client) -> None:
            store = self._begin(name, client)
            # Two looks are a lease apart: whoever has not moved in between is taken for dead. So
            # two may work at the same time at any moment.
            looks = itertools.count()
            claims = Claims(store, clock=lambda: next(looks) * LEASE_SECONDS)
            while not isinstance(found := claims.take(self.prefix), Claim):
                pass
            self._work(store, found.epoch, batches)
            found.release()

        return program

    def _begin(self, name: str, client: Client) -> Store:
        self._life, self._names = name, itertools.count()
        if name not in self.lives:
            self.lives.append(name)
        return self.make_store(client)

    def _work(self, store: Store, epoch: int, batches: Sequence[Sequence[int]]) -> None:
        log = self.open_log(store, self.generation, self.shard, epoch)
        done = log.state.committed.copy()
        for batch in batches:
            outcomes = [_outcome(ordinal, self._life) for ordinal in batch if ordinal not in done]
            if outcomes:
                log.commit(outcomes)
        log.seal()
        assert is_sealed(store, self.prefix), "the log is not closed by its last entry"

    def check_always(self, objects: Objects) -> None:
        """What holds at every moment, whoever is dead or asleep."""
        entries = self._entries(objects)
        assert [entry["seq"] for entry in entries] == list(range(len(entries))), "a number lacks"
        committed: list[int] = []
        for entry in entries:
            if "checkpoint" in entry:
                told = OrdinalSet(self.shard.num_records)
                told.add_ranges(entry["checkpoint"]["committed"])
                assert list(told) == sorted(committed), "a checkpoint is not what was committed"
            named = OrdinalSet(self.shard.num_records)
            named.add_ranges(entry["ordinals"])
            if entry["part"] is not None:
                part = f"{self.prefix}part-{entry['epoch']:06d}-{entry['part']:08d}.jsonl"
                assert part in objects.by_key, f"{part} is committed and lacks"
                held = [json.loads(line)["ordinal"] for line in objects.by_key[part].splitlines()]
                assert held == list(named), f"{part} holds {held}, the entry says {list(named)}"
            committed += named
            assert len(committed) == len(set(committed)), f"committed twice: {sorted(committed)}"
        seals = [entry["seq"] for entry in entries if entry["seal"]]
        assert seals in ([], [len(entries) - 1]), "an entry follows the seal"
        if seals:
            assert len(committed) == self.shard.num_records, "sealed, and records lack"

    def check_when_one_is_through(self, objects: Objects) -> None:
        """Who comes to its end leaves every record committed, exactly once, for users to read."""
        store = S3Store(client_to_read(objects), "bucket")  # type: ignore[arg-type]
        log = open_log(store, self.generation, self.shard)
        num_records = self.shard.num_records
        assert log.state.is_sealed
        assert list(log.state.committed) == list(range(num_records))
        assert (log.state.num_succeeded, log.state.num_failed) == (num_records - 1, 1)
        with tempfile.TemporaryDirectory() as folder:
            view = ResultsView(store, [log.part_keys()], self.plan, Path(folder))
            assert [line["ordinal"] for _, line in view.lines()] == list(range(num_records))

    def _entries(self, objects: Objects) -> list[dict[str, Any]]:
        prefix = f"{self.prefix}commit-"
        return [json.loads(objects.by_key[k]) for k in sorted(objects.by_key) if prefix in k]

    def _make_name(self) -> Any:
        number = next(self._names)
        return type("Name", (), {"hex": f"{self._life}-{number}"})

    def _describe_process(self) -> dict[str, Any]:
        # Each life is on a host of its own, so that only its heartbeat says whether it lives.
        return {"nonce": self._make_name().hex, "host": self._life, "boot_id": "", "pid": 1}


def _outcome(ordinal: int, by: str) -> Outcome:
    failure = Failure("decode", "image_corrupt", "broken") if ordinal == 0 else None
    return Outcome(ordinal, {"ordinal": ordinal, "by": by}, failure=failure)
