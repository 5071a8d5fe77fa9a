"""One pass over a manifest: its items, where it is, and the digest of what it read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256

from vlmflow.job.dialects.item import Item


@dataclass(frozen=True, slots=True)
class Position:
    """Where the next record begins."""

    ordinal: int = 0  # how many items came before
    line: int = 0  # how many lines (rows, keys) came before
    byte: int = 0  # how many bytes came before, once decompressed; 0 where nothing is found by it


START = Position()


class Tally:
    """Digests and counts the bytes of the manifest as they are stored."""

    def __init__(self) -> None:
        self._digest = sha256()
        self.num_bytes = 0

    def add(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self.num_bytes += len(chunk)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


class Reading:
    """Iterate it once. What it says is as of the last item that came."""

    def __init__(self, start: Position, items: Callable[["Reading"], Iterator[Item]]) -> None:
        self.ordinal = start.ordinal
        self.line = start.line
        self.byte = start.byte
        self.raw: bytes | None = None  # the last item's own line, in dialects of JSON lines
        self.tally = Tally()
        self._is_whole = start == START
        self._is_over = False
        self._items = items

    def __iter__(self) -> Iterator[Item]:
        yield from self._items(self)
        self._is_over = True

    @property
    def position(self) -> Position:
        """Where the item after the last one begins."""
        return Position(self.ordinal, self.line, self.byte)

    @property
    def sha256(self) -> str | None:
        """The digest of the stored bytes; None unless all were read, from the first on."""
        return self.tally.sha256 if self._is_whole and self._is_over else None

    @property
    def num_bytes(self) -> int:
        """How many stored bytes were read."""
        return self.tally.num_bytes
