"""adapter_config.json names layers, ranks and scalings as PEFT does, and nothing beyond LoRA."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.adapter_config import AdapterConfig, parse_adapter_config

PATH = Path("adapter_config.json")
PREFIXES = ("model.language_model.layers", "model.vision_tower.encoder.layers", "h.1.blocks")
MODULES = [
    f"{prefix}.{index}.{name}"
    for prefix in PREFIXES
    for index in (0, 1, 11)
    for name in ("self_attn.q_proj", "self_attn.out_proj", "mlp.up_proj", "mlp.proj")
] + ["model.multi_modal_projector.linear_1", "lm_head", "q_proj"]


def parse(**fields: Any) -> AdapterConfig:
    fields = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]} | fields
    return parse_adapter_config(PATH, json.dumps(fields).encode())


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj", "up_proj"]},
        {"target_modules": ["proj", "lm_head"]},
        {"target_modules": ["model.language_model.layers.1.mlp.up_proj"]},
        {"target_modules": r".*language_model.*\.(q|up)_proj"},
        {"target_modules": r"q_proj"},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["mlp.up_proj"]},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*vision_tower.*"},
        {"target_modules": ["q_proj", "proj"], "layers_to_transform": [1, 11]},
        {"target_modules": ["q_proj"], "layers_to_transform": 0},
        {"target_modules": ["q_proj"], "layers_to_transform": []},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "blocks"},
        {
            "target_modules": ["q_proj"],
            "layers_to_transform": [1],
            "layers_pattern": ["blocks", "language_model.layers"],
        },
    ],
    ids=str,
)
def test_targets_are_those_of_peft(fields):
    config, theirs = parse(**fields), LoraConfig(**fields)
    expected = [name for name in MODULES if check_target_module_exists(theirs, name)]
    assert [name for name in MODULES if config.is_target(name)] == expected
    assert 0 < len(expected) < len(MODULES)


@pytest.mark.parametrize(
    "patterns",
    [
        {},
        {"q_proj": 2},
        {"layers.1.mlp.up_proj": 2, "up_proj": 3},
        {"up_proj": 3, "layers.1.mlp.up_proj": 2},
        {r"language_model\..*": 5},
        {r"^model\.language_model\.layers\.\d\.mlp\.up_proj": 6},
        {"model.language_model": 7},  # not the end of any name
    ],
    ids=str,
)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_ranks_and_scalings_are_those_of_peft(patterns, use_rslora):
    alphas = {name: 2.5 * value for name, value in patterns.items()}
    config = parse(rank_pattern=patterns, alpha_pattern=alphas, use_rslora=use_rslora)
    for name in MODULES:
        rank = patterns.get(get_pattern_key(patterns.keys(), name), 8)
        alpha = alphas.get(get_pattern_key(alphas.keys(), name), 16)
        assert config.rank_of(name) == rank
        assert config.scaling_of(name) == alpha / (rank**0.5 if use_rslora else rank)


def test_all_fields_that_peft_writes_are_known(caplog):
    fields = LoraConfig(target_modules=["q_proj"]).to_dict()
    fields["target_modules"] = sorted(fields["target_modules"])
    assert parse(**fields).rank == 8
    assert caplog.text == ""


def test_a_field_that_is_not_known_is_named_in_the_log(caplog):
    parse(use_tomorrows_trick=True)
    assert "use_tomorrows_trick=True is not known" in caplog.text


@pytest.mark.parametrize("value", [True, False, "gaussian", "eva", "orthogonal"])
def test_ways_to_begin_that_leave_the_base_model_alone_are_taken(value):
    assert parse(init_lora_weights=value).rank == 8


@pytest.mark.parametrize(
    "field, value",
    [
        ("bias", "all"),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("use_dora", True),
        ("modules_to_save", ["lm_head"]),
        ("fan_in_fan_out", True),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "loftq"),
        ("trainable_token_indices", [1, 2]),
        ("target_parameters", ["feed_forward.experts"]),
        ("layer_replication", [[0, 4], [2, 5]]),
        ("megatron_config", {"a": 1}),
        ("alora_invocation_tokens", [1]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {"top_k": 2}),
        ("kasa_config", {"a": 1}),
        ("monteclora_config", {"a": 1}),
    ],
)
def test_what_is_more_than_lora_is_refused_by_name(field, value):
    with pytest.raises(ModelError, match=rf"^adapter_config.json: {field}=.* is not supported: "):
        parse(**{field: value})


@pytest.mark.parametrize("kind", ["IA3", "LOHA", "PROMPT_TUNING", "ADALORA", None])
def test_other_kinds_of_adapters_are_refused(kind):
    with pytest.raises(ModelError, match=f"peft_type={kind!r} is not supported: only 'LORA' is"):
        parse(peft_type=kind)


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"r": 0}, "r must be a whole number of at least 1, got 0"),
        ({"r": "8"}, "r must be a whole number of at least 1, got '8'"),
        ({"r": None}, "r must be a whole number"),
        ({"lora_alpha": None}, "lora_alpha must be a number, got None"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a number, got nan"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern must be a whole number"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern must be an object"),
        ({"alpha_pattern": {"q_proj": True}}, "alpha_pattern must be a number, got True"),
        ({"rank_pattern": {"(": 1}}, "unterminated subpattern"),
        ({"target_modules": "("}, "unterminated subpattern"),
        ({"target_modules": 3}, "target_modules must be a regular expression or a list of names"),
        ({"layers_pattern": "("}, "unterminated subpattern"),
        ({"layers_to_transform": 1.5}, "not iterable"),
    ],
    ids=str,
)
def test_a_config_that_peft_would_not_have_written_is_refused(fields, reason):
    with pytest.raises(ModelError, match=f"not a config of PEFT's LoRA: .*{reason}"):
        parse(**fields)


@pytest.mark.parametrize("raw, reason", [(b"{", "not valid JSON"), (b"[]", "but a list")])
def test_what_is_not_a_json_object_is_refused(raw, reason):
    with pytest.raises(ModelError, match=reason):
        parse_adapter_config(PATH, raw)
