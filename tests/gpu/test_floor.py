"""Floors are what a pencil says: bytes over bandwidth, flops over the rate."""

from dataclasses import replace

import pytest

from benchmarks.gpu.floor import ModelRates, decode_step_floor, prefill_floor, workload_floor
from benchmarks.gpu.shapes import LLAVA, QWEN, SHAPES

# Of one H200, in round numbers.
RATES = ModelRates(decoder_flops=790e12, vision_flops=700e12, copy_bytes=4.3e12)
QWEN_SHAPE = SHAPES[QWEN]


def test_shapes_are_those_of_the_real_models():
    assert QWEN_SHAPE.kv_bytes_per_token == 57_344
    assert SHAPES[LLAVA].kv_bytes_per_token == 524_288
    # 6.5 G parameters in the layers and 0.5 G in the head.
    assert QWEN_SHAPE.layer_bytes == 2 * (28 * 233_046_016 + 152_064 * 3584)


def test_a_small_batch_is_bound_by_the_weights_and_a_large_one_by_its_products():
    weights = QWEN_SHAPE.layer_bytes / RATES.copy_bytes
    assert decode_step_floor(QWEN_SHAPE, RATES, 1, 0) == pytest.approx(weights)
    assert decode_step_floor(QWEN_SHAPE, RATES, 100, 0) == pytest.approx(weights)
    products = 512 * QWEN_SHAPE.layer_bytes / RATES.decoder_flops
    assert products > weights
    assert decode_step_floor(QWEN_SHAPE, RATES, 512, 0) == pytest.approx(products)


def test_keys_and_values_are_read_once_a_step():
    without = decode_step_floor(QWEN_SHAPE, RATES, 64, 0)
    with_context = decode_step_floor(QWEN_SHAPE, RATES, 64, 1500)
    assert with_context - without == pytest.approx(64 * 1500 * 57_344 / 4.3e12)


def test_the_decode_floor_is_that_of_the_table_of_rooflines():
    """7B, batch 64, 1,500 tokens: 4.57 ms were worked out by hand, of 7.6 G weights in all."""
    assert decode_step_floor(QWEN_SHAPE, RATES, 64, 1500) == pytest.approx(4.57e-3, rel=0.03)


def test_steps_are_those_of_the_longest_answer_and_answers_leave_as_they_end():
    shape = replace(QWEN_SHAPE, text=QWEN_SHAPE.text)
    one = workload_floor(shape, RATES, [3], side=336, prompt_tokens=100)
    two = workload_floor(shape, RATES, [3, 2], side=336, prompt_tokens=200)
    steps = [decode_step_floor(shape, RATES, 1, 100 + step) for step in (1, 2)]
    assert one.decode == pytest.approx(sum(steps))
    both = decode_step_floor(shape, RATES, 2, 101) + decode_step_floor(shape, RATES, 1, 102)
    assert two.decode == pytest.approx(both)
    assert two.vision == pytest.approx(2 * one.vision)
    assert two.prefill == pytest.approx(2 * one.prefill)


def test_the_prefill_floor_is_vision_and_prompt():
    floor = workload_floor(QWEN_SHAPE, RATES, [1, 1], side=1024, prompt_tokens=2800)
    assert floor.decode == 0.0
    both = prefill_floor(QWEN_SHAPE, RATES, num_images=2, side=1024, prompt_tokens=2800)
    assert both == pytest.approx(floor.seconds)
    # 21.2 TF for 1,500 tokens of a 7B, and some 2 % of attention.
    assert floor.prefill * RATES.decoder_flops == pytest.approx(2800 / 1500 * 21.6e12, rel=0.1)


def test_tiles_and_patches_are_counted_as_the_processors_make_them():
    llava, qwen = SHAPES[LLAVA], QWEN_SHAPE
    tile = llava.vision_flops(336) / 3
    assert llava.vision_flops(1024) == pytest.approx(5 * tile)
    # 74 x 74 patches; four layers see all of them, 28 a window of 64.
    patches, width = 5476, 1280
    products = 2 * (3 * width**2 + width**2 + 3 * width * 3420)
    pairs = 4 * patches**2 + 28 * patches * 64
    assert qwen.vision_flops(1024) == pytest.approx(32 * patches * products + 4 * pairs * width)
