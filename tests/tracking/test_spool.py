"""What a server did not take is on the store within a while, and is sent once it does."""

from pathlib import Path

import pytest

from vlmflow.job.store import StoreOpener
from vlmflow.tracking import spool as spool_module
from vlmflow.tracking.metric_point import MAX_BATCH, MetricPoint
from vlmflow.tracking.spool import Spool, replay


@pytest.fixture
def store(tmp_path: Path):
    return StoreOpener().open(str(tmp_path))


def points(first: int, count: int) -> list[MetricPoint]:
    return [MetricPoint("a", n / 7, n, 1_700_000_000_000 + n) for n in range(first, first + count)]


def test_points_come_back_as_they_were_in_order_and_in_batches(store, monkeypatch):
    monkeypatch.setattr(spool_module, "FILE_POINTS", 1500)
    spool = Spool(store, "spool/job/", "w")
    for first in range(0, 4000, 500):
        spool.keep(points(first, 500))
    sent: list[list[MetricPoint]] = []
    assert spool.replay(sent.append) == 4000
    assert [point for batch in sent for point in batch] == points(0, 4000)
    assert max(len(batch) for batch in sent) == MAX_BATCH
    assert list(store.list("spool/")) == []
    assert spool.write() == 0


def test_a_kill_loses_no_more_than_a_while(store, monkeypatch):
    spool = Spool(store, "spool/job/", "w")
    spool.keep(points(0, 2))  # the first is written at once
    spool.keep(points(2, 2))
    found: list[MetricPoint] = []
    [key] = store.list("spool/")
    assert store.read(key).count(b"\n") == 2
    monkeypatch.setattr(spool_module, "WRITE_SECONDS", 0.0)
    spool.write()
    spool.keep(points(4, 1))
    assert replay(store, "spool/job/", found.extend) == 5  # of another process
    assert found == points(0, 5)


def test_what_fails_to_be_sent_stays(store):
    spool = Spool(store, "spool/job/", "w")
    spool.keep(points(0, 3))
    assert spool.write() == 3

    def refuse(batch: list[MetricPoint]) -> None:
        raise ConnectionError("down")

    with pytest.raises(ConnectionError):
        spool.replay(refuse)
    assert spool.write() == 3
    spool.keep(points(3, 1))
    sent: list[MetricPoint] = []
    assert spool.replay(sent.extend) == 4
    assert sent == points(0, 4)


def test_writers_and_runs_do_not_write_over_one_another(store):
    for run, writer, first in (("job", "a", 0), ("job", "b", 10), ("shard-00001", "a", 20)):
        Spool(store, f"spool/{run}/", writer).keep(points(first, 1))
    sent: list[MetricPoint] = []
    replay(store, "spool/job/", sent.extend)
    assert sent == points(0, 1) + points(10, 1)
    assert len(list(store.list("spool/"))) == 1
