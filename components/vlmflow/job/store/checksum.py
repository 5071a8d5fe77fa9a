"""What a store knows of an object's content, in a form that can be computed here."""

import hashlib
import zlib
from dataclasses import dataclass
from typing import Protocol


class Hasher(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Checksum:
    """Of the whole object."""

    algorithm: str  # sha256, sha1, crc32 or md5
    value: str  # hexadecimal

    def hasher(self) -> Hasher:
        """Begin to compute it."""
        if self.algorithm == "crc32":
            return _Crc32()
        # Against accidents, not attacks: where md5 is all that a store has, it is used.
        return hashlib.new(self.algorithm, usedforsecurity=False)


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"
