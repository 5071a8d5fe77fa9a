"""Whether a store's create-if-absent is atomic: found out by racing it."""

from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier
from uuid import uuid4

from vlmflow.job.errors import StoreError
from vlmflow.job.layout import PROBE
from vlmflow.job.store import Store

_THREADS = 8
_ROUNDS = 3


def create_is_atomic(store: Store) -> bool:
    """Race threads for one key, a few times; True if exactly one won each time."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in range(_ROUNDS):
            key = f"{PROBE}{uuid4().hex}"
            barrier = Barrier(_THREADS)

            def attempt(number: int, key: str = key, barrier: Barrier = barrier) -> bool:
                barrier.wait()
                return store.create(key, f"{number} {uuid4().hex}".encode())

            attempts = [pool.submit(attempt, number) for number in range(_THREADS)]
            try:
                wins = sum(attempt.result() for attempt in attempts)
            except StoreError:  # a store that does not know If-None-Match says 501
                return False
            finally:
                wait(attempts)
                store.delete(key)
            if wins != 1:
                return False
    return True
