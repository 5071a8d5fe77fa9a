"""Layers of a decoder that some checkpoints store as one, split as they are taken."""

from typing import Any

from vlmflow_engine.models.weights import Checkpoint

_LAYER = r"(text\.layers\.\d+)\."


def split_fused_layers(weights: Checkpoint, config: Any) -> None:
    """Declare Phi-3's and InternLM2's fused layers; others are not touched.

    config  transformers' of the decoder
    Raises ModelError when a stored tensor has other rows than the config says.
    """
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    q, k, v = (rf"\1.self_attn.{name}_proj" for name in "qkv")
    # Phi-3: one after another.
    weights.split(
        _LAYER + r"self_attn\.qkv_proj",
        {q: heads * head_dim, k: kv_heads * head_dim, v: kv_heads * head_dim},
    )
    weights.split(
        _LAYER + r"mlp\.gate_up_proj",
        dict.fromkeys((r"\1.mlp.gate_proj", r"\1.mlp.up_proj"), config.intermediate_size),
    )
    # InternLM2: each KV head behind the query heads that share it.
    weights.split(
        _LAYER + r"attention\.wqkv",
        {q: heads // kv_heads * head_dim, k: head_dim, v: head_dim},
        num_groups=kv_heads,
    )
