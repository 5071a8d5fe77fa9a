"""Sets of record ordinals: a bit each in memory, ranges in JSON."""

from collections.abc import Iterable, Iterator


class OrdinalSet:
    """A set of numbers in first .. first + size - 1; a million records cost 125 KB."""

    def __init__(self, size: int, *, first: int = 0) -> None:
        self._bits = bytearray(-(-size // 8))
        self.size = size
        self.first = first
        self._count = 0

    @classmethod
    def full(cls, size: int) -> "OrdinalSet":
        """All of 0 .. size - 1."""
        result = cls(size)
        result._bits[:] = b"\xff" * len(result._bits)
        result._count = size
        return result

    def __len__(self) -> int:
        return self._count

    def __contains__(self, ordinal: int) -> bool:
        place = ordinal - self.first
        return 0 <= place < self.size and bool(self._bits[place >> 3] & (1 << (place & 7)))

    def __iter__(self) -> Iterator[int]:
        return (n for n in range(self.first, self.first + self.size) if n in self)

    def count(self, first: int, end: int) -> int:
        """How many of first .. end - 1 are in the set."""
        low, high = max(first - self.first, 0), min(end - self.first, self.size)
        if high <= low:
            return 0
        bits = int.from_bytes(self._bits[low >> 3 : (high + 7) >> 3], "little") >> (low & 7)
        return (bits & ((1 << (high - low)) - 1)).bit_count()

    def copy(self) -> "OrdinalSet":
        other = OrdinalSet(self.size, first=self.first)
        other._bits[:] = self._bits
        other._count = self._count
        return other

    def add(self, ordinal: int) -> None:
        place = ordinal - self.first
        if not 0 <= place < self.size:
            last = self.first + self.size - 1
            raise ValueError(f"ordinal {ordinal} is outside {self.first}..{last}")
        if ordinal not in self:
            self._bits[place >> 3] |= 1 << (place & 7)
            self._count += 1

    def discard(self, ordinal: int) -> None:
        if ordinal in self:
            place = ordinal - self.first
            self._bits[place >> 3] &= ~(1 << (place & 7))
            self._count -= 1

    def add_ranges(self, ranges: Iterable[Iterable[int]]) -> None:
        """Add inclusive [first, last] ranges."""
        for first, last in ranges:
            for ordinal in range(first, last + 1):
                self.add(ordinal)


def to_ranges(ordinals: Iterable[int]) -> list[list[int]]:
    """Ordinals in rising order as inclusive [first, last] ranges."""
    ranges: list[list[int]] = []
    for ordinal in ordinals:
        if ranges and ranges[-1][1] == ordinal - 1:
            ranges[-1][1] = ordinal
        else:
            ranges.append([ordinal, ordinal])
    return ranges
