"""Sets of record ordinals: a bit each in memory, ranges in JSON."""

from collections.abc import Iterable, Iterator


class OrdinalSet:
    """A set of numbers below `size`; a million records cost 125 KB."""

    def __init__(self, size: int) -> None:
        self._bits = bytearray(-(-size // 8))
        self.size = size
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, ordinal: int) -> bool:
        return 0 <= ordinal < self.size and bool(self._bits[ordinal >> 3] & (1 << (ordinal & 7)))

    def __iter__(self) -> Iterator[int]:
        return (ordinal for ordinal in range(self.size) if ordinal in self)

    def copy(self) -> "OrdinalSet":
        other = OrdinalSet(self.size)
        other._bits[:] = self._bits
        other._count = self._count
        return other

    def add(self, ordinal: int) -> None:
        if not 0 <= ordinal < self.size:
            raise ValueError(f"ordinal {ordinal} is outside 0..{self.size - 1}")
        if ordinal not in self:
            self._bits[ordinal >> 3] |= 1 << (ordinal & 7)
            self._count += 1

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
