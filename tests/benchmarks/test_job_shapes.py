"""Throughput is read off a timeline between two shares of the records."""

import pytest

from benchmarks.job_shapes import records_per_second


def timeline(*points: tuple[float, float]) -> dict:
    return {"columns": ["seconds", "records"], "points": [list(point) for point in points]}


def test_filling_up_and_running_dry_do_not_count():
    slow_ends = timeline((10.0, 0.0), (4.0, 20.0), (1.0, 30.0), (1.0, 30.0), (8.0, 20.0))
    assert records_per_second(slow_ends) == pytest.approx(30.0)


def test_marks_within_a_point_are_interpolated():
    assert records_per_second(timeline((5.0, 100.0))) == pytest.approx(20.0)
    halves = timeline((1.0, 40.0), (2.0, 40.0), (1.0, 20.0))
    assert records_per_second(halves) == pytest.approx(60 / 2.5)
