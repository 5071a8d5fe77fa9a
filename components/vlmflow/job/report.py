"""`report.json`: what became of a job. Its counts are taken from the committed lines themselves.

Its fields are explained in docs/report.md and described by report.schema.json.
"""

import json
import platform
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from vlmflow import __version__
from vlmflow.job.spent import cache_report, cost_report, engine_info, time_answering, time_report

REPORT_SCHEMA_VERSION = 1
MAX_EXAMPLES = 3  # of each class of failure
_SHARES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 1.0}


@dataclass(slots=True)
class Tally:
    """Counts over the lines of a job, in any order."""

    num_records: int = 0
    num_succeeded: int = 0
    num_skipped: int = 0
    num_deduplicated: int = 0  # among the succeeded
    num_images: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    num_expected: int = 0  # succeeded records that say what answer is expected
    num_matched: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    stages: dict[str, Counter[str]] = field(default_factory=dict)  # of each class of failure
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    latencies: "array[float]" = field(default_factory=lambda: array("d"))  # 8 bytes a record

    @property
    def num_failed(self) -> int:
        return self.num_records - self.num_succeeded - self.num_skipped

    def add(self, line: dict[str, Any], *, is_skipped: bool) -> None:
        """Count a result or failure line."""
        self.num_records += 1
        error = line.get("error")
        if error is not None:
            self.num_skipped += is_skipped
            self._add_failure(line, error)
            return
        usage = line["usage"]
        self.num_succeeded += 1
        self.num_images += len(line["images"])
        self.prompt_tokens += usage["prompt_tokens"]
        self.cached_tokens += usage["cached_tokens"]
        self.output_tokens += usage["completion_tokens"]
        if "deduplicated_of" in line:  # it waited for another's answer: that is no latency
            self.num_deduplicated += 1
        else:
            self.latencies.append(line["seconds"])
        if line.get("expected") is not None:
            self.num_expected += 1
            self.num_matched += matches(line["text"], line["expected"])

    def _add_failure(self, line: dict[str, Any], error: dict[str, Any]) -> None:
        name = error["class"]
        self.failures[name] += 1
        self.stages.setdefault(name, Counter())[error["stage"]] += 1
        examples = self.examples.setdefault(name, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(
                {
                    "id": line["id"],
                    "ordinal": line["ordinal"],
                    "line": line["line"],
                    "stage": error["stage"],
                    "message": error["message"],
                }
            )


def matches(text: str, expected: Any) -> bool:
    """Exact match, but for blanks at the ends; of a list any one will do."""
    allowed = expected if isinstance(expected, list) else [expected]
    return text.strip() in [str(item).strip() for item in allowed]


def make_report(
    tally: Tally,
    *,
    job: dict[str, Any],
    manifest: dict[str, Any],
    attempts: list[dict[str, Any]],
    store: dict[str, Any],
    results: dict[str, str],
    mlflow: dict[str, Any] | None,
    price_per_hour: float | None = None,
) -> dict[str, Any]:
    """Put a report together."""
    counts = {
        "records": tally.num_records,
        "succeeded": tally.num_succeeded,
        "failed": tally.num_failed,
        "skipped": tally.num_skipped,
        "deduplicated": tally.num_deduplicated,
    }
    time = time_report(attempts, tally.num_succeeded)
    engine = engine_info(attempts)
    return {
        "schema_version": REPORT_SCHEMA_VERSION,
        "finished_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "job": job,
        "manifest": manifest,
        "counts": counts,
        "failures": {
            name: {
                "count": count,
                "stages": dict(sorted(tally.stages[name].items())),
                "examples": tally.examples[name],
            }
            for name, count in sorted(tally.failures.items())
        },
        "accuracy": {
            "expected": tally.num_expected,
            "matched": tally.num_matched,
            "exact_match": tally.num_matched / tally.num_expected if tally.num_expected else None,
        },
        "images": tally.num_images,
        "tokens": {
            "prompt": tally.prompt_tokens,
            "cached": tally.cached_tokens,
            "output": tally.output_tokens,
        },
        "throughput": _throughput(tally, time_answering(attempts).seconds),
        "latency_seconds": percentiles(tally.latencies),
        "time": time,
        "cost": cost_report(price_per_hour, time["device_seconds"], tally.num_succeeded),
        "cache": cache_report(attempts),
        "engine": engine,
        "versions": {
            "vlmflow": __version__,
            "python": engine.get("python_version", platform.python_version()),
            "torch": engine.get("torch_version"),
            "transformers": engine.get("transformers_version"),
        },
        "attempts": attempts,
        "store": store,
        "results": results,
        "mlflow": mlflow,
    }


def read_schema() -> dict[str, Any]:
    """The JSON Schema of report.json."""
    text = files("vlmflow.job").joinpath("report.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def percentiles(values: Iterable[float]) -> dict[str, float | None]:
    """p50, p90, p95, p99 and the largest; None each when there is no value."""
    ordered = sorted(values)

    def at(share: float) -> float | None:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None

    return {name: at(share) for name, share in _SHARES.items()}


def _throughput(tally: Tally, seconds: float) -> dict[str, float | None]:
    return {
        "seconds": round(seconds, 3),
        "records_per_second": _rate(tally.num_succeeded, seconds),
        "images_per_second": _rate(tally.num_images, seconds),
        "prompt_tokens_per_second": _rate(tally.prompt_tokens, seconds),
        "output_tokens_per_second": _rate(tally.output_tokens, seconds),
    }


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 3) if seconds > 0 else None
