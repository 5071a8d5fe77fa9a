"""Picks the rows that people look at: the same ones in every evaluation of a job."""

import heapq
from collections.abc import Callable
from hashlib import blake2b
from typing import Generic, TypeVar

Row = TypeVar("Row")


class RowPicker(Generic[Row]):
    """Keeps rows at random, by a hash of their ids: half of them good ones, half bad ones.

    Where there are too few of one kind there are more of the other.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        # Of each kind (-hash, ordinal, row), the largest hash on top.
        self._kinds: dict[bool, list[tuple[int, int, Row]]] = {True: [], False: []}

    def add(
        self, make_row: Callable[[], Row], record_id: str | None, ordinal: int, *, is_good: bool
    ) -> None:
        """Show it a row, which is made only if it is kept for now."""
        digest = blake2b((record_id or str(ordinal)).encode(), digest_size=8).digest()
        key = -int.from_bytes(digest, "big")
        kept = self._kinds[is_good]
        if len(kept) < self._max_rows:
            heapq.heappush(kept, (key, ordinal, make_row()))
        elif kept and (key, ordinal) > kept[0][:2]:
            heapq.heapreplace(kept, (key, ordinal, make_row()))

    def picked(self) -> list[Row]:
        """The rows, in the order of their ordinals."""
        good, bad = (sorted(self._kinds[kind], reverse=True) for kind in (True, False))
        half = self._max_rows // 2
        num_bad = min(len(bad), max(self._max_rows - half, self._max_rows - len(good)))
        chosen = bad[:num_bad] + good[: self._max_rows - num_bad]
        return [row for _, _, row in sorted(chosen, key=lambda item: item[1])]
