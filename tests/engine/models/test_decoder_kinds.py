"""Llama's relatives over a paged cache, against transformers, prompts cut into steps or not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    MistralConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from tests.tiny_llava import CPU, compute_logits, randomise
from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.decoder import Decoder, check_kind
from vlmflow_engine.models.weights import Checkpoint

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS: dict[str, tuple[type, dict[str, Any]]] = {
    "mistral": (MistralConfig, {"sliding_window": None}),
    "mistral with a window": (MistralConfig, {"sliding_window": 20}),
    "mistral with a window of one token": (MistralConfig, {"sliding_window": 1}),
    "phi3": (Phi3Config, {"sliding_window": None}),
    "phi3 with a window": (Phi3Config, {"sliding_window": 33}),
    "qwen2": (Qwen2Config, {}),
    "qwen2 tied": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2, its window unused": (Qwen2Config, {"sliding_window": 8, "use_sliding_window": False}),
    "qwen2, a window in its later layers": (
        Qwen2Config,
        {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3Config, {"head_dim": 24}),
    "qwen3 with biases": (Qwen3Config, {"head_dim": 16, "attention_bias": True}),
}
STEPS = {
    "at once": None,
    "in chunks": [[(1, 16)]] * 5 + [[(0, 7), (1, 16)], [(0, 10), (1, 35)]],
    "token by token": [[(0, 1), (1, 1)]] * 17 + [[(1, 1)]] * 40 + [[(1, 74)]],
}


def make_model(name: str, **overrides: Any) -> PreTrainedModel:
    kind, fields = KINDS[name]
    model = AutoModelForCausalLM.from_config(kind(**SIZES | fields | overrides)).eval()
    randomise(model, seed=1)
    return model


def load_decoder(folder: Path) -> Decoder:
    weights = Checkpoint(folder, ((r"model\.", "text."),), dtype=torch.float32, device=CPU)
    config = AutoConfig.from_pretrained(folder)
    check_kind(config)
    decoder = Decoder(config, weights, dtype=torch.float32, device=CPU)
    weights.check_used()
    return decoder


@pytest.fixture(scope="module")
def prompts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(SIZES["vocab_size"], (n,), generator=generator) for n in (17, 131)]


@pytest.mark.parametrize("name", KINDS)
@torch.inference_mode()
def test_logits_are_those_of_transformers(name, prompts, tmp_path):
    model = make_model(name)
    model.save_pretrained(tmp_path)
    expected = [model(prompt[None]).logits[0] for prompt in prompts]
    decoder = load_decoder(tmp_path)
    for steps in STEPS.values():
        for ours, theirs in zip(compute_logits(decoder, prompts, steps), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=4e-5)


@torch.inference_mode()
def test_a_window_changes_the_logits(prompts, tmp_path):
    """Else the cases above would prove nothing."""
    narrow, wide = (make_model(name) for name in ("mistral with a window", "mistral"))
    differences = (narrow(prompts[1][None]).logits - wide(prompts[1][None]).logits)[0].abs()
    assert differences[:20].max() < 1e-6 < 0.01 < differences[20:].max()


def test_a_head_of_which_a_part_is_rotated_is_refused(tmp_path):
    model = make_model("phi3", rope_parameters={"partial_rotary_factor": 0.5})
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="partial_rotary_factor"):
        load_decoder(tmp_path)
