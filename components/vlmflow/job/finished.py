"""What of a finished job is read again from its output."""

import heapq
import json
from collections.abc import Collection, Iterator
from typing import Any

from vlmflow.job import layout
from vlmflow.job.errors import ManifestError
from vlmflow.job.manifest import Manifest
from vlmflow.job.plan import Plan
from vlmflow.job.record import Record
from vlmflow.job.spent import time_working
from vlmflow.job.store import Store
from vlmflow.job.timeline import JobTimeline, lay_over

_MAX_STEPS = 120  # of a plot's time


def read_timeline(store: Store, attempts: list[dict[str, Any]]) -> JobTimeline:
    """How fast the job was, over all its attempts."""
    timelines = (json.loads(store.read(key)) for key in store.list(layout.TIMELINES))
    return lay_over(timelines, time_working(attempts), max_steps=_MAX_STEPS)


def asked_of(manifest: Manifest, plan: Plan, ordinals: Collection[int]) -> dict[int, Record]:
    """What was asked of a few records, by ordinal; nothing if the manifest is gone or changed."""
    try:
        return manifest.pick(plan, ordinals)
    except ManifestError:  # the answers are there all the same
        return {}


def read_lines(store: Store) -> Iterator[dict[str, Any]]:
    """Yield the lines of results and failures, in the manifest's order. Memory holds two chunks."""
    views = [_lines_below(store, prefix) for prefix in (layout.RESULTS, layout.FAILURES)]
    yield from heapq.merge(*views, key=lambda line: int(line["ordinal"]))


def _lines_below(store: Store, prefix: str) -> Iterator[dict[str, Any]]:
    for key in store.list(prefix):
        rest = b""
        for chunk in store.stream(key):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from map(json.loads, lines)
