"""What an attempt at a shard has done so far, on the store; and the job's sum of all of them."""

import json
import time
from datetime import UTC, datetime
from typing import Any

from vlmflow.job import layout
from vlmflow.job.crash_points import reached
from vlmflow.job.store import Store
from vlmflow.job.throughput import Throughput

SUMMARY_SECONDS = 5.0  # between two summaries, if one worker is at it


class AttemptFile:
    """This attempt's object: alive while it runs, history afterwards."""

    def __init__(self, store: Store, *, generation: int, shard: int, epoch: int) -> None:
        self._store = store
        self._key = layout.attempt_key(generation, shard, epoch)
        self._about = {"generation": generation, "shard": shard, "attempt": epoch}
        self._started = time.monotonic()
        self._started_at = datetime.now(UTC)
        self._next_summary = 0.0
        self.engine_info: dict[str, Any] = {}

    def write(self, throughput: Throughput, status: str, *, num_records: int) -> None:
        """Write it, and now and then `progress.json`. `num_records` is the job's."""
        content = {
            **self._about,
            "status": status,
            "started_at": self._started_at.isoformat(timespec="seconds"),
            "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "startup_seconds": round(max(0.0, throughput.started - self._started), 3),
            "engine_info": self.engine_info,
            **throughput.as_dict(),
        }
        self._store.write(self._key, layout.dump(content))
        reached("attempt-written")
        now = time.monotonic()
        if now >= self._next_summary or status != "running":
            summary = summarise(read_attempts(self._store), num_records)
            self._store.write(layout.PROGRESS, layout.dump(summary))
            reached("progress-written")
            # All workers write it: in sum as often as one alone would.
            self._next_summary = now + SUMMARY_SECONDS * max(1, summary["workers"])


def read_attempts(store: Store) -> list[dict[str, Any]]:
    """All attempts, in the order of generations, shards and epochs."""
    return [json.loads(store.read(key)) for key in store.list(layout.ATTEMPTS)]


def summarise(attempts: list[dict[str, Any]], num_records: int) -> dict[str, Any]:
    """How far the job's latest generation is. Of a shard only the latest attempt counts."""
    generation = max(attempt["generation"] for attempt in attempts)
    latest = {a["shard"]: a for a in attempts if a["generation"] == generation}
    running = [a for a in latest.values() if a["status"] == "running"]
    done = sum(attempt["done"] for attempt in latest.values())
    rate = sum(attempt["records_per_second"] for attempt in running)
    return {
        "generation": generation,
        "records": num_records,
        "done": done,
        "failed": sum(attempt["failed_in_all"] for attempt in latest.values()),
        "workers": len(running),
        "records_per_second": round(rate, 3),
        "eta_seconds": round((num_records - done) / rate, 1) if rate else None,
        "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
