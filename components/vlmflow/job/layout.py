"""The names below `<output>/<job name>/`. `_work/` is ours, the others are users'."""

import json
from typing import Any

RESULTS = "results/"
FAILURES = "failures/"
OUTPUTS = "outputs/"  # in other dialects, if they are asked for
REPORT = "report.json"
REPORT_HTML = "report.html"
PROGRESS = "progress.json"
SUCCESS = "_SUCCESS.json"
EVALUATION = "evaluation.json"
EVALUATION_TABLE = "evaluation.parquet"
EVALUATION_WORK = "evaluation/"  # what a judge was asked, and said

JOB = "_work/job.json"
PLAN = "_work/plan.json"
TRACKING = "_work/tracking.json"
TRACKING_PARTS = "_work/tracking/"  # the MLflow runs of shards, and one that was handed to us
SPOOL = "_work/spool/"  # what the tracking server did not take
UNLOGGED = "_work/unlogged.json"  # the run page is not complete
VIEWS = "_work/views.json"  # digests of the files in results/ and failures/
RECORD_TIMES = "_work/record_times/"  # of the few records whose way is shown in a trace
ATTEMPTS = "_work/progress/"
TIMELINES = "_work/timelines/"
PROBE = "_work/probe/"
FINISH = "_work/finish/"  # claims on writing the views and the report
GENERATIONS = "_work/generations/"


def generation_key(number: int) -> str:
    """What generation `number` asks again; the first, 0, is the plan itself and has none."""
    return f"{GENERATIONS}{number:04d}.json"


def shard_prefix(generation: int, shard: int) -> str:
    """Where claims, parts and commits of a shard stand."""
    above = f"{GENERATIONS}{generation:04d}/" if generation else "_work/"
    return f"{above}shards/{shard:05d}/"


def attempt_key(generation: int, shard: int, epoch: int) -> str:
    """What one worker's time on a shard was: alive while it runs, history afterwards."""
    return f"{ATTEMPTS}{_attempt_name(generation, shard, epoch)}"


def timeline_key(generation: int, shard: int, epoch: int) -> str:
    """How fast it was, moment by moment."""
    return f"{TIMELINES}{_attempt_name(generation, shard, epoch)}"


def record_times_key(generation: int, shard: int, epoch: int) -> str:
    """When what was done to a few of its records."""
    return f"{RECORD_TIMES}{_attempt_name(generation, shard, epoch)}"


def tracking_key(part: str) -> str:
    """Which MLflow run is a part's: the job's own, or a shard's."""
    return TRACKING if part == "job" else f"{TRACKING_PARTS}{part}.json"


def dump(value: Any) -> bytes:
    """Our JSON objects, readable by people."""
    return (json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


def dump_compact(value: Any) -> bytes:
    """Our JSON objects that are numbers for the most part."""
    return json.dumps(value, separators=(",", ":")).encode()


def _attempt_name(generation: int, shard: int, epoch: int) -> str:
    return f"{generation:04d}-{shard:05d}-{epoch:06d}.json"
