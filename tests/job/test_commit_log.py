"""No record is committed twice and none is lost, whoever commits, sleeps or dies."""

import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmflow.job.commit_log import CHECKPOINT_EVERY, CommitLog
from vlmflow.job.record import Failure, Outcome
from vlmflow.job.store.folder import FolderStore

PREFIX = "_work/shards/00000/"


def outcome(ordinal: int, by: str = "", *, failed: bool = False) -> Outcome:
    failure = Failure("decode", "image_corrupt", "broken") if failed else None
    return Outcome(ordinal, {"ordinal": ordinal, "by": by}, failure=failure)


def make_log(store, epoch: int = 0, num_records: int = 1000) -> CommitLog:
    log = CommitLog(store, PREFIX, num_records=num_records, epoch=epoch)
    log.load()
    return log


def committed_lines(store, num_records: int = 1000) -> list[dict]:
    log = make_log(store, epoch=10**5, num_records=num_records)
    return [json.loads(line) for key in log.part_keys() for line in store.read(key).splitlines()]


def test_what_was_committed_is_there_after_a_restart(store):
    log = make_log(store)
    log.commit([outcome(3), outcome(1), outcome(2, failed=True)])
    log.commit([outcome(7)])
    again = make_log(store, epoch=1)
    assert list(again.state.committed) == [1, 2, 3, 7]
    assert (again.state.num_succeeded, again.state.num_failed) == (3, 1)
    assert [line["ordinal"] for line in committed_lines(store)] == [1, 2, 3, 7]


def test_a_worker_that_slept_drops_what_another_committed_meanwhile(store):
    sleeper = make_log(store, epoch=0)
    awake = make_log(store, epoch=1)
    awake.commit([outcome(n, "awake") for n in (1, 2, 3)])
    ours = sleeper.commit([outcome(n, "sleeper") for n in (2, 3, 4)])
    assert [o.ordinal for o in ours] == [4]
    assert {line["ordinal"]: line["by"] for line in committed_lines(store)} == {
        1: "awake",
        2: "awake",
        3: "awake",
        4: "sleeper",
    }


def test_committing_only_what_is_done_already_adds_nothing(store):
    log = make_log(store)
    log.commit([outcome(1)])
    assert log.commit([outcome(1)]) == []
    assert log.state.next_seq == 1


def test_a_part_without_a_commit_does_not_count(store):
    store.create(f"{PREFIX}part-000000-00000000.jsonl", b'{"ordinal":5}\n')
    log = make_log(store, epoch=1)
    assert len(log.state.committed) == 0
    assert committed_lines(store) == []


def test_sealing_is_final_and_may_be_repeated(store):
    one, two = make_log(store, epoch=0), make_log(store, epoch=1)
    one.commit([outcome(1)])
    one.seal()
    two.seal()
    assert one.state.is_sealed and two.state.is_sealed
    assert make_log(store, epoch=2).state.next_seq == 2


class CountingStore(FolderStore):
    """Counts what a resume costs."""

    def __init__(self, root):
        super().__init__(root)
        self.num_reads = 0

    def read(self, key, *, max_bytes=None):
        self.num_reads += 1
        return super().read(key, max_bytes=max_bytes)


@pytest.mark.parametrize("commits", [1, 63, 64, 65, 128, 200])
def test_a_resume_reads_few_objects_however_long_the_log_is(tmp_path, commits):
    store = CountingStore(tmp_path)
    log = make_log(store)
    for ordinal in range(commits):
        log.commit([outcome(ordinal, failed=ordinal % 3 == 0)])
    store.num_reads = 0
    again = make_log(store, epoch=1)
    assert store.num_reads <= CHECKPOINT_EVERY
    assert again.state.next_seq == commits
    assert list(again.state.committed) == list(range(commits))
    assert again.state.num_failed == len(range(0, commits, 3))
    assert again.part_keys() == log.part_keys()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_interleaving_of_two_workers_commits_every_record_once(data, tmp_path_factory):
    """Workers commit random batches, fall behind, die and come back under a new epoch."""
    store = FolderStore(tmp_path_factory.mktemp("log"))
    num_records, epoch = 12, 1
    workers = [make_log(store, 0, num_records), make_log(store, 1, num_records)]
    for _ in range(data.draw(st.integers(1, 12), "actions")):
        who = data.draw(st.integers(0, 1), "worker")
        if data.draw(st.sampled_from(["commit", "commit", "commit", "restart"])) == "restart":
            epoch += 1
            workers[who] = make_log(store, epoch, num_records)
            continue
        batch = data.draw(st.sets(st.integers(0, num_records - 1), min_size=1), "batch")
        workers[who].commit([outcome(ordinal, str(who)) for ordinal in batch])
        assert batch <= set(workers[who].state.committed)
    for worker in workers:
        worker.commit([outcome(ordinal) for ordinal in range(num_records)])
        worker.seal()
    counts = Counter(line["ordinal"] for line in committed_lines(store, num_records))
    assert counts == Counter(range(num_records))
    final = make_log(store, 10**6, num_records)
    assert final.state.is_sealed
    assert final.state.num_succeeded == num_records
