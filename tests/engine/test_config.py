"""Options are checked where they are made, and a refusal names the option and its value."""

from typing import Any

import pytest

from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import ConfigError
from vlmflow_engine.generation import GenerationConfig

NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", "int4"),
        ("dtype", None),
        ("device_type", "tpu"),
        ("tp", 2),
        ("tp", "1"),
        ("session_len", 0),
        ("session_len", True),
        ("session_len", 1.5),
        ("max_batch_size", 0),
        ("cache_max_entry_count", 0),
        ("cache_max_entry_count", 1.0),
        ("cache_max_entry_count", -3),
        ("cache_max_entry_count", NAN),
        ("cache_max_entry_count", "0.5"),
        ("num_gpu_blocks", -1),
        ("block_size", 0),
        ("block_size", 16.0),
        ("max_prefill_token_num", 0),
        ("encoder_cache_rows", 0),
        ("max_image_pixels", 0),
        ("num_preprocess_workers", -1),
    ],
)
def test_engine_option_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        PytorchEngineConfig(**{name: value})
    assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", "12"),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", NAN),
        ("temperature", "1"),
        ("top_k", -1),
        ("top_k", 1.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("random_seed", "x"),
        ("random_seed", 1.5),
        ("stop_token_ids", 5),
        ("stop_token_ids", ["</s>"]),
        ("stop_words", ["\ud83d"]),
        ("bad_words", ["a", "\udc00b"]),
    ],
)
def test_generation_option_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        GenerationConfig(**{name: value})
    assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"session_len": 1, "max_batch_size": 1, "block_size": 1, "num_gpu_blocks": 0},
        {"session_len": None, "max_batch_size": None},
        {"cache_max_entry_count": 1e-9},
        {"cache_max_entry_count": 1 - 1e-9},
        {"dtype": "bfloat16", "device_type": "cpu"},
    ],
)
def test_engine_option_at_its_limit_is_taken(options: dict[str, Any]) -> None:
    config = PytorchEngineConfig(**options)
    assert {name: getattr(config, name) for name in options} == options


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 1, "temperature": 0, "top_k": 0, "top_p": 0, "min_p": 0},
        {"max_new_tokens": None, "temperature": 2, "top_p": 1, "min_p": 1.0},
        {"random_seed": 0},
        {"random_seed": 2**64 - 1},
    ],
)
def test_generation_option_at_its_limit_is_taken(options: dict[str, Any]) -> None:
    config = GenerationConfig(**options)
    assert {name: getattr(config, name) for name in options} == options


@pytest.mark.parametrize(
    ("options", "is_greedy"),
    [
        ({}, True),
        ({"temperature": 1.5, "top_k": 5}, True),
        ({"do_sample": True}, False),
        ({"do_sample": True, "temperature": 0}, True),
        ({"do_sample": True, "top_k": 1}, True),
        ({"do_sample": True, "top_k": 0}, False),
        ({"do_sample": True, "top_p": 0.0}, False),
    ],
)
def test_likeliest_token_is_taken_unless_sampling_has_a_choice(
    options: dict[str, Any], is_greedy: bool
) -> None:
    assert GenerationConfig(**options).is_greedy is is_greedy


@pytest.mark.parametrize("kind", [PytorchEngineConfig, GenerationConfig])
def test_option_by_position_or_misspelt_is_refused(kind: type) -> None:
    with pytest.raises(TypeError):
        kind(1)
    with pytest.raises(TypeError, match="max_new_token_num"):
        kind(max_new_token_num=1)


def test_a_wish_for_thread_safety_is_met_as_it_is(caplog):
    assert PytorchEngineConfig(thread_safe=True).thread_safe
    assert caplog.text == ""
