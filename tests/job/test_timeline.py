"""A series stays bounded and loses nothing; many are laid over one axis without gaps."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.job.conftest import Clock
from vlmflow.job.record import Outcome
from vlmflow.job.throughput import Throughput
from vlmflow.job.timeline import COLUMNS, MAX_POINTS, Timeline, WorkingTime, lay_over


def success() -> Outcome:
    return Outcome(0, {"usage": {"prompt_tokens": 10, "completion_tokens": 3}}, num_images=2)


def point(**values: float) -> list[float]:
    return [values.get(name, 0.0) for name in COLUMNS]


def column(timeline: dict, name: str) -> list[float]:
    return [row[COLUMNS.index(name)] for row in timeline["points"]]


@pytest.mark.parametrize("num_samples", [1, 599, 600, 601, 5000])
def test_points_are_bounded_and_their_sums_are_those_of_the_attempt(
    clock: Clock, num_samples: int
) -> None:
    throughput, timeline = Throughput(0, 0, started=clock()), Timeline()
    for number in range(num_samples):
        clock.now += 0.5
        throughput.add(success())
        steps = {"num_steps": 2 * (number + 1), "sum_running": 6 * (number + 1)}
        throughput.add_engine_stats({**steps, "max_batch_size": 4, "num_waiting": 1})
        timeline.sample(throughput, num_fetching=7, num_ready=2)
    clock.now += 0.1
    timeline.sample(throughput, num_fetching=7, num_ready=2, is_last=True)
    written = timeline.as_dict(started=5.0)
    assert 1 < len(written["points"]) <= MAX_POINTS
    widths = column(written, "seconds")[:-1]
    assert max(widths) <= 2 * min(widths), "early and late are told alike"
    seconds = 0.5 * num_samples + 0.1
    for name, total in (
        ("seconds", seconds),
        ("records", num_samples),
        ("images", 2 * num_samples),
        ("running", 6 * num_samples),
        ("places", 8 * num_samples),
        ("fetching", 7 * seconds),
        ("waiting", 3 * seconds),
    ):
        assert sum(column(written, name)) == pytest.approx(total, rel=1e-4), name


def test_sample_that_comes_too_soon_waits_for_the_next(clock: Clock) -> None:
    throughput, timeline = Throughput(0, 0, started=clock()), Timeline()
    for _ in range(10):
        clock.now += 0.1
        timeline.sample(throughput, num_fetching=0, num_ready=0)
    assert column(timeline.as_dict(started=0), "seconds") == pytest.approx([0.5, 0.5])


def test_working_time_joins_what_overlaps_and_leaves_out_what_nobody_did() -> None:
    working = WorkingTime.of([(100, 110), (5, 5), (0, 10), (8, 12)])
    assert working.intervals == ((0, 12), (100, 110))
    assert working.seconds == 22
    assert [working.position(moment) for moment in (-1, 6, 50, 105, 999)] == [0, 6, 12, 17, 22]
    assert working.pauses() == [(12, 88)]


def test_what_workers_did_at_the_same_time_is_added_up() -> None:
    one = {"started": 0.0, "points": [point(seconds=4, records=8, running=3, places=4)]}
    two = {"started": 2.0, "points": [point(seconds=4, records=4, running=1, places=4)]}
    laid = lay_over([one, two], WorkingTime.of([(0, 4), (2, 6)]), max_steps=3)
    assert laid.step_seconds == 2
    assert laid.columns["records"] == pytest.approx([4, 6, 2])
    assert laid.rate("records") == pytest.approx([2, 3, 1])
    assert laid.share("running", "places") == pytest.approx([0.75, 0.5, 0.25])


def test_share_of_nothing_is_none() -> None:
    assert (
        lay_over([], WorkingTime.of([(0, 1)]), max_steps=2).share("running", "places") == [None] * 2
    )


timelines = st.lists(
    st.tuples(
        st.floats(0, 100), st.lists(st.tuples(st.floats(0.01, 9), st.integers(0, 99)), max_size=9)
    ),
    max_size=5,
)


@settings(max_examples=60)
@given(drawn=timelines, max_steps=st.integers(1, 50))
def test_no_record_is_lost_on_the_way_to_the_axis(drawn, max_steps: int) -> None:
    written, intervals, total = [], [], 0
    for started, points in drawn:
        rows = [point(seconds=seconds, records=count) for seconds, count in points]
        written.append({"started": started, "points": rows})
        intervals.append((started, started + sum(row[0] for row in rows)))
        total += sum(count for _, count in points)
    laid = lay_over(written, WorkingTime.of(intervals), max_steps=max_steps)
    assert sum(laid.columns["records"]) == pytest.approx(total)
    assert len(laid.columns["records"]) <= max_steps
