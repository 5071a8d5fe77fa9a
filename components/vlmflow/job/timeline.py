"""How fast an attempt was at each moment: a bounded series of points, and many laid over one axis.

Every column of a point is a sum over the point's time, so that two neighbours merge by adding.
What is a height and no count (queues) is kept as height times seconds.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vlmflow.job.throughput import Throughput

COLUMNS = (
    "seconds",  # that the point covers; the first point begins when the engine is ready
    "records",  # finished
    "failed",
    "images",
    "prefill_tokens",  # computed, which leaves out what the prefix cache had
    "output_tokens",
    "running",  # sequences, summed over steps
    "places",  # for sequences, summed over steps
    "fetching",  # records whose images are being fetched, times seconds
    "waiting",  # records ready for the engine, in it or before it, but not running, times seconds
)
MAX_POINTS = 600
_SHORTEST_SECONDS = 0.5  # as often as the engine tells its counts
_DIGITS = 4

Point = tuple[float, ...]


class Timeline:
    """An attempt's points. Beyond MAX_POINTS neighbours merge, and later ones are longer."""

    def __init__(self) -> None:
        self._points: list[Point] = []
        self._totals: Point = (0.0,) * (len(COLUMNS) - 3)
        self._until = 0.0
        self._seconds = _SHORTEST_SECONDS

    def sample(
        self, throughput: Throughput, *, num_fetching: int, num_ready: int, is_last: bool = False
    ) -> None:
        """Add what happened since the last call, once enough time has passed."""
        seconds = throughput.seconds - self._until
        if seconds <= 0 or (seconds < self._seconds and not is_last):
            return
        engine = throughput.engine
        totals = (
            float(throughput.num_finished),
            float(throughput.num_failed),
            float(throughput.num_images),
            engine.get("num_prefill_tokens", 0.0),
            engine.get("num_output_tokens", 0.0),
            engine.get("sum_running", 0.0),
            engine.get("num_steps", 0.0) * engine.get("max_batch_size", 0.0),
        )
        counts = (now - before for now, before in zip(totals, self._totals, strict=True))
        waiting = num_ready + engine.get("num_waiting", 0.0)
        points = [*self._points, (seconds, *counts, num_fetching * seconds, waiting * seconds)]
        if len(points) > MAX_POINTS:
            points = [_sum(points[n : n + 2]) for n in range(0, len(points), 2)]
            self._seconds *= 2
        # One assignment: another thread may be writing the list down.
        self._points, self._totals, self._until = points, totals, self._until + seconds

    def as_dict(self, *, started: float) -> dict[str, Any]:
        """For the store. `started` is when the first point begins, in seconds since 1970."""
        rounded = [[round(value, _DIGITS) for value in point] for point in self._points]
        return {"started": round(started, 3), "columns": COLUMNS, "points": rounded}


@dataclass(frozen=True, slots=True)
class WorkingTime:
    """The time in which at least one worker was at it, without the gaps between."""

    intervals: tuple[tuple[float, float], ...]  # in order, apart from one another

    @classmethod
    def of(cls, intervals: Iterable[tuple[float, float]]) -> "WorkingTime":
        """Join intervals that overlap."""
        joined: list[tuple[float, float]] = []
        for start, end in sorted(intervals):
            if joined and start <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(joined[-1][1], end)
            elif end > start:
                joined.append((start, end))
        return cls(tuple(joined))

    @property
    def seconds(self) -> float:
        return sum(end - start for start, end in self.intervals)

    def position(self, moment: float) -> float:
        """Seconds of working time before a moment."""
        return sum(min(max(moment - start, 0.0), end - start) for start, end in self.intervals)

    def pauses(self) -> list[tuple[float, float]]:
        """Where work stopped, as seconds of working time, and for how long."""
        return [
            (self.position(end), start - end)
            for (_, end), (start, _) in zip(self.intervals, self.intervals[1:], strict=False)
        ]


@dataclass(frozen=True, slots=True)
class JobTimeline:
    """All attempts' points in equal steps of working time."""

    step_seconds: float
    pauses: list[tuple[float, float]]
    columns: dict[str, list[float]]  # each as long as there are steps

    def rate(self, name: str) -> list[float]:
        """A count per second, or a mean height, in each step."""
        return [value / self.step_seconds for value in self.columns[name]]

    def share(self, part: str, whole: str) -> list[float | None]:
        """One column by another; None where there is nothing to divide by."""
        pairs = zip(self.columns[part], self.columns[whole], strict=True)
        return [above / below if below else None for above, below in pairs]


def lay_over(
    timelines: Iterable[dict[str, Any]], working: WorkingTime, *, max_steps: int
) -> JobTimeline:
    """Add up what workers did at the same time."""
    num_steps = max(1, min(max_steps, math.ceil(working.seconds / _SHORTEST_SECONDS)))
    step_seconds = max(working.seconds / num_steps, 1e-6)
    columns = {name: [0.0] * num_steps for name in COLUMNS}
    for timeline in timelines:
        start = timeline["started"]
        for point in timeline["points"]:
            end = start + point[0]
            shares = _shares(working.position(start), working.position(end), step_seconds)
            for step, share in shares:
                for name, value in zip(COLUMNS, point, strict=True):
                    columns[name][min(step, num_steps - 1)] += value * share
            start = end
    return JobTimeline(step_seconds, working.pauses(), columns)


def _shares(start: float, end: float, step_seconds: float) -> list[tuple[int, float]]:
    """The steps that an interval of working time falls into, and how much of it into each."""
    first, last = int(start / step_seconds), int(end / step_seconds)
    if first == last or end <= start:
        return [(first, 1.0)]
    return [
        (step, overlap / (end - start))
        for step in range(first, last + 1)
        if (overlap := min(end, (step + 1) * step_seconds) - max(start, step * step_seconds)) > 0
    ]


def _sum(points: Sequence[Point]) -> Point:
    return tuple(math.fsum(values) for values in zip(*points, strict=True))
