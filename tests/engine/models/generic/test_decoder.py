"""transformers' decoders over our paged KV cache compute what transformers computes."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
)

from tests.tiny_llava import TEXT_CONFIG, compute_logits, randomise
from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.generic.decoder import GenericDecoder

PROMPTS = [
    torch.randint(0, 500, (length,), generator=torch.Generator().manual_seed(length))
    for length in (40, 17, 5)
]
# Prompts in chunks, single tokens, and both in one step.
STEPS = [[(0, 10), (1, 17)], [(0, 5), (2, 2)], [(0, 24), (2, 2)], [(0, 1), (2, 1)]]
KINDS = {
    "plain": (LlamaConfig, {}),
    "windows": (MistralConfig, {"sliding_window": 9}),
    "some-windows": (Cohere2Config, {"sliding_window": 8, "logit_scale": 0.25}),
    "scaled": (
        GraniteConfig,
        {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.3},
    ),
    "norms-behind": (Olmo2Config, {}),
}


@pytest.fixture(params=KINDS)
def model(request):
    kind, fields = KINDS[request.param]
    model = AutoModelForCausalLM.from_config(kind(**TEXT_CONFIG, **fields)).eval()
    randomise(model, seed=0)
    return model


@pytest.mark.parametrize("steps", [None, STEPS], ids=["one-step", "chunks"])
def test_logits_are_those_of_transformers(model, steps):
    with torch.inference_mode():
        expected = [model(prompt[None]).logits[0] for prompt in PROMPTS]
        decoder = GenericDecoder(model)
    for ours, theirs in zip(compute_logits(decoder, PROMPTS, steps), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_sizes_are_those_of_the_model(model):
    decoder = GenericDecoder(model)
    assert (decoder.vocab_size, decoder.hidden_size) == (512, 64)
    assert (decoder.num_layers, decoder.num_kv_heads, decoder.head_dim) == (2, 2, 16)
    assert decoder.max_positions == 1024
    assert not decoder.linears


def test_the_model_itself_still_has_its_backbone(model):
    backbone = model.model
    GenericDecoder(model)
    assert model.model is backbone


def test_a_model_whose_head_is_not_behind_its_backbone_is_refused(model, monkeypatch):
    decoder = model.get_decoder()
    monkeypatch.setattr(type(model), "get_decoder", lambda _: decoder)
    monkeypatch.setattr(type(model), "base_model_prefix", "transformer")
    with pytest.raises(ModelError, match="does not keep its head apart"):
        GenericDecoder(model)
