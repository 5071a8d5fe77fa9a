"""One fetch for all who want the same image at the same time, and a few images kept in memory."""

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock

KEPT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """What was fetched, whatever it was called."""

    data: bytes
    sha256: str


class SharedFetches:
    """Called by several threads. An error is raised for all who wait, and not kept."""

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = Lock()
        self._in_flight: dict[str, Future[ImageBytes]] = {}
        self._kept: OrderedDict[str, ImageBytes] = OrderedDict()  # the latest used is last
        self._kept_bytes = 0

    def get(self, uri: str, fetch: Callable[[str], ImageBytes]) -> ImageBytes:
        """Return what `fetch(uri)` returns, called by one thread at a time. Raises what it does."""
        with self._lock:
            kept = self._kept.get(uri)
            if kept is not None:
                self._kept.move_to_end(uri)
                return kept
            flight = self._in_flight.get(uri)
            if flight is None:
                is_ours, flight = True, Future()
                self._in_flight[uri] = flight
            else:
                is_ours = False
        if not is_ours:
            return flight.result()
        try:
            result = fetch(uri)
        except BaseException as error:
            with self._lock:
                del self._in_flight[uri]
            flight.set_exception(error)
            raise
        with self._lock:
            del self._in_flight[uri]
            self._keep(uri, result)
        flight.set_result(result)
        return result

    def _keep(self, uri: str, image: ImageBytes) -> None:
        if len(image.data) > self._max_bytes:
            return
        self._kept[uri] = image
        self._kept_bytes += len(image.data)
        while self._kept_bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= len(oldest.data)
