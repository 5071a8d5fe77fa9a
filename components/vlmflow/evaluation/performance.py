"""What a job's report says of its speed and cost, by the names that gates use."""

from typing import Any

# Of these more is better, of all others but the neutral ones less.
NEUTRAL = frozenset(("output_tokens",))
MORE_IS_BETTER = frozenset(
    (
        "records_per_second",
        "images_per_second",
        "prompt_tokens_per_second",
        "output_tokens_per_second",
    )
)

NAMES = (
    "records_per_second",
    "images_per_second",
    "prompt_tokens_per_second",
    "output_tokens_per_second",
    "latency_p50_seconds",
    "latency_p95_seconds",
    "latency_p99_seconds",
    "wall_seconds",
    "device_seconds",
    "device_seconds_per_1000_records",
    "cost_total",
    "cost_per_1000_records",
    "output_tokens",
    "error_rate",
)


def performance(report: dict[str, Any] | None, error_rate: float) -> dict[str, float | None]:
    """All of NAMES; None for what is not known. The error rate is that of the results."""
    values: dict[str, float | None] = dict.fromkeys(NAMES)
    values["error_rate"] = error_rate
    if report is None:
        return values
    values |= {name: v for name, v in report["throughput"].items() if name in values}
    values |= {
        f"latency_{name}_seconds": report["latency_seconds"][name] for name in ("p50", "p95", "p99")
    }
    values |= {name: v for name, v in report["time"].items() if name in values}
    values["output_tokens"] = report["tokens"]["output"]
    cost = report["cost"]
    if cost is not None:
        values["cost_total"] = cost["total"]
        values["cost_per_1000_records"] = cost["per_1000_records"]
    return values
