"""Which image embeddings are kept, counted in rows and named by content.

An entry is used by the sequences that still have to read it; without a user it stays cached until
its room is needed, the least recently used first. This is the book-keeping only: the runner holds
the embeddings and drops what a step's plan lists as evicted.
"""

from collections import OrderedDict


class EncoderCache:
    """Room for `capacity` embedding rows."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._rows: dict[bytes, int] = {}
        self._users: dict[bytes, set[int]] = {}
        self._unused: OrderedDict[bytes, None] = OrderedDict()  # least recently used first
        self._num_rows = 0
        self._num_unused_rows = 0

    @property
    def num_rows(self) -> int:
        """Rows kept, used or not."""
        return self._num_rows

    def __contains__(self, content_hash: bytes) -> bool:
        return content_hash in self._rows

    def is_user(self, content_hash: bytes, request_id: int) -> bool:
        return request_id in self._users.get(content_hash, ())

    def has_room(self, num_rows: int) -> bool:
        """Whether an entry of that size fits, when unused ones are evicted for it."""
        return num_rows <= self.capacity - self._num_rows + self._num_unused_rows

    def add(self, content_hash: bytes, num_rows: int) -> list[bytes]:
        """Make an entry without a user and return what was evicted for it. Needs `has_room`."""
        assert content_hash not in self._rows
        evicted = []
        while self._num_rows + num_rows > self.capacity:
            oldest, _ = self._unused.popitem(last=False)
            size = self._rows.pop(oldest)
            del self._users[oldest]
            self._num_rows -= size
            self._num_unused_rows -= size
            evicted.append(oldest)
        self._rows[content_hash] = num_rows
        self._users[content_hash] = set()
        self._unused[content_hash] = None
        self._num_rows += num_rows
        self._num_unused_rows += num_rows
        return evicted

    def use(self, content_hash: bytes, request_id: int) -> None:
        """Keep an entry for a sequence until it is released."""
        if not self._users[content_hash]:
            del self._unused[content_hash]
            self._num_unused_rows -= self._rows[content_hash]
        self._users[content_hash].add(request_id)

    def release(self, content_hash: bytes, request_id: int) -> None:
        """End a use. Harmless where there is none."""
        users = self._users.get(content_hash)
        if users is None or request_id not in users:
            return
        users.remove(request_id)
        if not users:
            self._unused[content_hash] = None
            self._num_unused_rows += self._rows[content_hash]

    def clear(self) -> list[bytes]:
        """Drop every entry, used or not, and return their names."""
        dropped = list(self._rows)
        self._rows.clear()
        self._users.clear()
        self._unused.clear()
        self._num_rows = self._num_unused_rows = 0
        return dropped
