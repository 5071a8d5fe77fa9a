"""The objects of a model, fetched into a folder: several at a time, resumed, and checked."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO

from vlmflow.job.errors import InterruptedJobError, StoreError
from vlmflow.job.store import ObjectInfo, Store
from vlmflow.job.store.checksum import Hasher

_NUM_THREADS = 8
_LINE_SECONDS = 10.0
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """What is known of a file that was fetched."""

    sha256: str
    checked_by: str | None  # the store's own checksum that it has; None: the store gives none


class ModelFetch:
    """Fetches objects below a store's root into `folder`, under their names."""

    def __init__(
        self,
        store: Store,
        folder: Path,
        *,
        say: Callable[[str], None],
        is_stopped: Callable[[], bool],
    ) -> None:
        self._store = store
        self._folder = folder
        self._say = say
        self._is_stopped = is_stopped
        self._has_failed = threading.Event()  # then the other threads need not go on
        self._lock = threading.Lock()
        self._num_bytes = self._total = 0
        self._told = 0.0

    def run(
        self, objects: list[ObjectInfo], done: Callable[[ObjectInfo, FetchedFile], None]
    ) -> None:
        """Fetch objects; `done` is called for each, on this thread.

        What is fetched when this raises stays, and the next call goes on with it. Raises
        StoreError, InterruptedJobError, OSError, and ObjectChangedError if one is not the one
        that was listed.
        """
        self._total = sum(info.num_bytes for info in objects)
        self._told = start = time.monotonic()
        self._say(
            f"model {self._store.uri}: fetching {len(objects)} files, {self._total:,} bytes, into "
            f"{self._folder}"
        )
        with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="vlmflow-model") as threads:
            running = {threads.submit(self._fetch, info): info for info in objects}
            try:
                for future in as_completed(running):
                    done(running[future], future.result())
            except BaseException:
                self._has_failed.set()
                threads.shutdown(cancel_futures=True)
                raise
        self._say(f"model {self._store.uri}: fetched in {time.monotonic() - start:.1f} s")

    def _fetch(self, info: ObjectInfo) -> FetchedFile:
        target = self._folder / info.key
        part = target.with_name(f"{target.name}.part")
        expected = self._store.checksum(info.key, info.etag)
        for _ in range(2):
            digest = sha256()
            check: Hasher = expected.hasher() if expected is not None else digest
            hashers: list[Hasher] = [digest] if expected is None else [digest, check]
            with part.open("a+b") as file:
                self._resume(file, info, hashers)
                for chunk in self._store.stream(info.key, etag=info.etag, start=file.tell()):
                    file.write(chunk)
                    self._count(len(chunk), hashers, chunk)
                file.flush()
                os.fsync(file.fileno())
                num_bytes = file.tell()
            is_right = expected is None or check.hexdigest() == expected.value
            if num_bytes == info.num_bytes and is_right:
                part.replace(target)
                return FetchedFile(digest.hexdigest(), expected.algorithm if expected else None)
            with self._lock:
                self._num_bytes -= num_bytes
            part.unlink()
        raise StoreError(
            f"{self._store.uri}/{info.key}: what is fetched is twice not what the store says it "
            f"holds ({info.num_bytes:,} bytes, {expected.algorithm if expected else 'no'} checksum)"
        )

    def _resume(self, file: IO[bytes], info: ObjectInfo, hashers: list[Hasher]) -> None:
        """Leave the file's position at the end of what an earlier try has fetched."""
        if file.tell() > info.num_bytes:
            file.truncate(0)
        file.seek(0)
        while chunk := file.read(_CHUNK_BYTES):
            self._count(len(chunk), hashers, chunk)

    def _count(self, num_bytes: int, hashers: list[Hasher], chunk: bytes) -> None:
        if self._is_stopped() or self._has_failed.is_set():
            raise InterruptedJobError(
                "told to stop while a model was fetched; the next run goes on"
            )
        for hasher in hashers:
            hasher.update(chunk)
        with self._lock:
            self._num_bytes += num_bytes
            if time.monotonic() - self._told < _LINE_SECONDS:
                return
            self._told = time.monotonic()
            share = self._num_bytes / self._total
        self._say(f"model {self._store.uri}: {share:.0%} of {self._total:,} bytes fetched")
