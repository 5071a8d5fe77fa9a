"""Gumbel noise of a token: a function of (seed, position, token id), the same on every device.

A token is drawn as argmax(logit / temperature + noise) over the tokens that may be drawn. That
takes no sum over them, so neither their order nor the batch plays a part.

    words  = philox4x32-10(key = seed, counter = (token id // 4, position, 0, 0))
    w      = (words[token id % 4] + 1/2) / 2**32                 in (0, 1]
    noise  = -log(-log(1 - w))                                    float32, -3.2 to 22.9

Small w, of which the largest noise is made, and 1 - w keep all their digits. The logarithm is our
own, of additions and multiplications that are rounded one by one: libraries and devices differ in
their last digit, and a draw would with them. kernels/gumbel_noise.py has the same in Triton.
"""

import numpy as np
from numpy.typing import NDArray

MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
KEY_STEP_0, KEY_STEP_1 = 0x9E3779B9, 0xBB67AE85
NUM_ROUNDS = 10
_LOW = 0xFFFFFFFF

# log(1 + f) = f + f * f * polynomial(f), from the square root of 1/2 to that of 2; off by less
# than 1.4e-7 of itself. From the constant to f ** 7.
POLYNOMIAL = (
    -0.49999994,
    0.333336592,
    -0.250016093,
    0.199731052,
    -0.165750474,
    0.148064598,
    -0.142577946,
    0.0900420249,
)
LOG_2 = 0.693147182
ROOT_BITS = 0x3F3504F3  # of the square root of 1/2 in float32
# Where 1 - w is above that root, log(1 - w) is taken of w itself.
SMALL = 0.2928932
_CHUNK = 1 << 13  # numbers whose intermediate results stay in a core's cache


def philox4x32(
    seed: NDArray[np.uint64], counter_0: NDArray[np.uint64], counter_1: NDArray[np.uint64]
) -> list[NDArray[np.uint64]]:
    """Return four random words below 2**32 for each counter (counter_0, counter_1, 0, 0).

    All of the same shape, or broadcast to one; counters below 2**32.
    """
    key_0, key_1 = seed & _LOW, seed >> 32
    c0, c1 = np.broadcast_arrays(counter_0, counter_1)
    c2 = c3 = np.zeros_like(c0)
    for _ in range(NUM_ROUNDS):
        product_0, product_1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0 = product_1 >> 32
        c0 = np.bitwise_xor(np.bitwise_xor(c0, c1, out=c0), key_0, out=c0)
        c2 = product_0 >> 32
        c2 = np.bitwise_xor(np.bitwise_xor(c2, c3, out=c2), key_1, out=c2)
        c1 = np.bitwise_and(product_1, _LOW, out=product_1)
        c3 = np.bitwise_and(product_0, _LOW, out=product_0)
        key_0, key_1 = (key_0 + KEY_STEP_0) & _LOW, (key_1 + KEY_STEP_1) & _LOW
    return [c0, c1, c2, c3]


def gumbel(
    seeds: NDArray[np.uint64], positions: NDArray[np.uint64], token_ids: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the noise of some tokens of each row.

    seeds, positions  [num_rows]; positions below 2**32
    token_ids         [num_rows, count]
    """
    ids = token_ids.astype(np.uint64)
    words = philox4x32(seeds[:, None], ids // np.uint64(4), positions[:, None])
    chosen = ids & 3
    for index in (0, 1, 2):
        np.copyto(words[3], words[index], where=chosen == index)
    return to_gumbel(words[3])


def gumbel_of_all(seed: int, position: int, vocab_size: int) -> NDArray[np.float32]:
    """Return the noise of a row's whole vocabulary, at a quarter of the cost a token."""
    noise = np.empty((vocab_size + 3) // 4 * 4, dtype=np.float32)
    key, place = np.uint64(seed), np.uint64(position)
    for start in range(0, len(noise), _CHUNK):
        part = noise[start : start + _CHUNK]
        counters = np.arange(start // 4, (start + len(part)) // 4, dtype=np.uint64)
        words = philox4x32(np.full(1, key), counters, np.full(1, place))
        part.reshape(-1, 4)[:] = to_gumbel(np.stack(words, axis=1))
    return noise[:vocab_size]


def to_gumbel(words: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Turn random words below 2**32 into noise."""
    w, rest = _share(words), _share(np.uint64(_LOW) - words)
    exponents = _exponents(rest)
    f = _mantissas(rest, exponents)
    f -= 1
    is_small = w < np.float32(SMALL)
    np.copyto(f, -w, where=is_small)
    np.copyto(exponents, 0, where=is_small)
    waited = -_log1p(f, exponents)  # exponentially distributed
    exponents = _exponents(waited)
    f = _mantissas(waited, exponents)
    f -= 1
    return -_log1p(f, exponents)


def _share(words: NDArray[np.uint64]) -> NDArray[np.float32]:
    share = words.astype(np.float32)
    share += np.float32(0.5)
    share *= np.float32(2.0**-32)
    return share


def _exponents(x: NDArray[np.float32]) -> NDArray[np.int32]:
    """The power of two that brings x nearest to 1."""
    exponents: NDArray[np.int32] = x.view(np.int32) - ROOT_BITS
    exponents >>= 23
    return exponents


def _mantissas(x: NDArray[np.float32], exponents: NDArray[np.int32]) -> NDArray[np.float32]:
    bits: NDArray[np.int32] = x.view(np.int32) - (exponents << 23)
    return bits.view(np.float32)


def _log1p(f: NDArray[np.float32], exponents: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return log((1 + f) * 2**exponents)."""
    result = f * np.float32(POLYNOMIAL[-1])
    for coefficient in POLYNOMIAL[-2:0:-1]:
        result += np.float32(coefficient)
        result *= f
    result += np.float32(POLYNOMIAL[0])
    result *= f * f
    result += f
    scaled = exponents.astype(np.float32)
    scaled *= np.float32(LOG_2)
    result += scaled
    return result
