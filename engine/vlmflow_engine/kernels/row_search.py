"""What a program asks of the tokens that are listed for its row: sums, and the n-th of an order.

Tokens come as groups of neighbours, listed by number. Keys are those of kernels/sort_key.py.
"""

import triton
import triton.language as tl

from vlmflow_engine.kernels.sort_key import LOWEST, sort_key

UNIT = tl.constexpr(2.0**62)  # of probabilities as whole numbers
EVERY_ID = tl.constexpr(0x7FFFFFFF)  # no id is higher
_LOWEST = tl.constexpr(LOWEST)


@triton.jit
def _tile_of(
    logits_ptr, listed_ptr, start, num_listed, vocab_size, GROUP: tl.constexpr, TILE: tl.constexpr
):
    """Logits and ids of a tile of listed groups; -inf and no id behind the last one."""
    index = start + tl.arange(0, TILE)
    is_listed = index < num_listed * GROUP
    tokens = tl.load(listed_ptr + index // GROUP, mask=is_listed, other=0) * GROUP + index % GROUP
    is_token = is_listed & (tokens < vocab_size)
    x = tl.load(logits_ptr + tokens, mask=is_token, other=float("-inf"))
    return x, tokens, is_token


@triton.jit
def _is_kept(keys, tokens, last_key, last_id):
    return (keys > last_key) | ((keys == last_key) & (tokens <= last_id))


@triton.jit
def heated(x, largest, temperature):
    """Logits over the temperature, seen from the largest; no temperature is too small."""
    temperatures = tl.zeros_like(x) + temperature
    return tl.where(x == largest, 0.0, tl.div_rn(x - largest, temperatures))


@triton.jit
def weights_of(x, largest, temperature, total):
    """Probabilities in units of 2**-62."""
    shares = tl.exp(heated(x, largest, temperature))
    return (tl.div_rn(shares, tl.zeros_like(x) + total) * UNIT).to(tl.int64)


@triton.jit
def total_share(
    logits_ptr, listed_ptr, num_listed, vocab_size, largest, temperature, last_key, last_id,
    GROUP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The sum over kept tokens of how likely each is beside the likeliest."""
    total = tl.full([], 0.0, tl.float64)
    for start in range(0, num_listed * GROUP, TILE):
        x, tokens, is_token = _tile_of(
            logits_ptr, listed_ptr, start, num_listed, vocab_size, GROUP, TILE
        )
        is_counted = is_token & _is_kept(sort_key(x), tokens, last_key, last_id)
        shares = tl.where(is_counted, tl.exp(heated(x, largest, temperature)), 0.0)
        total += tl.sum(shares).to(tl.float64)
    return total.to(tl.float32)


@triton.jit
def find_last_key(
    logits_ptr, listed_ptr, num_listed, vocab_size, low, high, limit,
    largest, temperature, total, last_key, last_id,
    IS_WEIGHED: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr, NUM_PIVOTS: tl.constexpr,
):  # fmt: skip
    """The largest key such that the kept tokens with this or a larger one weigh above the limit.

    It is in [low, high). Returns it, and what the tokens with larger keys weigh. All int64.
    """
    above = tl.full([], 0, tl.int64)
    steps = tl.arange(0, NUM_PIVOTS).to(tl.int64) + 1
    while high - low > 1:
        pivots = low + (high - low) * steps // (NUM_PIVOTS + 1)
        sums = tl.zeros([NUM_PIVOTS], dtype=tl.int64)
        for start in range(0, num_listed * GROUP, TILE):
            x, tokens, is_token = _tile_of(
                logits_ptr, listed_ptr, start, num_listed, vocab_size, GROUP, TILE
            )
            keys = sort_key(x)
            is_counted = is_token & _is_kept(keys, tokens, last_key, last_id)
            if IS_WEIGHED:
                weights = tl.where(is_counted, weights_of(x, largest, temperature, total), 0)
            else:
                weights = is_counted.to(tl.int64)
            is_above = keys[None, :] >= pivots.to(tl.int32)[:, None]
            sums += tl.sum(tl.where(is_above, weights[None, :], 0), axis=1)
        is_over = sums > limit
        above = tl.max(tl.where(is_over, above, sums))
        low = tl.max(tl.where(is_over, pivots, low))
        high = tl.min(tl.where(is_over, high, pivots))
    return low, above


@triton.jit
def find_nth_id(
    logits_ptr, listed_ptr, num_listed, vocab_size, key, count,
    GROUP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The id of the count-th token with this key; groups are listed by id."""
    found = tl.full([], -1, tl.int32)
    before = tl.full([], 0, tl.int32)
    for start in range(0, num_listed * GROUP, TILE):
        x, tokens, is_token = _tile_of(
            logits_ptr, listed_ptr, start, num_listed, vocab_size, GROUP, TILE
        )
        is_equal = (is_token & (sort_key(x) == key)).to(tl.int32)
        is_it = (is_equal != 0) & (before + tl.cumsum(is_equal, 0) == count)
        found = tl.maximum(found, tl.max(tl.where(is_it, tokens, -1)))
        before += tl.sum(is_equal)
    return tl.where(found < 0, EVERY_ID, found)


@triton.jit
def find_kth_maximum(
    maxima_ptr, num_groups, k, high, MAXIMA: tl.constexpr, NUM_PIVOTS: tl.constexpr
):
    low = tl.full([], _LOWEST, tl.int64)
    steps = tl.arange(0, NUM_PIVOTS).to(tl.int64) + 1
    while high - low > 1:
        pivots = low + (high - low) * steps // (NUM_PIVOTS + 1)
        counts = tl.zeros([NUM_PIVOTS], dtype=tl.int32)
        for start in range(0, num_groups, MAXIMA):
            groups = start + tl.arange(0, MAXIMA)
            maxima = tl.load(maxima_ptr + groups, mask=groups < num_groups, other=_LOWEST)
            is_above = maxima[None, :] >= pivots.to(tl.int32)[:, None]
            counts += tl.sum(is_above.to(tl.int32), axis=1)
        low = tl.max(tl.where(counts >= k, pivots, low))
        high = tl.min(tl.where(counts >= k, high, pivots))
    return low
