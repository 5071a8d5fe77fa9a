"""The least time a workload can take at this machine's rates (`rates.py`).

    vision and prefill   flops / the GEMM rate at the model's own shapes
    decode               for each step, with n answers still running, the longer of: flops of n rows
                         at that rate; weights and keys and values over the bandwidth

The steps are those of the longest answer, and every sequence decodes from the first of them. An
image that several prompts ask about is encoded once, prefilled once, and its keys and values are
read once a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.rates import (
    DECODER_SHAPES,
    HEAD_DIM,
    HEAD_SHAPE,
    HEADS,
    KV_HEADS,
    LAYERS,
    VISION_HIDDEN,
    VISION_LAYERS,
    VISION_SHAPES,
    Rates,
    layer_flops,
)
from benchmarks.request import BenchmarkRequest

KV_BYTES = 2 * LAYERS * KV_HEADS * HEAD_DIM * 2  # of a token, in bfloat16
_TOKEN_FLOPS = LAYERS * layer_flops(DECODER_SHAPES)
_HEAD_FLOPS = layer_flops((HEAD_SHAPE,))
_PAIR_FLOPS = LAYERS * 4 * HEADS * HEAD_DIM  # of a query and a key that it sees


@dataclass(frozen=True, slots=True)
class Floor:
    """Seconds, by part."""

    vision: float
    prefill: float
    decode: float

    @property
    def seconds(self) -> float:
        return self.vision + self.prefill + self.decode


def floor_of(
    requests: Sequence[BenchmarkRequest], num_prompt_tokens: int, num_patches: int, rates: Rates
) -> Floor:
    """Of a workload whose prompts have so many tokens together, num_patches of each an image."""
    num_images = len({request.image for request in requests})
    text = num_prompt_tokens / len(requests) - num_patches  # tokens of a prompt beside its image
    return Floor(
        vision=_vision_flops(num_images, num_patches) / rates.vision_flops,
        prefill=_prefill_flops(num_images, len(requests), num_patches, text) / rates.decoder_flops,
        decode=_decode_seconds(requests, num_patches, text, rates),
    )


def kv_bytes_at_once(
    requests: Sequence[BenchmarkRequest], num_prompt_tokens: int, num_patches: int, max_batch: int
) -> int:
    """Keys and values of the largest requests that run together, shared images counted once."""
    text = num_prompt_tokens / len(requests) - num_patches
    largest = sorted(requests, key=lambda request: -request.num_new_tokens)[:max_batch]
    num_tokens = len({request.image for request in largest}) * num_patches
    return int(KV_BYTES * (num_tokens + sum(text + r.num_new_tokens for r in largest)))


def _vision_flops(num_images: int, num_patches: int) -> float:
    num_tokens = num_patches + 1  # with the class token
    pairs = 4 * num_tokens**2 * VISION_HIDDEN
    return num_images * VISION_LAYERS * (num_tokens * layer_flops(VISION_SHAPES) + pairs)


def _prefill_flops(num_images: int, num_requests: int, num_patches: int, text: float) -> float:
    num_tokens = num_images * num_patches + num_requests * text
    pairs = num_images * num_patches**2 / 2  # a token sees what is before it
    pairs += num_requests * text * (num_patches + text / 2)
    return num_tokens * _TOKEN_FLOPS + pairs * _PAIR_FLOPS + num_requests * _HEAD_FLOPS


def _decode_seconds(
    requests: Sequence[BenchmarkRequest], num_patches: int, text: float, rates: Rates
) -> float:
    seconds = 0.0
    # The first token of an answer is the last of prefill.
    for step in range(1, max(request.num_new_tokens for request in requests)):
        running = [request for request in requests if request.num_new_tokens > step]
        num_own = len(running) * (text + step)
        num_shared = len({request.image for request in running}) * num_patches
        pairs = num_own + len(running) * num_patches
        flops = len(running) * (_TOKEN_FLOPS + _HEAD_FLOPS) + pairs * _PAIR_FLOPS
        num_bytes = rates.weight_bytes + (num_own + num_shared) * KV_BYTES
        seconds += max(flops / rates.decoder_flops, num_bytes / rates.bandwidth)
    return seconds
