"""What a worker waits for at each moment, added up: the honest half of the report's time split."""

import time

# The engine has a record; it has none and images are fetched; the store is slower than the engine;
# the engine died and loads again; none of these.
ACTIVITIES = ("engine", "images", "store", "restart", "other")


class ActivityClock:
    """Adds up seconds by activity. One thread enters; any may read."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self._current: str | None = None
        self._since = 0.0

    def enter(self, activity: str) -> None:
        """Say what goes on from now; what went on so far ends."""
        now = time.monotonic()
        if self._current is not None:
            self._seconds[self._current] += now - self._since
        self._current, self._since = activity, now

    def as_dict(self) -> dict[str, float]:
        """Seconds by activity, with the one that goes on."""
        seconds = dict(self._seconds)
        if self._current is not None:
            seconds[self._current] += time.monotonic() - self._since
        return {name: round(value, 3) for name, value in seconds.items()}
