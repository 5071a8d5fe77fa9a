"""Attempts as they stand in the store, for tests of what is made of them."""

from datetime import UTC, datetime
from typing import Any

START = 1_700_000_000


def attempt(start: float, seconds: float, **more: Any) -> dict[str, Any]:
    """One that began so long after START, was ready after `startup_seconds`, then worked."""
    return {
        "generation": 0,
        "shard": 0,
        "attempt": 0,
        "status": "complete",
        "started_at": datetime.fromtimestamp(START + start, UTC).isoformat(timespec="milliseconds"),
        "updated_at": datetime.fromtimestamp(START + start + seconds, UTC).isoformat(),
        "startup_seconds": 0.0,
        "seconds": seconds,
        "last_result_seconds": seconds,
        "done": 0,
        "succeeded": 0,
        "failed": 0,
        "failed_in_all": 0,
        "records_per_second": 0.0,
        "activity_seconds": {
            "engine": seconds, "images": 0.0, "store": 0.0, "restart": 0.0, "other": 0.0
        },
        "engine": {},
        "engine_info": {},
    } | more  # fmt: skip
