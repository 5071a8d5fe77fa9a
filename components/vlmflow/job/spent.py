"""What a job's time went to: of the clock, of the devices, of money. Made from its attempts."""

import math
from datetime import datetime
from typing import Any

from vlmflow.job.timeline import WorkingTime

Attempts = list[dict[str, Any]]

# In the order of a record's way. They add up to the device's seconds.
PARTS = (
    "startup",
    "images",
    "preprocessing",
    "vision",
    "prefill",
    "decode",
    "store",
    "restart",
    "other",
)
_ENGINE_PARTS = {
    "preprocessing": "preprocess_wait_seconds",
    "vision": "vision_seconds",
    "prefill": "prefill_seconds",
    "decode": "decode_seconds",
}
_CACHE_COUNTS = ("prefix_query_tokens", "prefix_hit_tokens", "encoder_queries", "encoder_hits")


def time_held(attempts: Attempts) -> WorkingTime:
    """When at least one attempt held an engine, its start-up included."""
    return WorkingTime.of(
        (start, start + attempt["startup_seconds"] + attempt["seconds"])
        for attempt in attempts
        for start in [_started(attempt)]
    )


def time_answering(attempts: Attempts) -> WorkingTime:
    """When at least one attempt was between its engine's being ready and its last result."""
    return WorkingTime.of(
        (start, start + attempt["last_result_seconds"])
        for attempt in attempts
        for start in [_started(attempt) + attempt["startup_seconds"]]
    )


def time_working(attempts: Attempts) -> WorkingTime:
    """When at least one attempt had its engine ready: what timelines are laid over."""
    return WorkingTime.of(
        (start, start + attempt["seconds"])
        for attempt in attempts
        for start in [_started(attempt) + attempt["startup_seconds"]]
    )


def time_report(attempts: Attempts, num_succeeded: int) -> dict[str, Any]:
    """Seconds on the clock and on devices, and what the devices' seconds went to."""
    device_seconds = sum(a["startup_seconds"] + a["seconds"] for a in attempts)
    parts = dict.fromkeys(PARTS, 0.0)
    for attempt in attempts:
        for name, seconds in _split(attempt).items():
            parts[name] += seconds
    return {
        "wall_seconds": round(time_held(attempts).seconds, 3),
        "device_seconds": round(device_seconds, 3),
        "device_seconds_per_1000_records": _per_1000(device_seconds, num_succeeded),
        "parts": {name: round(seconds, 3) for name, seconds in parts.items()},
    }


def cost_report(
    price_per_hour: float | None, device_seconds: float, num_succeeded: int
) -> dict[str, Any] | None:
    """What it cost, in the price's own currency; None if no price was given."""
    if price_per_hour is None:
        return None
    total = price_per_hour * device_seconds / 3600
    return {
        "price_per_hour": price_per_hour,
        "total": round(total, 6),
        "per_1000_records": _per_1000(total, num_succeeded, digits=6),
    }


def cache_report(attempts: Attempts) -> dict[str, Any]:
    """What the engine's caches saved, by its own counts."""
    counts = {name: int(_engine_sum(attempts, name)) for name in _CACHE_COUNTS}
    return counts | {
        "prefix_hit_rate": _rate(counts["prefix_hit_tokens"], counts["prefix_query_tokens"]),
        "encoder_hit_rate": _rate(counts["encoder_hits"], counts["encoder_queries"]),
    }


def engine_info(attempts: Attempts) -> dict[str, Any]:
    """Of the last attempt that had an engine."""
    found: dict[str, Any] = {}
    for attempt in attempts:
        found = attempt["engine_info"] or found
    return found


def _split(attempt: dict[str, Any]) -> dict[str, float]:
    """An attempt's seconds by part. The engine's own clock fills the time that it had a record."""
    waited = attempt["activity_seconds"]
    inside = {part: attempt["engine"].get(key, 0.0) for part, key in _ENGINE_PARTS.items()}
    # The engine's counts begin and end with its frames, a moment beside the job's own.
    scale = min(1.0, waited["engine"] / max(sum(inside.values()), 1e-9))
    parts = {part: seconds * scale for part, seconds in inside.items()}
    parts |= {name: waited[name] for name in ("images", "store", "restart")}
    parts["startup"] = attempt["startup_seconds"]
    whole = attempt["startup_seconds"] + attempt["seconds"]
    return parts | {"other": max(0.0, whole - sum(parts.values()))}


def _engine_sum(attempts: Attempts, name: str) -> float:
    return math.fsum(attempt["engine"].get(name, 0) for attempt in attempts)


def _started(attempt: dict[str, Any]) -> float:
    return datetime.fromisoformat(attempt["started_at"]).timestamp()


def _rate(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _per_1000(value: float, count: int, *, digits: int = 3) -> float | None:
    return round(1000 * value / count, digits) if count else None
