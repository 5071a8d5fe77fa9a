"""Fetches the images of records, many at a time, and again those that were not to be had."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from vlmflow.job.fetch_pool import FetchPool
from vlmflow.job.media import MediaFetcher
from vlmflow.job.record import Failure, FetchedImage, Record

_DELAYS = (5.0, 30.0)  # seconds before an image that could not be had is fetched again


@dataclass(frozen=True, slots=True)
class Fetched:
    """A record whose images were fetched, or were not."""

    record: Record
    result: list[FetchedImage] | Failure | BaseException
    attempts: int = 1
    begun: float = 0.0  # when its images were asked for, in seconds since 1970


class RecordFetches:
    """What is being fetched. Results go to `deliver`, mostly from other threads."""

    def __init__(
        self, fetcher: MediaFetcher, num_threads: int, deliver: Callable[[Fetched], None]
    ) -> None:
        self._fetcher = fetcher
        self._deliver = deliver
        self._pool = FetchPool(num_threads)
        self._later: list[tuple[float, Record, int]] = []  # when, and for what time
        self.num_records = 0  # begun and not taken

    def begin(self, record: Record) -> None:
        self.num_records += 1
        if record.image_uris:
            self._pool.submit(partial(self._fetch, record, 1))
        else:
            self._deliver(Fetched(record, [], begun=time.time()))

    def begin_again(self) -> None:
        """Fetch once more for those whose time has come."""
        now = time.monotonic()
        for item in [item for item in self._later if item[0] <= now]:
            self._later.remove(item)
            self._pool.submit(partial(self._fetch, item[1], item[2]))

    def take(self, fetched: Fetched) -> list[FetchedImage] | Failure | None:
        """Take what was delivered; None if it will be fetched once more.

        Raises what ended the fetch: no credentials, or a fault of ours. Better the job stops than
        loses a record.
        """
        result, attempts = fetched.result, fetched.attempts
        if isinstance(result, Failure) and result.retryable and attempts <= len(_DELAYS):
            due = time.monotonic() + _DELAYS[attempts - 1]
            self._later.append((due, fetched.record, attempts + 1))
            return None
        self.num_records -= 1
        if isinstance(result, BaseException):
            raise result
        return replace(result, attempts=attempts) if isinstance(result, Failure) else result

    def close(self) -> None:
        """Begin nothing more, and wait for nobody."""
        self._pool.close()

    def _fetch(self, record: Record, attempts: int) -> None:  # on a thread of the pool
        begun = time.time()
        try:
            result: list[FetchedImage] | Failure | BaseException = self._fetcher.fetch(record)
        except Exception as error:
            result = error
        self._deliver(Fetched(record, result, attempts, begun))
