"""The manifest's object: its bytes, decompressed, and never those of a changed one."""

from collections.abc import Iterator

from vlmflow.job.dialects.compression import NUM_MAGIC_BYTES, codec_of, decompress
from vlmflow.job.dialects.reading import Tally
from vlmflow.job.errors import ManifestError
from vlmflow.job.store import ObjectMissingError, Store
from vlmflow.job.store.base import ObjectChangedError, ObjectForbiddenError


class ManifestSource:
    """One object of a store, as it was when it had this ETag."""

    def __init__(self, store: Store, key: str, etag: str) -> None:
        self.uri = f"{store.uri}/{key}"
        self._store = store
        self._key = key
        self._etag = etag
        head = b""
        for chunk in self.stored():
            head += chunk
            if len(head) >= NUM_MAGIC_BYTES:
                break
        self.codec = codec_of(head)

    def stored(self, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes as they are stored. Raises ManifestError."""
        try:
            yield from self._store.stream(self._key, etag=self._etag, start=start)
        except (ObjectMissingError, ObjectForbiddenError) as error:
            raise ManifestError(f"manifest {self.uri!r}: {error}") from error
        except ObjectChangedError as error:
            raise changed(self.uri) from error

    def content(self, start: int = 0, tally: Tally | None = None) -> Iterator[bytes]:
        """Yield the content from its byte `start` on. Raises ManifestError."""
        if self.codec is None:
            yield from _told(self.stored(start), tally)
            return
        for chunk in decompress(_told(self.stored(), tally), self.codec, self.uri):
            if start < len(chunk):
                yield chunk[start:] if start else chunk
            start = max(0, start - len(chunk))


def changed(uri: str) -> ManifestError:
    return ManifestError(
        f"manifest {uri!r} was changed while the job ran; a job's manifest must not "
        "change: write a new one under another name"
    )


def _told(chunks: Iterator[bytes], tally: Tally | None) -> Iterator[bytes]:
    for chunk in chunks:
        if tally is not None:
            tally.add(chunk)
        yield chunk
