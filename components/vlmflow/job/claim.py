"""Who works on a shard. Claims keep two from doing the same work; commits keep it right anyway.

A claim is created under the shard's next epoch. It counts as dead when its process is gone (same
host, same boot), when it was given back, or when somebody has watched its heartbeat for the lease
time, on his own clock, without seeing it change.
"""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self
from uuid import uuid4

from vlmflow.job.crash_points import reached
from vlmflow.job.errors import ClaimedError
from vlmflow.job.layout import dump
from vlmflow.job.process_identity import describe_process, is_here, is_running
from vlmflow.job.store import ObjectMissingError, Store
from vlmflow_engine.errors import VlmflowError

LEASE_SECONDS = 60.0
HEARTBEAT_SECONDS = 10.0


class Claim:
    """A claim that is ours; as a context it beats by itself and is given back at the end."""

    def __init__(self, store: Store, prefix: str, epoch: int) -> None:
        self._store = store
        self._key = f"{prefix}heartbeat-{epoch:06d}.json"
        self._beats = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
        self.epoch = epoch

    def beat(self) -> None:
        """Show that we are alive."""
        self._beats += 1
        self._store.write(self._key, dump({"beats": self._beats, "released": False}))

    def release(self) -> None:
        """Let the next worker in at once."""
        self._store.write(self._key, dump({"beats": self._beats, "released": True}))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        with suppress(VlmflowError):  # the next worker waits out the lease then
            self.release()
        reached("claim-released")

    def _keep_beating(self) -> None:
        while not self._is_over.wait(HEARTBEAT_SECONDS):
            # A store that is away for a while, or that refuses us for a while: beat again then.
            with suppress(VlmflowError):
                self.beat()


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a claim that we wanted."""

    where: str  # for a sentence
    is_alive: bool  # known to be; else his heartbeat must be watched before we know


@dataclass(frozen=True, slots=True)
class _Observation:
    key: str
    heartbeat: dict[str, Any]
    since: float


class Claims:
    """Takes claims, and watches those of others. One observer's memory of heartbeats."""

    def __init__(
        self,
        store: Store,
        *,
        lease_seconds: float = LEASE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._seen: dict[str, _Observation] = {}  # by prefix

    def take(self, prefix: str) -> Claim | Owner:
        """Claim what stands below `prefix`, or say who has it. Never waits."""
        while True:
            keys = list(self._store.list(f"{prefix}claim-"))
            if keys:
                owner = self._owner(prefix, keys[-1])
                if owner is not None:
                    return owner
            epoch = int(keys[-1][len(f"{prefix}claim-") :].split(".")[0]) + 1 if keys else 0
            claim = Claim(self._store, prefix, epoch)
            if self._store.create(f"{prefix}claim-{epoch:06d}.json", dump(_this_process())):
                reached("claim-created")
                claim.beat()
                reached("heartbeat-written")
                return claim
            # Somebody was faster: look again, he may be alive.

    def _owner(self, prefix: str, key: str) -> Owner | None:
        """Whose claim it is; None if it is dead or was given back."""
        heartbeat = self._heartbeat(key.replace("claim-", "heartbeat-"))
        if heartbeat.get("released"):
            return None
        process = json.loads(self._store.read(key))
        where = f"process {process['pid']} on {process['host']}"
        if is_here(process):
            return Owner(where, is_alive=True) if is_running(process) else None
        now, seen = self._clock(), self._seen.get(prefix)
        if seen is None or seen.key != key:
            self._seen[prefix] = _Observation(key, heartbeat, now)
            return Owner(where, is_alive=False)
        if heartbeat != seen.heartbeat:
            self._seen[prefix] = _Observation(key, heartbeat, now)
            return Owner(where, is_alive=True)
        return Owner(where, is_alive=False) if now - seen.since < self._lease_seconds else None

    def _heartbeat(self, key: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(self._store.read(key))
        except ObjectMissingError:  # killed between claim and first beat
            return {}
        return content


def acquire_claim(
    claims: Claims,
    prefix: str,
    *,
    sleep: Callable[[float], None] = time.sleep,
    tell: Callable[[str], None] = lambda message: None,
    is_patient: bool = False,
) -> Claim:
    """Take a claim, waiting out one that may be dead. Raises ClaimedError if it is alive.

    Who `is_patient` waits for the living too. `tell` is given a sentence before a wait.
    """
    is_told = False
    while True:
        found = claims.take(prefix)
        if isinstance(found, Claim):
            return found
        if found.is_alive and not is_patient:
            raise ClaimedError(f"{found.where} is working on this job; wait for it or stop it")
        if not is_told:
            tell(f"{found.where} was working on this job; watching for up to a minute if it is")
            is_told = True
        sleep(1.0)


def _this_process() -> dict[str, Any]:
    return {"nonce": uuid4().hex, **describe_process()}
