"""The names below `<output>/<job name>/`. Users are handed the first four, `_work/` is ours."""

from typing import Any

RESULTS = "results/"
FAILURES = "failures/"
REPORT = "report.json"
SUCCESS = "_SUCCESS.json"

JOB = "_work/job.json"
PLAN = "_work/plan.json"
TRACKING = "_work/tracking.json"
PROGRESS = "_work/progress/"
PROBE = "_work/probe/"
SHARDS = "_work/shards/"

SHARD = "00000"  # a manifest is one shard until `vlmflow plan` cuts it


def dump(value: Any) -> bytes:
    """Our JSON objects, readable by people."""
    import json

    return (json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()
