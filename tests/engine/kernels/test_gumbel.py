"""Noise, against published random words, the exact logarithm and the distribution it must have."""

import numpy as np
import pytest

from tests.engine.runner.distributions import assert_distributed
from vlmflow_engine.kernels.gumbel import gumbel, gumbel_of_all, philox4x32, to_gumbel


def test_random_words_are_those_that_philox_is_published_with():
    zero = np.zeros(1, np.uint64)
    words = [int(word[0]) for word in philox4x32(zero, zero, zero)]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_random_words_are_those_of_the_definition_in_pythons_whole_numbers():
    def word_of(seed: int, counter: list[int]) -> list[int]:
        key = [seed & 0xFFFFFFFF, seed >> 32]
        for _ in range(10):
            first, second = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
            counter = [
                (second >> 32) ^ counter[1] ^ key[0],
                second & 0xFFFFFFFF,
                (first >> 32) ^ counter[3] ^ key[1],
                first & 0xFFFFFFFF,
            ]
            key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
        return counter

    rng = np.random.default_rng(0)
    seeds = rng.integers(0, 2**64, 200, dtype=np.uint64)
    counters = rng.integers(0, 2**32, (2, 200), dtype=np.uint64)
    words = np.stack(philox4x32(seeds, *counters), axis=1).tolist()
    pairs = zip(seeds.tolist(), *counters.tolist(), strict=True)
    assert words == [word_of(seed, [first, second, 0, 0]) for seed, first, second in pairs]


def test_noise_is_the_double_logarithm_of_a_share():
    rng = np.random.default_rng(0)
    ends = np.arange(2000, dtype=np.uint64)
    words = np.concatenate([ends, 2**32 - 1 - ends, rng.integers(0, 2**32, 10**5, dtype=np.uint64)])
    exact = -np.log(-np.log1p(-(words + 0.5) / 2**32))
    np.testing.assert_allclose(to_gumbel(words), exact, rtol=4e-7, atol=4e-7)
    assert exact.max() > 22.8 and exact.min() < -3.1


def test_noise_of_some_tokens_is_that_of_all_of_them():
    seeds, positions = np.array([3, 2**64 - 1], np.uint64), np.array([1, 70_000], np.uint64)
    for vocab_size in (1, 2, 5, 1000, 32_771):
        ids = np.random.default_rng(vocab_size).integers(0, vocab_size, (2, 50))
        some = gumbel(seeds, positions, ids)
        for row in range(2):
            noise = gumbel_of_all(int(seeds[row]), int(positions[row]), vocab_size)
            assert noise.shape == (vocab_size,)
            assert np.array_equal(some[row], noise[ids[row]])


@pytest.mark.parametrize(
    "place",
    [
        lambda index: (index, 1, 0),
        lambda index: (0, index, 0),
        lambda index: (0, 1, index),
        lambda index: (2**64 - 1 - index, index % 7, 2),
        lambda index: (index, index, index % 3),
    ],
    ids=["seeds", "positions", "tokens", "large_seeds", "all"],
)
def test_noise_is_spread_evenly_along_each_of_its_arguments(place):
    seeds, positions, ids = zip(*map(place, range(20_000)), strict=True)
    noise = gumbel(
        np.array(seeds, np.uint64), np.array(positions, np.uint64), np.array(ids)[:, None]
    )
    shares = np.exp(-np.exp(-noise[:, 0].astype(np.float64)))
    assert_distributed((shares * 50).astype(int).tolist(), [1 / 50] * 50)
    # And a number says nothing about the next: pairs fill the unit square.
    pairs = (shares[::2] * 7).astype(int) * 7 + (shares[1::2] * 7).astype(int)
    assert_distributed(pairs.tolist(), [1 / 49] * 49)


def test_noise_is_that_of_every_machine_and_version():
    bits = gumbel_of_all(2**63 + 11, 10**6, 6).view(np.uint32)
    assert bits.tolist() == [
        0x3FF139E3,
        0x3E1458EC,
        0x3F13FB2B,
        0xBE8F75F2,
        0x3D783618,
        0x4095B102,
    ]
