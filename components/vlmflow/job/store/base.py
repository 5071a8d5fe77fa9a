"""The verbs the job rests on. `create` is the only one that exclusivity depends on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vlmflow.job.store.checksum import Checksum
from vlmflow_engine.errors import VlmflowError


class ObjectMissingError(VlmflowError):
    """There is no object under this key."""


class ObjectForbiddenError(VlmflowError):
    """There may be one, but it cannot be had with these credentials."""


class ObjectChangedError(VlmflowError):
    """The object is not the one whose ETag was given."""


class ObjectTooLargeError(VlmflowError):
    """The object has more bytes than the caller takes."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    key: str
    num_bytes: int
    etag: str  # changes when the content does


class Store(Protocol):
    """Objects under keys, below one root. All methods may be called from several threads.

    Each raises StoreError when the store does not answer, after retries.
    """

    uri: str  # of the root, without a slash at the end

    def stat(self, key: str) -> ObjectInfo:
        """Raises ObjectMissingError or ObjectForbiddenError."""

    def read(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Read an object whole. Raises as `stat`, and ObjectTooLargeError."""

    def read_if_changed(
        self, key: str, known_etag: str | None, *, max_bytes: int | None = None
    ) -> tuple[bytes, str] | None:
        """Read an object and its ETag in one request; None if it is the known one still.

        The ETag is empty if the store gives none. Raises as `read`.
        """

    def stream(self, key: str, *, etag: str | None = None, start: int = 0) -> Iterator[bytes]:
        """Read an object in chunks, from byte `start`. Raises as `stat`, and ObjectChangedError."""

    def checksum(self, key: str, etag: str) -> Checksum | None:
        """What the store knows of the content, if it can be computed here.

        Raises as `stat`, and ObjectChangedError if the object is not the one with that ETag.
        """

    def create(self, key: str, data: bytes) -> bool:
        """Write an object that must not exist; return whether it is ours now.

        Atomic: of several callers one wins. An object that already holds exactly these bytes is
        our own, written by a try whose answer was lost: give `data` a nonce where that matters.
        """

    def write(self, key: str, data: bytes) -> None:
        """Write an object, whether it exists or not."""

    def write_file(self, key: str, path: Path) -> None:
        """Write an object from a file, of any size."""

    def delete(self, key: str) -> None:
        """Remove an object; harmless if there is none."""

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with `prefix`, in order."""

    def list_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield what `stat` says of the keys that begin with `prefix`, in order."""
