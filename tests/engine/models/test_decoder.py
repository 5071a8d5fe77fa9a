"""The decoder over a paged cache, against transformers' Llama."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tiny_llava import CPU, compute_logits, make_caches, randomise
from vlmflow_engine.kernels.paged_attention import SequenceSpan, plan_attention
from vlmflow_engine.models.decoder import Decoder
from vlmflow_engine.models.weights import Checkpoint

CONFIG = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LENGTHS = (1, 15, 16, 17, 131)


def save_llama(folder: Path, **overrides: object) -> LlamaForCausalLM:
    model = LlamaForCausalLM(LlamaConfig(**CONFIG | overrides)).eval()
    randomise(model, seed=1)
    model.save_pretrained(folder)
    return model


def load_decoder(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    weights = Checkpoint(folder, ((r"model\.", "text."),), dtype=dtype, device=CPU)
    config = LlamaConfig.from_pretrained(folder)
    decoder = Decoder(config, weights, dtype=dtype, device=CPU)
    weights.check_used()
    return decoder


def make_prompts(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(CONFIG["vocab_size"], (n,), generator=generator) for n in lengths]


@torch.inference_mode()
def assert_logits_are_those_of(
    model: LlamaForCausalLM, prompts: list[Tensor], logits: list[Tensor]
) -> None:
    for prompt, rows in zip(prompts, logits, strict=True):
        torch.testing.assert_close(rows, model(prompt[None]).logits[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"head_dim": 32},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"rms_norm_eps": 0.1},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"tie_word_embeddings": True},
    ],
    ids=str,
)
def test_logits_are_those_of_transformers(tmp_path, overrides):
    model = save_llama(tmp_path, **overrides)
    prompts = make_prompts(17, 131)
    assert_logits_are_those_of(model, prompts, compute_logits(load_decoder(tmp_path), prompts))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    return save_llama(folder), load_decoder(folder)


@pytest.mark.parametrize(
    "steps",
    [
        [[(index, 1)] for index, length in enumerate(LENGTHS[:4]) for _ in range(length)]
        + [[(4, 131)]],
        [[(4, 16)]] * 8 + [[(4, 3)], [(3, 16), (2, 16)], [(3, 1), (1, 14), (0, 1)], [(1, 1)]],
        [[(4, 130), (3, 1)], [(4, 1), (3, 15), (2, 1)], [(2, 15), (3, 1), (1, 15), (0, 1)]],
    ],
    ids=["token_by_token", "in_chunks", "mixed_in_a_batch"],
)
def test_logits_do_not_depend_on_how_prompts_are_cut_into_steps(both, steps):
    model, decoder = both
    prompts = make_prompts(*LENGTHS)
    assert_logits_are_those_of(model, prompts, compute_logits(decoder, prompts, steps))


@torch.inference_mode()
def test_only_wanted_rows_come_out(both):
    _, decoder = both
    (prompt,) = make_prompts(20)
    hidden = decoder(
        decoder.embed(prompt),
        torch.arange(20),
        torch.tensor([19, 4]),
        make_caches(decoder, 2, block_size=16),
        plan_attention([SequenceSpan(20, 20, [0, 1])], block_size=16, device=CPU),
    )
    logits = decoder.logits(hidden)
    torch.testing.assert_close(logits, compute_logits(decoder, [prompt])[0][[19, 4]])


def test_a_bfloat16_decoder_returns_float32_logits_near_the_exact_ones(tmp_path):
    save_llama(tmp_path)
    prompts = make_prompts(17, 131)
    exact = compute_logits(load_decoder(tmp_path), prompts)
    rounded = compute_logits(load_decoder(tmp_path, torch.bfloat16), prompts)
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.1)
