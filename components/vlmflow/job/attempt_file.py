"""What an attempt at a shard has done so far, on the store."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from vlmflow.job import layout
from vlmflow.job.crash_points import reached
from vlmflow.job.generations import Generation
from vlmflow.job.plan import Plan, Shard
from vlmflow.job.progress_file import write_progress
from vlmflow.job.store import Store
from vlmflow.job.throughput import Throughput
from vlmflow.job.timeline import Timeline

SUMMARY_SECONDS = 5.0  # between two summaries, if one worker is at it


class AttemptFile:
    """This attempt's objects: alive while it runs, history afterwards."""

    def __init__(
        self, store: Store, plan: Plan, generation: Generation, shard: Shard, *, epoch: int
    ) -> None:
        self._store = store
        self._plan = plan
        self._generation = generation
        names = (generation.number, shard.number, epoch)
        self._key, self._timeline_key = layout.attempt_key(*names), layout.timeline_key(*names)
        self._about = dict(zip(("generation", "shard", "attempt"), names, strict=True))
        self._times_key = layout.record_times_key(*names)
        self._num_times_written = 0
        self._next_summary = 0.0
        self.timeline = Timeline()
        self.engine_info: dict[str, Any] = {}
        self.started = time.monotonic()  # since when the engine is held for this attempt

    def write(self, throughput: Throughput, status: str) -> None:
        """Write them, and now and then `progress.json`."""
        now = time.monotonic()
        held = timedelta(seconds=now - self.started)
        started_at = datetime.now(UTC) - held
        startup_seconds = max(0.0, throughput.started - self.started)
        content = {
            **self._about,
            "status": status,
            "started_at": started_at.isoformat(timespec="milliseconds"),
            "updated_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "startup_seconds": round(startup_seconds, 3),
            "engine_info": self.engine_info,
            **throughput.as_dict(),
        }
        # Apart from the attempt: progress.json is made of all attempts, over and over.
        working_since = started_at.timestamp() + startup_seconds
        timeline = self.timeline.as_dict(started=working_since)
        times = throughput.times.as_list()
        if len(times) > self._num_times_written:
            self._num_times_written = len(times)
            self._store.write(self._times_key, layout.dump_compact(times))
        self._store.write(self._timeline_key, layout.dump_compact(timeline))
        self._store.write(self._key, layout.dump(content))
        reached("attempt-written")
        if now >= self._next_summary or status != "running":
            summary = write_progress(self._store, self._plan, self._generation)
            reached("progress-written")
            # All workers write it: in sum as often as one alone would.
            self._next_summary = now + SUMMARY_SECONDS * max(1, summary["workers"])
