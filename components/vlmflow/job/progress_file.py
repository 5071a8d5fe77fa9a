"""`progress.json`: how far the job is, for programs that look on. docs/report.md has its fields."""

import json
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from vlmflow.job import layout
from vlmflow.job.claim import LEASE_SECONDS
from vlmflow.job.errors import EXIT_RESUMABLE, ClaimedError, JobError, StoreError
from vlmflow.job.generations import Generation
from vlmflow.job.job_file import read_json
from vlmflow.job.plan import Plan
from vlmflow.job.store import Store

STATUSES = ("starting", "running", "waiting", "finishing", "interrupted", "complete", "failed")


def read_attempts(store: Store) -> list[dict[str, Any]]:
    """All attempts, in the order of generations, shards and epochs."""
    return [json.loads(store.read(key)) for key in store.list(layout.ATTEMPTS)]


def write_progress(
    store: Store,
    plan: Plan,
    generation: Generation,
    *,
    status: str | None = None,
    is_final: bool = False,
) -> dict[str, Any]:
    """Write it anew from all attempts' files, and return it.

    `status` is what the caller knows of himself. It is the job's if nobody else works on it, or if
    `is_final`: then the report is written.
    """
    summary = summarise(read_attempts(store), plan, generation, status=status)
    if is_final:
        summary |= {"status": status, "workers": 0, "records_per_second": 0.0, "eta_seconds": None}
    elif summary["status"] == "finishing":
        # A worker that was away may come by when all is over.
        there = read_json(store, layout.PROGRESS)
        if there and there["generation"] == generation.number and _is_over(there["status"]):
            summary["status"] = there["status"]
    store.write(layout.PROGRESS, layout.dump(summary))
    return summary


@contextmanager
def telling_progress(store: Store, plan: Plan, generation: Generation) -> Iterator[None]:
    """Write that the job starts, and how it ends if that is by an error."""
    write_progress(store, plan, generation, status="starting")
    try:
        yield
    except ClaimedError:  # the one who has it tells
        raise
    except Exception as error:
        with suppress(StoreError):  # the first error is the one to tell
            write_progress(store, plan, generation, status=status_after(error))
        raise


def status_after(error: Exception) -> str:
    """What an error makes of an attempt."""
    is_resumable = isinstance(error, JobError) and error.exit_code == EXIT_RESUMABLE
    return "interrupted" if is_resumable else "failed"


def summarise(
    attempts: list[dict[str, Any]],
    plan: Plan,
    generation: Generation,
    *,
    status: str | None = None,
    now: datetime | None = None,
) -> dict[str, Any]:
    """How far a generation is. Of a shard only the latest attempt counts."""
    now = now or datetime.now(UTC)
    latest = {a["shard"]: a for a in attempts if a["generation"] == generation.number}
    workers = [a for a in latest.values() if is_working(a, now)]
    num_done = sum(attempt["done"] for attempt in latest.values())
    num_failed = sum(attempt["failed_in_all"] for attempt in latest.values())
    num_records = len(generation.asked)
    if generation.number == 0:
        num_records = plan.num_records
        # An attempt counts what was set aside of its shard; here is that of all other shards.
        firsts = [shard.first_ordinal for shard in plan.shards]
        for ordinal, item in plan.set_aside.items():
            if bisect_right(firsts, ordinal) - 1 not in latest:
                num_done += 1
                num_failed += item.kind == "failed"
    rate = sum(attempt["records_per_second"] for attempt in workers)
    is_all_done = num_done == num_records
    ends = [attempt["status"] for attempt in latest.values()]
    if workers:
        status = "running"
    elif is_all_done:
        status = "finishing"
    elif status is None:
        # One that says it runs and was not heard of for so long was killed.
        stopped = {"interrupted", "running"} & set(ends)
        status = "failed" if "failed" in ends else "interrupted" if stopped else "waiting"
    return {
        "schema_version": 1,
        "status": status,
        "generation": generation.number,
        "records": num_records,
        "done": num_done,
        "failed": num_failed,
        "shards": len(generation.shards(plan)),
        "shards_done": ends.count("complete"),
        "workers": len(workers),
        "records_per_second": round(rate, 3),
        "eta_seconds": round((num_records - num_done) / rate, 1) if rate else None,
        "updated_at": now.isoformat(timespec="seconds"),
    }


def is_working(attempt: dict[str, Any], now: datetime) -> bool:
    """Whether somebody is at it: an attempt writes itself down every few seconds."""
    age = (now - datetime.fromisoformat(attempt["updated_at"])).total_seconds()
    return attempt["status"] == "running" and age < LEASE_SECONDS


def _is_over(status: str) -> bool:
    return status in ("complete", "failed")
