"""Medians and ratios are those of the runs."""

import pytest

from benchmarks.cpu_summary import summarise, times_as_fast


def runs(*seconds: float) -> list[dict]:
    return [
        {
            "seconds": value,
            "num_output_tokens": [4, 6],
            "peak_rss_bytes": 100,
            "load_seconds": 1.0,
        }
        for value in seconds
    ]


def test_rates_are_by_the_median_run():
    summary = summarise(runs(10.0, 2.0, 4.0))
    assert summary.seconds == 4.0
    assert summary.records_per_second == 0.5
    assert summary.output_tokens_per_second == 2.5


def test_a_ratio_is_the_median_of_the_pairs_not_the_ratio_of_the_medians():
    # A neighbour held up the machine during the first pair, and half of the second.
    ours, theirs = runs(10.0, 1.0, 2.0), runs(30.0, 8.0, 6.0)
    assert times_as_fast(ours, theirs) == 3.0


def test_runs_without_a_pair_are_an_error():
    with pytest.raises(ValueError, match="shorter"):
        times_as_fast(runs(1.0, 2.0), runs(1.0))
