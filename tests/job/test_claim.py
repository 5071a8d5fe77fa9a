"""One worker at a time, and nobody waits for a dead one longer than needed."""

import json
import os
import socket
import subprocess
import sys
import time

import psutil
import pytest

from vlmflow.job import claim as claims
from vlmflow.job.claim import Claims, acquire_claim
from vlmflow.job.errors import ClaimedError
from vlmflow.job.layout import dump
from vlmflow.job.process_identity import boot_id
from vlmflow.job.store.base import ObjectForbiddenError
from vlmflow.job.store.folder import FolderStore

PREFIX = "_work/shards/00000/"


def never(_seconds: float) -> None:
    raise AssertionError("waited")


def claim_of(store, *, host: str = "elsewhere", pid: int = 1, epoch: int = 0) -> None:
    """Leave the claim of another worker, alive a moment ago."""
    owner = {"nonce": "n", "host": host, "boot_id": boot_id(), "pid": pid, "started": 1.0}
    store.create(f"{PREFIX}claim-{epoch:06d}.json", dump(owner))
    store.write(f"{PREFIX}heartbeat-{epoch:06d}.json", dump({"beats": 1, "released": False}))


def test_epochs_count_up(store):
    first = acquire_claim(Claims(store), PREFIX, sleep=never)
    first.release()
    assert (first.epoch, acquire_claim(Claims(store), PREFIX, sleep=never).epoch) == (0, 1)


def test_a_living_process_of_this_host_keeps_its_claim(store):
    acquire_claim(Claims(store), PREFIX, sleep=never)  # ours, and we are alive
    with pytest.raises(ClaimedError, match=f"process {os.getpid()} on"):
        acquire_claim(Claims(store), PREFIX, sleep=never)


def test_a_process_of_this_host_that_is_gone_loses_it_at_once(store):
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    claim_of(store, host=socket.gethostname(), pid=int(process.stdout))
    assert acquire_claim(Claims(store), PREFIX, sleep=never).epoch == 1


def test_a_process_with_the_same_id_but_another_start_is_another_one(store):
    claim_of(store, host=socket.gethostname(), pid=os.getpid())  # started in 1970
    assert acquire_claim(Claims(store), PREFIX, sleep=never).epoch == 1


def test_another_host_is_dead_when_its_heartbeat_rests_for_the_lease(store):
    claim_of(store)
    waits, told = [], []
    claims = Claims(store, lease_seconds=5, clock=lambda: sum(waits))
    claim = acquire_claim(claims, PREFIX, sleep=waits.append, tell=told.append)
    assert claim.epoch == 1
    assert sum(waits) == 5
    assert "process 1 on elsewhere" in told[0]


def test_another_host_is_alive_when_its_heartbeat_moves(store):
    claim_of(store)

    def beat(_seconds: float) -> None:
        store.write(f"{PREFIX}heartbeat-000000.json", dump({"beats": 2, "released": False}))

    with pytest.raises(ClaimedError, match="process 1 on elsewhere is working"):
        acquire_claim(Claims(store), PREFIX, sleep=beat)


def test_a_claim_given_back_during_the_wait_is_taken_over(store):
    claim_of(store)

    def release(_seconds: float) -> None:
        store.write(f"{PREFIX}heartbeat-000000.json", dump({"beats": 1, "released": True}))

    assert acquire_claim(Claims(store), PREFIX, sleep=release).epoch == 1


def test_a_worker_killed_before_its_first_heartbeat_blocks_nobody_for_ever(store):
    claim_of(store)
    store.delete(f"{PREFIX}heartbeat-000000.json")
    waits = []
    claims = Claims(store, lease_seconds=2, clock=lambda: sum(waits))
    assert acquire_claim(claims, PREFIX, sleep=waits.append).epoch == 1


def test_heartbeats_change(store):
    claim = acquire_claim(Claims(store), PREFIX, sleep=never)
    key = f"{PREFIX}heartbeat-000000.json"
    before = json.loads(store.read(key))
    claim.beat()
    assert json.loads(store.read(key)) != before


def test_a_living_process_keeps_its_claim_when_the_clock_is_set(store, monkeypatch):
    acquire_claim(Claims(store), PREFIX, sleep=never)
    # What psutil says of a process is its time of day, which moves with the clock.
    right = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: right(self) + 3600)
    with pytest.raises(ClaimedError, match=f"process {os.getpid()} on"):
        acquire_claim(Claims(store), PREFIX, sleep=never)


def test_observers_whose_clocks_differ_by_years_take_over_after_the_same_wait(store):
    for skew in (0.0, 1e9, -1e9):
        prefix = f"{PREFIX}{skew}/"
        owner = {"nonce": "n", "host": "elsewhere", "boot_id": "", "pid": 1, "started": 1.0}
        store.create(f"{prefix}claim-000000.json", dump(owner))
        store.write(f"{prefix}heartbeat-000000.json", dump({"beats": 1, "released": False}))
        waits: list[float] = []
        claims = Claims(store, lease_seconds=5, clock=lambda w=waits, s=skew: s + sum(w))
        assert acquire_claim(claims, prefix, sleep=waits.append).epoch == 1
        assert sum(waits) == 5


class ForbiddingStore(FolderStore):
    """Refuses heartbeats after the first."""

    def write(self, key, data):
        if json.loads(data)["beats"] > 1:
            raise ObjectForbiddenError(f"{key}: access denied")
        super().write(key, data)


def test_a_heartbeat_that_is_refused_ends_neither_the_thread_nor_hides_an_error(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.01)
    claim = acquire_claim(Claims(ForbiddingStore(tmp_path)), PREFIX, sleep=never)
    with pytest.raises(ZeroDivisionError), claim:
        time.sleep(0.1)
        assert claim._thread.is_alive()
        raise ZeroDivisionError
