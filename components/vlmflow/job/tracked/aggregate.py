"""A job's speed over time, summed over its shards' workers, as stepped metrics of its own run."""

import json
from datetime import datetime
from typing import Any

from vlmflow.job import layout
from vlmflow.job.spent import time_working
from vlmflow.job.store import Store
from vlmflow.job.timeline import WorkingTime, lay_over
from vlmflow.tracking.metric_point import MetricPoint

_MAX_STEPS = 240
_RATES = {
    "records_per_second": "records",
    "images_per_second": "images",
    "output_tokens_per_second": "output_tokens",
    "prefill_tokens_per_second": "prefill_tokens",
}


def aggregate_points(store: Store, report: dict[str, Any], num_records: int) -> list[MetricPoint]:
    """Points of the report's generation; the step is the number of records done.

    The same report gives the same points.
    """
    generation = report["generation"]
    attempts = [a for a in report["attempts"] if a["generation"] == generation]
    if not attempts:
        return []
    working = time_working(attempts)
    keys = [layout.timeline_key(generation, a["shard"], a["attempt"]) for a in attempts]
    there = set(store.list(layout.TIMELINES))
    timelines = [json.loads(store.read(key)) for key in keys if key in there]
    timeline = lay_over(timelines, working, max_steps=_MAX_STEPS)
    rates = {name: timeline.rate(column) for name, column in _RATES.items()}
    occupancy = timeline.share("running", "places")
    points, done, failed = [], float(generation * num_records), 0.0
    for step, finished in enumerate(timeline.columns["records"]):
        done += finished
        failed += timeline.columns["failed"][step]
        values = {name: series[step] for name, series in rates.items()}
        values["failed_total"] = failed
        share = occupancy[step]
        if share is not None:
            values["batch_occupancy"] = share
        moment = round(1000 * _moment(working, (step + 1) * timeline.step_seconds))
        points += [MetricPoint(k, v, round(done), moment) for k, v in values.items()]
    return points


def _moment(working: WorkingTime, position: float) -> float:
    """Seconds since 1970 at which so many seconds of work were done."""
    for start, end in working.intervals:
        if position <= end - start:
            return start + position
        position -= end - start
    return working.intervals[-1][1] if working.intervals else datetime.now().timestamp()
