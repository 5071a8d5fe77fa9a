"""What a step took is shared out to the end: vision, prefill and decode add up to it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmflow_engine.stats import EngineStats, StepStats


def step(prefill: int, decode: int, vision_seconds: float = 0.0) -> StepStats:
    return StepStats(
        num_prefill_tokens=prefill,
        num_decode_tokens=decode,
        num_encoded_images=0,
        num_running=1,
        num_waiting=0,
        num_preempted=0,
        kv_usage=0.0,
        vision_seconds=vision_seconds,
    )


def split(stats: EngineStats) -> tuple[float, float, float]:
    return stats.vision_seconds, stats.prefill_seconds, stats.decode_seconds


def test_mixed_step_is_shared_out_by_tokens_after_vision_is_taken_off():
    stats = EngineStats()
    stats.record(step(30, 10, vision_seconds=1.0), 5.0)
    assert split(stats) == (1.0, 3.0, 1.0)
    stats.record(step(0, 8), 2.0)
    assert split(stats) == (1.0, 3.0, 3.0)


steps = st.tuples(st.integers(0, 99), st.integers(0, 99), st.floats(0, 9), st.floats(0, 9))


@given(taken=st.lists(steps, max_size=20))
def test_parts_are_never_negative_and_add_up_to_the_busy_time(taken):
    stats = EngineStats()
    for prefill, decode, vision_seconds, seconds in taken:
        stats.record(step(prefill, decode, vision_seconds), seconds)
    assert min(split(stats)) >= 0
    assert sum(split(stats)) == pytest.approx(stats.busy_seconds)
