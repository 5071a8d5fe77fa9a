"""A report's numbers as final metrics, and in words as a run's description."""

from typing import Any
from urllib.parse import quote

from vlmflow.job.evaluator import evaluation_metrics
from vlmflow.job.tracked.orchestrator import orchestrator_links

_COUNTS = ("succeeded", "failed", "skipped", "deduplicated")
_TIMES = ("wall_seconds", "device_seconds", "device_seconds_per_1000_records")
_RATES = ("prefix_hit_rate", "encoder_hit_rate")


def final_metrics(report: dict[str, Any]) -> dict[str, float]:
    """The report's numbers as metrics; what is not known is left out."""
    counts, time, cost = report["counts"], report["time"], report["cost"]
    values: dict[str, float | None] = {f"records_{name}": counts[name] for name in _COUNTS}
    values |= {"records_total": counts["records"], "images_total": report["images"]}
    values |= {"error_rate": counts["failed"] / counts["records"]}
    values |= {f"{name}_tokens_total": count for name, count in report["tokens"].items()}
    values |= {f"final_{name}": value for name, value in report["throughput"].items()}
    values |= {f"latency_{name}_seconds": v for name, v in report["latency_seconds"].items()}
    values["exact_match"] = report["accuracy"]["exact_match"]
    values |= evaluation_metrics(report)
    values |= {name: time[name] for name in _TIMES}
    values |= {f"time_{name}_seconds": seconds for name, seconds in time["parts"].items()}
    values |= {f"final_{name}": report["cache"][name] for name in _RATES}
    first = [a["startup_seconds"] + a["first_result_seconds"] for a in _that_answered(report)]
    values["first_result_seconds"] = first[0] if first else None
    if cost is not None:
        values |= {"cost_total": cost["total"]}
        values |= {"cost_per_1000_records": cost["per_1000_records"]}
    return {name: float(value) for name, value in values.items() if value is not None}


def describe(report: dict[str, Any], tags: dict[str, str]) -> str:
    """The run's description, in Markdown. `tags` are the orchestrator's."""
    counts, rates, accuracy = report["counts"], report["throughput"], report["accuracy"]
    lines = [
        f"**{counts['succeeded']} of {counts['records']}** records succeeded, "
        f"{counts['failed']} failed, {counts['skipped']} were skipped.",
        "",
    ]
    if accuracy["exact_match"] is not None:
        lines.append(
            f"- exact match {accuracy['exact_match']:.1%} of {accuracy['expected']} answers"
        )
    lines.append(
        f"- {rates['images_per_second'] or 0:.1f} images/s, "
        f"{rates['output_tokens_per_second'] or 0:.1f} output tokens/s"
    )
    if report["cost"] is not None and report["cost"]["per_1000_records"] is not None:
        lines.append(f"- cost {report['cost']['per_1000_records']:.4f} per 1,000 records")
    for name, failure in report["failures"].items():
        lines.append(f"- failed: `{name}` x {failure['count']}")
    places = {
        "manifest": report["manifest"]["uri"],
        "results": report["results"]["results"],
        "failures": report["results"]["failures"],
        "report": report["results"]["report_html"],
    }
    is_aws = report["job"]["spec"]["endpoint_url"] is None
    lines += [f"- {name} {_linked(uri, is_aws)}" for name, uri in places.items()]
    lines += [f"- {link}" for link in orchestrator_links(tags)]
    return "\n".join(lines)


def _that_answered(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [a for a in report["attempts"] if a["first_result_seconds"] is not None]


def _linked(uri: str, is_aws: bool) -> str:
    """A place, and where there is one the page on which a browser shows it."""
    if not (is_aws and uri.startswith("s3://")):
        return f"`{uri}`"
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    url = f"https://s3.console.aws.amazon.com/s3/buckets/{quote(bucket)}?prefix={quote(key)}"
    return f"`{uri}` ([console]({url}))"
