"""Rotary positions, against transformers' Llama."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from vlmflow_engine.layers.rotary import RotaryEmbedding, rotate

MAX_POSITIONS = 4096


def make_rotary(
    head_dim: int, theta: float = 10000.0, dtype: torch.dtype = torch.float32
) -> RotaryEmbedding:
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2) / head_dim)
    return RotaryEmbedding(frequencies, dtype=dtype, device="cpu")


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_queries_are_turned_as_transformers_turns_them(head_dim, theta, dtype):
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, head_dim, generator=generator).to(dtype)
    positions = torch.tensor([0, 1, 4095, 17, 17])
    cos, sin = LlamaRotaryEmbedding(config)(x, positions[None])
    # theirs: [batch, heads, tokens, head_dim]
    expected, _ = apply_rotary_pos_emb(*[x.transpose(0, 1)[None]] * 2, cos, sin)
    actual = rotate(x, *make_rotary(head_dim, theta, dtype).at(positions))
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected[0].transpose(0, 1), rtol=0, atol=1e-6)


def test_neighbouring_positions_differ_even_where_the_dtype_cannot_count_them():
    positions = torch.tensor([512, 513, 4000, 4001])
    cos, sin = make_rotary(64, dtype=torch.bfloat16).at(positions)
    assert cos.dtype == sin.dtype == torch.bfloat16
    exact_cos, exact_sin = make_rotary(64).at(positions)
    assert torch.equal(cos, exact_cos.bfloat16())
    assert torch.equal(sin, exact_sin.bfloat16())
    assert len({tuple(row.flatten().tolist()) for row in cos}) == 4


def test_scores_depend_on_the_distance_of_two_tokens_alone():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 3, 1, 64, generator=generator)
    rotary, near, far = make_rotary(64), torch.tensor([0, 5, 90]), torch.tensor([700, 705, 790])
    scores = [
        torch.einsum(
            "qhd,khd->qk", rotate(q, *rotary.at(positions)), rotate(k, *rotary.at(positions))
        )
        for positions in (near, far)
    ]
    torch.testing.assert_close(*scores, rtol=0, atol=1e-3)
