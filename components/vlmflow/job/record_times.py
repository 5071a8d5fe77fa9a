"""When what was done to a few of a job's records: what their traces are made of."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Times:
    """One record's. Moments are in seconds since 1970; what did not happen is None.

    `engine` is the engine's own clock, in seconds since it was given the record (see
    vlmflow_engine.answers.Times); `answered` less `engine["finished"]` is when that was.
    """

    ordinal: int
    begun: float | None = None  # its images were asked for
    fetched: float | None = None  # they were there
    sent: float | None = None  # to the engine, for the last time
    answered: float | None = None
    engine: dict[str, float] = field(default_factory=dict)


class RecordTimes:
    """Of records evenly spread over the manifest, at most `max_records` of them."""

    def __init__(self, num_records: int, max_records: int) -> None:
        self._stride = -(-num_records // max_records) if max_records else 0
        self._times: dict[int, Times] = {}

    def fetched(self, ordinal: int, begun: float) -> None:
        """Its images are there, which were asked for at that moment."""
        times = self._of(ordinal)
        if times is not None:
            times.begun, times.fetched = begun, time.time()

    def sent(self, ordinal: int) -> None:
        times = self._of(ordinal)
        if times is not None:
            times.sent = time.time()

    def answered(self, ordinal: int, frame: dict[str, Any]) -> None:
        """Take the engine's result frame."""
        times = self._of(ordinal)
        if times is not None:
            times.answered, times.engine = time.time(), frame.get("times", {})

    def as_list(self) -> list[dict[str, Any]]:
        """Those that have an outcome, for the store."""
        return [asdict(times) for times in list(self._times.values()) if times.answered is not None]

    def _of(self, ordinal: int) -> Times | None:
        if not self._stride or ordinal % self._stride:
            return None
        return self._times.setdefault(ordinal, Times(ordinal))
