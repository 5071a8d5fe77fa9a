"""The least time an end-to-end workload can take on the device, from rates measured on it.

    vision, prefill   flops over the rate of the model's own products in bfloat16
    decode            for each step, with n answers still running: the weights read once, or n rows
                      multiplied, whichever takes longer; and the keys and values read
Every answer is taken to decode from the first step on, so the steps are those of the longest. Where
the KV cache does not hold all at once there are more, and the floor is lower than it could be.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gpu.rates import gemm_rate
from benchmarks.gpu.shapes import ModelShape
from benchmarks.gpu.timer import Timer

_PREFILL_ROWS, _VISION_ROWS = 4096, 5476  # of a large step; of one image of a megapixel


@dataclass(frozen=True, slots=True)
class ModelRates:
    """A device's rates for one model."""

    decoder_flops: float  # a second, at the decoder's shapes
    vision_flops: float  # a second, at the tower's
    copy_bytes: float  # a second


@dataclass(frozen=True, slots=True)
class Floor:
    """Seconds, by part."""

    vision: float
    prefill: float
    decode: float

    @property
    def seconds(self) -> float:
        return self.vision + self.prefill + self.decode


def measure_model_rates(shape: ModelShape, timer: Timer, copy_bytes: float) -> ModelRates:
    is_rehearsal = timer.device == "cpu"
    return ModelRates(
        decoder_flops=gemm_rate(timer, 64 if is_rehearsal else _PREFILL_ROWS, shape.decoder_gemms),
        vision_flops=gemm_rate(timer, 64 if is_rehearsal else _VISION_ROWS, shape.vision_gemms),
        copy_bytes=copy_bytes,
    )


def workload_floor(
    shape: ModelShape,
    rates: ModelRates,
    lengths: Sequence[int],
    *,
    side: int,
    prompt_tokens: int,
) -> Floor:
    """The floor of requests with one image each.

    lengths        tokens of the answers
    prompt_tokens  of all requests, placeholders of images included
    """
    mean_prompt = prompt_tokens / len(lengths)
    decode = 0.0
    for step in range(1, max(lengths)):  # the first token is the prefill's
        running = sum(length > step for length in lengths)
        decode += decode_step_floor(shape, rates, running, mean_prompt + step)
    return Floor(
        vision=len(lengths) * shape.vision_flops(side) / rates.vision_flops,
        prefill=_prompt_flops(shape, prompt_tokens, mean_prompt) / rates.decoder_flops,
        decode=decode,
    )


def prefill_floor(
    shape: ModelShape, rates: ModelRates, *, num_images: int, side: int, prompt_tokens: int
) -> float:
    """The least seconds until prompts with an image each are stored."""
    flops = _prompt_flops(shape, prompt_tokens, prompt_tokens / num_images)
    vision = num_images * shape.vision_flops(side)
    return vision / rates.vision_flops + flops / rates.decoder_flops


def _prompt_flops(shape: ModelShape, prompt_tokens: int, mean_prompt: float) -> float:
    """Of the decoder's layers over prompts; the head's are few."""
    layers, heads = shape.text["num_hidden_layers"], shape.text["num_attention_heads"]
    products = sum(2 * inputs * outputs for inputs, outputs in shape.decoder_gemms)
    # A token sees half of its prompt, with two products of head_dim a head.
    attention = 2 * mean_prompt * heads * shape.head_dim
    return float(prompt_tokens * layers * (products + attention))


def decode_step_floor(
    shape: ModelShape, rates: ModelRates, batch_size: int, mean_context: float
) -> float:
    """The least seconds of a step that adds a token to each of `batch_size` answers."""
    weights = shape.layer_bytes / rates.copy_bytes
    products = batch_size * shape.layer_bytes / rates.decoder_flops  # 2 flops for 2 bytes of weight
    kv = batch_size * mean_context * shape.kv_bytes_per_token / rates.copy_bytes
    return max(weights, products) + kv
