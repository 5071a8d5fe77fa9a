"""A floor is made of what must be computed and read, and of nothing twice."""

from dataclasses import replace

import pytest

from benchmarks.floor import KV_BYTES, floor_of, kv_bytes_at_once
from benchmarks.rates import Rates
from benchmarks.request import BenchmarkRequest

PATCHES, TEXT = 100, 20
RATES = Rates(
    vision_flops=1e12, decoder_flops=1e12, bandwidth=1e10, weight_bytes=10**8, way="plain"
)


def requests(lengths: list[int], num_images: int | None = None) -> list[BenchmarkRequest]:
    num_images = num_images or len(lengths)
    return [
        BenchmarkRequest(f"{n % num_images}.png", "", length) for n, length in enumerate(lengths)
    ]


def floor(asked: list[BenchmarkRequest], rates: Rates = RATES):
    return floor_of(asked, len(asked) * (PATCHES + TEXT), PATCHES, rates)


def test_the_longest_answer_reads_the_weights_once_a_token_but_for_the_first():
    only_weights = replace(RATES, bandwidth=1.0, weight_bytes=10**9)
    one, more = floor(requests([50]), only_weights), floor(requests([50, 50, 3]), only_weights)
    assert one.decode == pytest.approx(49 * 10**9, rel=0.2)  # and some keys and values
    assert more.decode == pytest.approx(one.decode, rel=0.4)
    assert floor(requests([1, 1])).decode == 0


def test_a_step_takes_as_long_as_its_flops_if_that_is_longer():
    slow = replace(RATES, decoder_flops=1e6)
    assert floor(requests([5, 5]), slow).decode == pytest.approx(
        2 * floor(requests([5]), slow).decode
    )


def test_an_image_asked_about_twice_is_encoded_and_prefilled_once():
    shared, apart = floor(requests([4] * 8, num_images=2)), floor(requests([4] * 8))
    assert apart.vision == pytest.approx(4 * shared.vision)
    assert shared.prefill < 0.5 * apart.prefill
    assert shared.decode < apart.decode


def test_faster_machines_have_lower_floors():
    twice = replace(RATES, vision_flops=2e12, decoder_flops=2e12, bandwidth=2e10)
    asked = requests([9, 30, 4])
    assert floor(asked, twice).seconds == pytest.approx(floor(asked).seconds / 2)


def test_kv_is_that_of_the_largest_requests_that_run_at_once():
    asked = requests([10, 40, 20])
    num_tokens = len(asked) * (PATCHES + TEXT)
    assert kv_bytes_at_once(asked, num_tokens, PATCHES, 1) == KV_BYTES * (PATCHES + TEXT + 40)
    assert kv_bytes_at_once(asked, num_tokens, PATCHES, 8) == KV_BYTES * (num_tokens + 70)
