"""Streams of gzip and zstd, known by their first bytes and never by their names."""

import io
from collections.abc import Iterator

from vlmflow.job.errors import ManifestError

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
NUM_MAGIC_BYTES = 4
_CHUNK_BYTES = 1 << 20


def codec_of(head: bytes) -> str | None:
    """Name what the first bytes say of the rest; None for plain bytes."""
    for magic, codec in _MAGIC.items():
        if head.startswith(magic):
            return codec
    return None


def decompress(chunks: Iterator[bytes], codec: str, uri: str) -> Iterator[bytes]:
    """Yield the content in chunks of at most 1 MiB, however far it was compressed.

    Several streams in a row are one. Raises ManifestError if one is broken or breaks off.
    """
    import pyarrow

    source = pyarrow.PythonFile(_ChunkFile(chunks), "r")
    with pyarrow.CompressedInputStream(source, codec) as stream:
        while True:
            try:
                data = stream.read(_CHUNK_BYTES)
            except (OSError, pyarrow.ArrowException) as error:
                reason = "ends too early" if "Truncated" in str(error) else "is broken"
                raise ManifestError(f"manifest {uri!r}: its {codec} stream {reason}") from error
            if not data:
                return
            yield data


class _ChunkFile(io.RawIOBase):
    """An iterator of chunks as the file that pyarrow asks for."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._rest = memoryview(chunk)
        part = self._rest[:size] if size >= 0 else self._rest
        self._rest = self._rest[len(part) :]
        return bytes(part)
