"""Who works on a shard. Claims keep two from doing the same work; commits keep it right anyway.

A claim is created under the shard's next epoch. It counts as dead when its process is gone (same
host, same boot), when it was given back, or when somebody has watched its heartbeat for the lease
time, on his own clock, without seeing it change.
"""

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from vlmflow.job.errors import ClaimedError
from vlmflow.job.layout import SHARDS, dump
from vlmflow.job.store import ObjectMissingError, Store

LEASE_SECONDS = 60.0
HEARTBEAT_SECONDS = 10.0


class Claim:
    """A claim that is ours. `beat` it every HEARTBEAT_SECONDS, `release` it at the end."""

    def __init__(self, store: Store, prefix: str, epoch: int) -> None:
        self._store = store
        self._key = f"{prefix}heartbeat-{epoch:06d}.json"
        self._beats = 0
        self.epoch = epoch

    def beat(self) -> None:
        """Show that we are alive."""
        self._beats += 1
        self._store.write(self._key, dump({"beats": self._beats, "released": False}))

    def release(self) -> None:
        """Let the next worker in at once."""
        self._store.write(self._key, dump({"beats": self._beats, "released": True}))


def acquire_claim(
    store: Store,
    shard: str,
    *,
    lease_seconds: float = LEASE_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
    tell: Callable[[str], None] = lambda message: None,
) -> Claim:
    """Claim a shard, waiting out a claim that may be dead. Raises ClaimedError if it is alive.

    `tell` is given a sentence before a wait.
    """
    prefix = f"{SHARDS}{shard}/"
    while True:
        keys = list(store.list(f"{prefix}claim-"))
        if keys:
            _wait_until_dead(store, prefix, keys[-1], lease_seconds, sleep, tell)
        epoch = int(keys[-1][len(f"{prefix}claim-") :].split(".")[0]) + 1 if keys else 0
        claim = Claim(store, prefix, epoch)
        if store.create(f"{prefix}claim-{epoch:06d}.json", dump(_this_process())):
            claim.beat()
            return claim
        # Somebody was faster: look again, he may be alive.


def _wait_until_dead(
    store: Store,
    prefix: str,
    key: str,
    lease_seconds: float,
    sleep: Callable[[float], None],
    tell: Callable[[str], None],
) -> None:
    owner = json.loads(store.read(key))
    heartbeat_key = key.replace("claim-", "heartbeat-")
    first = _heartbeat(store, heartbeat_key)
    if first.get("released"):
        return
    where = f"process {owner['pid']} on {owner['host']}"
    if owner["host"] == socket.gethostname() and owner["boot_id"] == _boot_id():
        if not _is_running(owner):
            return
        raise ClaimedError(f"{where} is working on this job; wait for it or stop it")
    tell(f"{where} was working on this job; waiting {lease_seconds:.0f} s to see if it still is")
    waited = 0.0
    while waited < lease_seconds:
        sleep(min(1.0, lease_seconds))
        waited += min(1.0, lease_seconds)
        now = _heartbeat(store, heartbeat_key)
        if now.get("released"):
            return
        if now != first:
            raise ClaimedError(f"{where} is working on this job; wait for it or stop it")


def _heartbeat(store: Store, key: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(store.read(key))
    except ObjectMissingError:  # killed between claim and first beat
        return {}
    return content


def _this_process() -> dict[str, Any]:
    return {
        "nonce": uuid4().hex,
        "host": socket.gethostname(),
        "boot_id": _boot_id(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
    }


def _is_running(owner: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(owner["pid"])
        # A pid is given out again; a process is known by its start too.
        started: float = process.create_time()
        is_zombie = process.status() == psutil.STATUS_ZOMBIE
        return abs(started - owner["started"]) < 1.0 and not is_zombie
    except psutil.NoSuchProcess:
        return False


def _boot_id() -> str:
    """Tells hosts of the same name apart, and containers by their process namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
