"""Rates and counts of an attempt, over restarts of its engine."""

import json

import pytest

from tests.job.conftest import Clock
from vlmflow.job.record import Failure, Outcome
from vlmflow.job.throughput import Throughput


@pytest.fixture
def throughput(clock: Clock) -> Throughput:
    return Throughput(num_before=10, num_failed_before=2, started=clock())


def success(num_images: int = 2) -> Outcome:
    usage = {"prompt_tokens": 10, "completion_tokens": 3}
    return Outcome(0, {"usage": usage}, num_images=num_images)


def failure(name: str = "image_corrupt") -> Outcome:
    return Outcome(0, {}, failure=Failure("decode", name, "broken"))


def stats(num_steps: float, **more: float) -> dict[str, float]:
    return {"num_steps": num_steps, "max_batch_size": 4, "kv_usage": 0.5} | more


def test_finished_records_are_counted_by_what_became_of_them(throughput: Throughput) -> None:
    for outcome in (success(), failure(), success(1), failure("engine_died"), failure()):
        throughput.add(outcome)
    assert (throughput.num_succeeded, throughput.num_failed) == (2, 3)
    assert (throughput.num_finished, throughput.num_done) == (5, 15)
    assert throughput.failures == {"image_corrupt": 2, "engine_died": 1}
    assert (throughput.num_images, throughput.prompt_tokens) == (3, 20)
    assert throughput.output_tokens == 6


def test_rate_is_over_the_time_from_the_first_result_to_the_last(
    throughput: Throughput, clock: Clock
) -> None:
    for seconds in (30.0, 0.5, 0.5):  # a model is slow to begin
        assert throughput.records_per_second == 0.0 or seconds == 0.5
        clock.now += seconds
        throughput.add(success())
    clock.now += 100
    assert throughput.records_per_second == 2.0
    assert (throughput.first_result_seconds, throughput.last_result_seconds) == (30.0, 31.0)


def test_failures_before_the_first_result_do_not_raise_the_rate(
    throughput: Throughput, clock: Clock
) -> None:
    for _ in range(100):  # missing images fail at once
        throughput.add(failure())
    clock.now += 30
    throughput.add(success())
    clock.now += 1
    throughput.add(success())
    assert throughput.records_per_second <= 101 / 31


def test_metrics_are_rates_since_the_last_call(throughput: Throughput, clock: Clock) -> None:
    clock.now += 2
    throughput.add(success())
    throughput.add(success())
    first = throughput.metrics()
    assert first["records_per_second"] == 1.0
    assert first["images_per_second"] == 2.0
    assert first["prompt_tokens_per_second"] == 10.0
    assert first["output_tokens_per_second"] == 3.0
    clock.now += 4
    throughput.add(success())
    throughput.add(failure())
    second = throughput.metrics()
    assert second["records_per_second"] == 0.5
    assert second["images_per_second"] == 0.5
    assert second["failed_total"] == 1.0
    clock.now += 1
    assert throughput.metrics()["records_per_second"] == 0.0


def test_occupancy_is_that_of_the_steps_since_the_last_call(
    throughput: Throughput, clock: Clock
) -> None:
    throughput.add_engine_stats(stats(10, sum_running=40))
    clock.now += 1
    assert throughput.metrics()["batch_occupancy"] == 1.0
    throughput.add_engine_stats(stats(20, sum_running=60, kv_usage=0.25))
    clock.now += 1
    metrics = throughput.metrics()
    assert (metrics["batch_occupancy"], metrics["kv_usage"]) == (0.5, 0.25)


def test_metrics_before_the_engine_says_anything_are_zeros(throughput: Throughput) -> None:
    assert set(throughput.metrics().values()) == {0.0}


def test_totals_go_on_over_restarts_and_gauges_do_not(throughput: Throughput) -> None:
    throughput.engine_restarted()  # it died before it said anything
    throughput.add_engine_stats(stats(10, num_running=4))
    throughput.engine_restarted()
    throughput.engine_restarted()  # and twice in a row
    throughput.add_engine_stats(stats(5, num_running=1))
    throughput.add_engine_stats(stats(7, num_running=2))
    assert throughput.engine == {
        "num_steps": 17,
        "num_running": 2,
        "max_batch_size": 4,
        "kv_usage": 0.5,
    }


def test_occupancy_after_a_restart_is_that_of_the_new_engine(
    throughput: Throughput, clock: Clock
) -> None:
    throughput.add_engine_stats(stats(10, sum_running=40))
    clock.now += 1
    throughput.metrics()
    throughput.engine_restarted()
    throughput.add_engine_stats(stats(1, sum_running=1))
    clock.now += 1
    assert throughput.metrics()["batch_occupancy"] == 0.25


def test_hit_rates_are_shares_of_what_was_looked_up(throughput: Throughput) -> None:
    assert throughput.hit_rates() == {"prefix_hit_rate": 0.0, "encoder_hit_rate": 0.0}
    throughput.add_engine_stats(
        stats(
            1,
            prefix_hit_tokens=25,
            prefix_query_tokens=100,
            encoder_hits=0,
            encoder_queries=0,
        )
    )
    assert throughput.hit_rates() == {"prefix_hit_rate": 0.25, "encoder_hit_rate": 0.0}


def test_attempts_page_in_the_report_is_json(throughput: Throughput, clock: Clock) -> None:
    clock.now += 1.23456
    throughput.add(success())
    throughput.add(failure())
    content = json.loads(json.dumps(throughput.as_dict(), allow_nan=False))
    assert content["seconds"] == 1.235
    assert (content["done"], content["succeeded"], content["failed"]) == (12, 1, 1)
    assert content["failures"] == {"image_corrupt": 1}
