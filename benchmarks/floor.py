"""The least time a workload can take on this machine: what is measured here, nothing from a sheet.

    vision and prefill   flops / the GEMM rate at the model's own shapes
    decode               for each step, with n answers still running: the time of the layers' GEMMs
                         at M = n (so weights are counted as often as they are read), and the KV
                         read over the memory bandwidth
The steps are those of the longest answer; every sequence is assumed to decode from the first one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.workload import NUM_PATCHES, BenchmarkRequest

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 1024, 2816, 16, 16, 4, 64, 32_064
VISION_HIDDEN, VISION_INNER, VISION_LAYERS = 384, 1536, 11  # the twelfth is not run
DECODER_SHAPES = (  # (in, out) of a layer's merged GEMMs
    (HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD_DIM),
    (HEADS * HEAD_DIM, HIDDEN),
    (HIDDEN, 2 * INNER),
    (INNER, HIDDEN),
)
VISION_SHAPES = (
    (VISION_HIDDEN, 3 * VISION_HIDDEN),
    (VISION_HIDDEN, VISION_HIDDEN),
    (VISION_HIDDEN, VISION_INNER),
    (VISION_INNER, VISION_HIDDEN),
)


@dataclass(frozen=True, slots=True)
class Floor:
    """Seconds, by part."""

    vision: float
    prefill: float
    decode: float
    gemm_tflops: float
    bandwidth_gbps: float

    @property
    def seconds(self) -> float:
        return self.vision + self.prefill + self.decode


def measure_floor(requests: list[BenchmarkRequest], prompt_tokens: int) -> Floor:
    """Measure this machine's rates and apply them to a workload."""
    images = len(requests)
    vision_rate = _gemm_rate(VISION_SHAPES, 4 * (NUM_PATCHES + 1))
    prefill_rate = _gemm_rate(DECODER_SHAPES, 2048)
    bandwidth = _bandwidth()
    vision_tokens = images * (NUM_PATCHES + 1)
    vision_flops = float(vision_tokens * VISION_LAYERS * _layer_flops(VISION_SHAPES))
    vision_flops += images * VISION_LAYERS * 4 * (NUM_PATCHES + 1) ** 2 * VISION_HIDDEN
    mean_prompt = prompt_tokens / images
    prefill_flops = float(prompt_tokens * LAYERS * _layer_flops(DECODER_SHAPES))
    prefill_flops += prompt_tokens * LAYERS * 2 * mean_prompt * HEADS * HEAD_DIM  # causal: half
    return Floor(
        vision=vision_flops / vision_rate,
        prefill=prefill_flops / prefill_rate,
        decode=_decode_seconds(requests, mean_prompt, bandwidth),
        gemm_tflops=prefill_rate / 1e12,
        bandwidth_gbps=bandwidth / 1e9,
    )


def _decode_seconds(
    requests: list[BenchmarkRequest], mean_prompt: float, bandwidth: float
) -> float:
    lengths = sorted(r.num_new_tokens for r in requests)
    times: dict[int, float] = {}
    seconds = 0.0
    kv_bytes = 2 * LAYERS * KV_HEADS * HEAD_DIM * 2
    for step in range(1, lengths[-1]):
        running = sum(length > step for length in lengths)
        bucket = 1 << (running - 1).bit_length()
        if bucket not in times:
            times[bucket] = _step_seconds(bucket)
        seconds += times[bucket]
        seconds += running * (mean_prompt + step) * kv_bytes / bandwidth
    return seconds


def _step_seconds(rows: int) -> float:
    """All GEMMs of one decode step, weights cold as they are in a model."""
    weights = [
        torch.randn(outputs, inputs).to(torch.bfloat16)
        for _ in range(LAYERS)
        for inputs, outputs in DECODER_SHAPES
    ]
    head = torch.randn(VOCAB, HIDDEN).to(torch.bfloat16)
    inputs = {w.shape[1]: torch.randn(rows, w.shape[1]).to(torch.bfloat16) for w in weights}

    def step() -> None:
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)
        torch.nn.functional.linear(inputs[HIDDEN], head)

    return _median_seconds(step)


def _gemm_rate(shapes: tuple[tuple[int, int], ...], rows: int) -> float:
    weights = [torch.randn(outputs, inputs).to(torch.bfloat16) for inputs, outputs in shapes]
    inputs = {w.shape[1]: torch.randn(rows, w.shape[1]).to(torch.bfloat16) for w in weights}

    def step() -> None:
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)

    return rows * _layer_flops(shapes) / _median_seconds(step)


def _bandwidth() -> float:
    """Bytes a second read from memory, over far more than the caches hold."""
    data = torch.ones(64 << 20, dtype=torch.float32)
    return data.nbytes / _median_seconds(lambda: data.sum())


def _layer_flops(shapes: tuple[tuple[int, int], ...]) -> int:
    return sum(2 * inputs * outputs for inputs, outputs in shapes)


def _median_seconds(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[3]
