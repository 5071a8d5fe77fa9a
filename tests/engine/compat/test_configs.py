"""LMDeploy's configs: their fields and defaults, what they do here, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.engine.inputs.pictures import noise
from vlmflow_engine import (
    ChatTemplateConfig,
    GenerationConfig,
    PytorchEngineConfig,
    SpeculativeConfig,
    TurbomindEngineConfig,
    VisionConfig,
    messages,
    pipeline,
)
from vlmflow_engine.errors import ConfigError, ModelError

SHORT = GenerationConfig(max_new_tokens=5, ignore_eos=True)
IMAGE = noise(96, 96, seed=7)

PYTORCH = {
    "dtype": "auto",
    "tp": 1,
    "dp": 1,
    "dp_rank": 0,
    "ep": 1,
    "session_len": None,
    "max_batch_size": None,
    "attn_tp_size": None,
    "mlp_tp_size": None,
    "moe_tp_size": None,
    "cache_max_entry_count": 0.8,
    "prefill_interval": 16,
    "kernel_block_size": -1,
    "num_cpu_blocks": 0,
    "num_gpu_blocks": 0,
    "adapters": None,
    "cudagraph_capture_batch_sizes": None,
    "thread_safe": False,
    "prefix_cache_state_budget": 0,
    "prefix_cache_decode_state_interval": 0,
    "eager_mode": False,
    "custom_module_map": None,
    "download_dir": None,
    "revision": None,
    "quant_policy": 0,
    "distributed_executor_backend": None,
    "empty_init": False,
    "enable_microbatch": False,
    "enable_eplb": False,
    "enable_mp_engine": False,
    "mp_engine_backend": "mp",
    "model_format": None,
    "enable_metrics": True,
    "hf_overrides": None,
    "language_model_only": False,
    "logprobs_mode": None,
    "enable_return_routed_experts": False,
    "enable_transfer_obj_ref": False,
    "dllm_block_length": None,
    "dllm_unmasking_strategy": "low_confidence_dynamic",
    "dllm_denoising_steps": None,
    "dllm_confidence_threshold": 0.85,
    # Other defaults than LMDeploy's: docs/lmdeploy.md.
    "device_type": "auto",
    "block_size": None,
    "max_prefill_token_num": None,
    "enable_prefix_caching": True,
    "role": None,
    "migration_backend": None,
}

TURBOMIND = {
    "dtype": "auto",
    "model_format": None,
    "tp": 1,
    "dp": 1,
    "cp": 1,
    "ep": 1,
    "device_num": None,
    "attn_tp_size": None,
    "attn_cp_size": None,
    "attn_dp_size": None,
    "mlp_tp_size": None,
    "mlp_dp_size": None,
    "outer_dp_size": None,
    "nnodes": 1,
    "node_rank": 0,
    "dist_init_addr": None,
    "devices": None,
    "session_len": None,
    "max_batch_size": None,
    "cache_max_entry_count": 0.8,
    "cache_chunk_size": -1,
    "cache_block_seq_len": 64,
    "cache_checkpoint_interval": 4096,
    "cache_prompt": "auto",
    "cache_prompt_boundary_skip": 1,
    "cache_generation": "auto",
    "quant_policy": 0,
    "rope_scaling_factor": 0.0,
    "use_logn_attn": False,
    "download_dir": None,
    "revision": None,
    "max_prefill_token_num": 8192,
    "num_tokens_per_iter": 0,
    "max_prefill_iters": 1,
    "async_": 1,
    "empty_init": False,
    "language_model_only": False,
    "communicator": "nccl",
    "hf_overrides": None,
    "enable_metrics": True,
    "enable_prefix_caching": True,  # another default than LMDeploy's
}


@pytest.mark.parametrize(
    ("kind", "name", "default"),
    [(PytorchEngineConfig, name, value) for name, value in PYTORCH.items()]
    + [(TurbomindEngineConfig, name, value) for name, value in TURBOMIND.items()],
)
def test_an_engines_option_is_there_with_its_default(
    kind: type, name: str, default: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config = kind(**{name: default})
    assert getattr(config, name) == default and config == kind()
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("session_len", 700),
        ("max_batch_size", 3),
        ("cache_max_entry_count", 0.25),
        ("cache_max_entry_count", 200),
        ("quant_policy", 8),
        ("quant_policy", 4),
        ("quant_policy", 16),
        ("dtype", "bfloat16"),
        ("max_prefill_token_num", 512),
        ("enable_prefix_caching", False),
        ("language_model_only", True),
        ("download_dir", "/models"),
        ("revision", "main"),
        ("hf_overrides", {"text_config": {"rms_norm_eps": 1e-6}}),
        ("tp", 1),
    ],
)
def test_an_option_of_the_other_engine_is_the_same_option_here(name: str, value: Any) -> None:
    config = TurbomindEngineConfig(**{name: value}).to_pytorch()
    assert getattr(config, name) == value
    assert config.block_size == 64


def test_the_size_of_a_block_has_another_name_in_the_other_engine() -> None:
    assert TurbomindEngineConfig(cache_block_seq_len=128).to_pytorch().block_size == 128


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (PytorchEngineConfig, "prefill_interval", 4),
        (PytorchEngineConfig, "num_cpu_blocks", 10),
        (PytorchEngineConfig, "enable_metrics", False),
        (PytorchEngineConfig, "empty_init", True),
        (PytorchEngineConfig, "cudagraph_capture_batch_sizes", [1, 2]),
        (PytorchEngineConfig, "kernel_block_size", 16),
        (TurbomindEngineConfig, "communicator", "cuda-ipc"),
        (TurbomindEngineConfig, "num_tokens_per_iter", 64),
        (TurbomindEngineConfig, "max_prefill_iters", 4),
        (TurbomindEngineConfig, "cache_generation", "none"),
        (TurbomindEngineConfig, "cache_prompt", "all"),
        (TurbomindEngineConfig, "cache_chunk_size", 5),
        (TurbomindEngineConfig, "async_", 0),
    ],
)
def test_an_option_without_a_meaning_here_is_a_line_in_the_log(
    kind: type, name: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    kind(**{name: value})
    assert f"{name}={value!r} has no effect" in caplog.text


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (PytorchEngineConfig, "max_batch_size", 0),
        (PytorchEngineConfig, "session_len", -1),
        (PytorchEngineConfig, "tp", 0),
        (PytorchEngineConfig, "tp", 2),
        (PytorchEngineConfig, "dp", 2),
        (PytorchEngineConfig, "ep", 2),
        (PytorchEngineConfig, "cache_max_entry_count", 0.0),
        (PytorchEngineConfig, "cache_max_entry_count", 1.5),
        (PytorchEngineConfig, "num_gpu_blocks", -1),
        (PytorchEngineConfig, "dtype", "int3"),
        (PytorchEngineConfig, "device_type", "ascend"),
        (PytorchEngineConfig, "quant_policy", 1),
        (PytorchEngineConfig, "quant_policy", 17),
        (PytorchEngineConfig, "quant_policy", 42),
        (PytorchEngineConfig, "logprobs_mode", "raw"),
        (PytorchEngineConfig, "model_format", "fp8"),
        (PytorchEngineConfig, "distributed_executor_backend", "ray"),
        (PytorchEngineConfig, "custom_module_map", "map.py"),
        (PytorchEngineConfig, "dllm_block_length", 4),
        (PytorchEngineConfig, "enable_eplb", True),
        (PytorchEngineConfig, "enable_return_routed_experts", True),
        (PytorchEngineConfig, "adapters", ["a"]),
        (TurbomindEngineConfig, "max_batch_size", 0),
        (TurbomindEngineConfig, "tp", 0),
        (TurbomindEngineConfig, "tp", 2),
        (TurbomindEngineConfig, "cp", 2),
        (TurbomindEngineConfig, "nnodes", 2),
        (TurbomindEngineConfig, "devices", [0, 1]),
        (TurbomindEngineConfig, "model_format", "awq"),
        (TurbomindEngineConfig, "quant_policy", 17),
        (TurbomindEngineConfig, "rope_scaling_factor", 2.0),
        (TurbomindEngineConfig, "use_logn_attn", True),
        (VisionConfig, "max_batch_size", 0),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_sentence_that_names_it(
    kind: type, name: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        kind(**{name: value})
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 200


def test_a_misspelt_option_is_a_type_error() -> None:
    for kind in (PytorchEngineConfig, TurbomindEngineConfig, VisionConfig, GenerationConfig):
        with pytest.raises(TypeError, match="sesion_len"):
            kind(sesion_len=5)


def test_a_script_for_the_other_engine_runs_as_it_is(tiny_llava: Path) -> None:
    pipe = pipeline(
        str(tiny_llava),
        backend_config=TurbomindEngineConfig(
            session_len=512, max_batch_size=4, cache_max_entry_count=0.1, quant_policy=8
        ),
        chat_template_config=ChatTemplateConfig(model_name="vicuna"),
        log_level="ERROR",
        max_log_len=10,
        model_name="llava",
        vision_config=VisionConfig(max_batch_size=2, thread_safe=True),
    )
    with pipe:
        response = pipe(("describe this image", IMAGE), SHORT)
        assert response.generate_token_len == 5
        info = pipe.info
    assert (info.session_len, info.max_batch_size, info.block_size) == (512, 4, 64)
    assert info.quant_policy == 8


@pytest.mark.parametrize("policy", [0, 8, 4, 16])
def test_keys_and_values_are_stored_as_the_policy_says(policy: int, tiny_llava: Path) -> None:
    config = PytorchEngineConfig(
        dtype="float32",
        device_type="cpu",
        quant_policy=policy,
        num_gpu_blocks=100,
        session_len=512,
        num_preprocess_workers=0,
    )
    with pipeline(str(tiny_llava), backend_config=config) as pipe:
        first, again = (pipe(("how many", IMAGE), SHORT) for _ in range(2))
        assert first.error_code is None and first.token_ids == again.token_ids
        assert pipe.info.quant_policy == policy
        # Of a token: 2 layers, key and value, 2 heads of 16; a scale and a minimum of 2 bytes each,
        # of float8 a scale.
        row_bytes = {0: 16 * 4, 8: 16 + 4, 4: 8 + 4, 16: 16 + 2}[policy]
        assert pipe.info.kv_cache_bytes == 100 * 16 * 2 * 2 * 2 * row_bytes


@pytest.mark.parametrize("is_on", [True, False])
def test_prompts_share_their_beginning_only_if_prefixes_are_cached(
    is_on: bool, tiny_llava: Path
) -> None:
    config = PytorchEngineConfig(
        dtype="float32", device_type="cpu", enable_prefix_caching=is_on, num_preprocess_workers=0
    )
    with pipeline(str(tiny_llava), backend_config=config) as pipe:
        first, again = (pipe(("how many", IMAGE), SHORT) for _ in range(2))
    assert first.cached_tokens == 0
    assert again.cached_tokens == (first.input_token_len // 16 * 16 if is_on else 0)
    assert first.token_ids == again.token_ids


def test_fields_of_config_json_can_be_overridden(tiny_llava: Path) -> None:
    overrides = {"text_config": {"max_position_embeddings": 300}}
    config = PytorchEngineConfig(
        device_type="cpu", hf_overrides=overrides, num_preprocess_workers=0
    )
    with pipeline(str(tiny_llava), backend_config=config) as pipe:
        assert pipe.info.session_len == 300


def test_speculative_decoding_is_refused_before_a_model_is_looked_for() -> None:
    speculative = SpeculativeConfig(method="eagle3", model="draft", num_speculative_tokens=3)
    with pytest.raises(ConfigError, match="speculative_config"):
        pipeline("nowhere", speculative_config=speculative)


def test_remote_code_is_taken_for_granted_and_not_run(
    tiny_llava: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = PytorchEngineConfig(device_type="cpu", num_preprocess_workers=0)
    with pipeline(str(tiny_llava), config, trust_remote_code=True) as pipe:
        assert pipe("red", SHORT).error_code is None
    assert "trust_remote_code" in caplog.text


def test_a_model_that_is_not_there_is_told_by_name() -> None:
    with pytest.raises(ModelError, match="no-such-model"):
        pipeline("/models/no-such-model")


def test_an_option_of_the_front_door_that_nobody_knows_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="backend_confg"):
        pipeline("nowhere", backend_confg=PytorchEngineConfig())


def test_the_module_of_messages_has_the_configs_too() -> None:
    for kind in (PytorchEngineConfig, TurbomindEngineConfig, VisionConfig, SpeculativeConfig):
        assert getattr(messages, kind.__name__) is kind


TEMPLATE_FIELDS = (
    "model_name",
    "model_path",
    "system",
    "meta_instruction",
    "eosys",
    "user",
    "eoh",
    "assistant",
    "eoa",
    "tool",
    "eotool",
    "separator",
    "capability",
    "stop_words",
)


def test_a_chat_template_has_the_fields_of_lmdeploys_and_the_name_comes_first() -> None:
    names = [field.name for field in dataclasses.fields(ChatTemplateConfig)]
    assert sorted(names) == sorted(TEMPLATE_FIELDS) and names[0] == "model_name"
    config = ChatTemplateConfig("vicuna")
    assert all(getattr(config, name) is None for name in TEMPLATE_FIELDS[1:])


def test_a_chat_template_goes_through_json_and_back(tmp_path: Path) -> None:
    config = ChatTemplateConfig(
        "vicuna", meta_instruction="你好", user="U: ", stop_words=["</s>"], capability="chat"
    )
    text = config.to_json(str(tmp_path / "template.json"))
    assert ChatTemplateConfig.from_json(str(tmp_path / "template.json")) == config
    assert ChatTemplateConfig.from_json(text) == config


@pytest.mark.parametrize(
    "fields", [{"capability": "song"}, {"stop_words": "</s>"}, {"user": 5}, {"model_name": ""}]
)
def test_a_chat_template_with_a_wrong_value_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        ChatTemplateConfig(**{"model_name": "vicuna"} | fields)
