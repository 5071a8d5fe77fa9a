"""Device time adds up, time on the clock does not, and its parts are all of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.job.attempts import attempt
from vlmflow.job.spent import PARTS, cache_report, cost_report, time_report


def test_four_workers_at_the_same_time_cost_four_devices_and_one_hour():
    report = time_report([attempt(0, 3600) for _ in range(4)], 1000)
    assert report["wall_seconds"] == 3600
    assert report["device_seconds"] == report["device_seconds_per_1000_records"] == 4 * 3600


def test_a_night_between_two_attempts_is_nobodys_time():
    report = time_report([attempt(0, 10), attempt(50_000, 20)], 1)
    assert report["wall_seconds"] == report["device_seconds"] == 30


def test_start_up_is_device_time():
    report = time_report([attempt(0, 10, startup_seconds=5.0)], 1)
    assert (report["wall_seconds"], report["device_seconds"]) == (15, 15)
    assert report["parts"]["startup"] == 5


def test_each_second_goes_where_it_was_spent():
    waited = {"engine": 6.0, "images": 1.0, "store": 0.5, "restart": 0.25, "other": 0.25}
    engine = {
        "preprocess_wait_seconds": 1.0,
        "vision_seconds": 1.5,
        "prefill_seconds": 2.0,
        "decode_seconds": 1.0,
    }
    report = time_report(
        [attempt(0, 8, startup_seconds=2.0, activity_seconds=waited, engine=engine)], 1
    )
    assert report["parts"] == {
        "startup": 2.0,
        "images": 1.0,
        "preprocessing": 1.0,
        "vision": 1.5,
        "prefill": 2.0,
        "decode": 1.0,
        "store": 0.5,
        "restart": 0.25,
        "other": 0.75,
    }


seconds = st.floats(0, 1e4)


@given(
    engine_seconds=st.lists(seconds, min_size=4, max_size=4),
    waits=st.lists(seconds, min_size=5, max_size=5),
    startup=seconds,
)
def test_parts_are_all_of_the_device_time_whatever_the_engine_says(engine_seconds, waits, startup):
    names = ("preprocess_wait", "vision", "prefill", "decode")
    engine = {f"{n}_seconds": s for n, s in zip(names, engine_seconds, strict=True)}
    activities = ("engine", "images", "store", "restart", "other")
    one = attempt(
        0,
        sum(waits),
        startup_seconds=startup,
        engine=engine,
        activity_seconds=dict(zip(activities, waits, strict=True)),
    )
    report = time_report([one], 1)
    assert set(report["parts"]) == set(PARTS)
    assert min(report["parts"].values()) >= 0
    assert sum(report["parts"].values()) == pytest.approx(report["device_seconds"], abs=0.01)


def test_cost_is_the_devices_hours_times_the_price():
    assert cost_report(3.0, 7200, 4000) == {
        "price_per_hour": 3.0,
        "total": 6.0,
        "per_1000_records": 1.5,
    }
    assert cost_report(None, 7200, 4000) is None
    assert cost_report(3.0, 7200, 0) == {
        "price_per_hour": 3.0,
        "total": 6.0,
        "per_1000_records": None,
    }


def test_caches_are_summed_over_attempts():
    engine = {
        "prefix_query_tokens": 100,
        "prefix_hit_tokens": 25,
        "encoder_queries": 4,
        "encoder_hits": 1,
    }
    report = cache_report([attempt(0, 1, engine=engine), attempt(1, 1, engine=engine)])
    assert (report["prefix_hit_tokens"], report["prefix_query_tokens"]) == (50, 200)
    assert (report["prefix_hit_rate"], report["encoder_hit_rate"]) == (0.25, 0.25)
    assert cache_report([])["prefix_hit_rate"] is None
