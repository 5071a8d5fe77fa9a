"""What is made of the runs: medians, ratios by pairs, shares of the floor."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.kept_runs import Measurement


@dataclass(frozen=True, slots=True)
class Summary:
    """An engine at a workload."""

    seconds: float
    records_per_second: float
    output_tokens_per_second: float
    peak_rss_bytes: float
    load_seconds: float


def summarise(runs: Sequence[Measurement]) -> Summary:
    """Medians of runs of the same workload. There must be one."""
    seconds = statistics.median(run["seconds"] for run in runs)
    counts = runs[0]["num_output_tokens"]
    return Summary(
        seconds=seconds,
        records_per_second=len(counts) / seconds,
        output_tokens_per_second=sum(counts) / seconds,
        peak_rss_bytes=statistics.median(run["peak_rss_bytes"] for run in runs),
        load_seconds=statistics.median(run["load_seconds"] for run in runs),
    )


def times_as_fast(ours: Sequence[Measurement], theirs: Sequence[Measurement]) -> float:
    """Their seconds by ours: the median of the pairs that ran one after the other."""
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(float(their["seconds"] / our["seconds"]) for our, their in pairs)
