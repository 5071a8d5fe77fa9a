"""The decoder of Llama and its relatives over a paged KV cache.

They differ in where a bias stands, in norms of queries and keys, in how far a layer sees, and in
how a position is counted; everything else is Llama's (arXiv 2302.13971).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmflow_engine.errors import ForeignPartError, ModelError
from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache
from vlmflow_engine.layers.attend import StepAttention
from vlmflow_engine.layers.attention import Attention
from vlmflow_engine.layers.embedding import ImageRows, embed
from vlmflow_engine.layers.linear import Linear
from vlmflow_engine.layers.lora import AdapterRows
from vlmflow_engine.layers.mlp import GatedMLP, activation
from vlmflow_engine.layers.norm import RMSNorm
from vlmflow_engine.layers.rope_scaling import long_rope, rope_frequencies, rope_sections
from vlmflow_engine.layers.rotary import RotaryEmbedding
from vlmflow_engine.models.weights import Checkpoint


@dataclass(frozen=True, slots=True)
class Kind:
    """How a relative differs from Llama. A bias is True, or the config's field that says so."""

    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    has_qk_norm: bool = False  # RMSNorm over each head of queries and keys


# By model_type of the text config.
KINDS: dict[str, Kind] = {
    "llama": Kind("attention_bias", "attention_bias", "mlp_bias"),
    "mistral": Kind(),
    "phi3": Kind(),
    "qwen2": Kind(qkv_bias=True),
    "qwen2_vl_text": Kind(qkv_bias=True),
    "qwen2_5_vl_text": Kind(qkv_bias=True),
    "qwen3": Kind("attention_bias", "attention_bias", has_qk_norm=True),
}


def check_kind(config: Any) -> None:
    """Raise ForeignPartError for a decoder that is not ours."""
    if not isinstance(config.model_type, str) or config.model_type not in KINDS:
        raise ForeignPartError(
            f"a language model of type {config.model_type!r} is not supported yet: only "
            f"{', '.join(map(repr, KINDS))} are"
        )
    share = (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0)
    if config.model_type == "phi3" and share != 1.0:
        raise ModelError(
            f"a 'phi3' with partial_rotary_factor={share} is not supported: a whole head turns"
        )


class DecoderLayer:
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(
        self,
        config: Any,
        weights: Checkpoint,
        prefix: str,
        *,
        head_dim: int,
        window: int | None,
    ) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        kind = KINDS[config.model_type]

        def linear(name: str, inputs: int, outputs: int, bias: bool) -> Linear:
            return weights.linear(f"{prefix}.{name}", inputs, outputs, bias=bias)

        def norm(name: str, size: int = hidden) -> RMSNorm:
            return RMSNorm(weights.take(f"{prefix}.{name}.weight", size), config.rms_norm_eps)

        def has(bias: bool | str) -> bool:
            return bool(getattr(config, bias)) if isinstance(bias, str) else bias

        mlp_bias = has(kind.mlp_bias)
        self.attention = Attention(
            weights.merged_linear(
                [f"{prefix}.self_attn.{part}_proj" for part in "qkv"],
                hidden,
                [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim],
                bias=has(kind.qkv_bias),
            ),
            linear("self_attn.o_proj", heads * head_dim, hidden, has(kind.o_bias)),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            window=window,
            q_norm=norm("self_attn.q_norm", head_dim) if kind.has_qk_norm else None,
            k_norm=norm("self_attn.k_norm", head_dim) if kind.has_qk_norm else None,
        )
        self.mlp = GatedMLP(
            weights.merged_linear(
                [f"{prefix}.mlp.{part}_proj" for part in ("gate", "up")],
                hidden,
                [inner, inner],
                bias=mlp_bias,
            ),
            linear("mlp.down_proj", inner, hidden, mlp_bias),
            activation(config.hidden_act),
        )
        self.attention_norm = norm("input_layernorm")
        self.mlp_norm = norm("post_attention_layernorm")

    def __call__(
        self,
        x: Tensor,
        cos_sin: tuple[Tensor, Tensor],
        cache: LayerKVCache,
        metadata: StepAttention,
        adapters: Sequence[AdapterRows] | None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states of `rows`, or of all; keys and values are kept of all."""
        normed = self.attention_norm(x)
        attended = self.attention(normed, cos_sin, cache, metadata, adapters, rows)
        normed, x = self.mlp_norm.of_sum(x if rows is None else x[rows], attended)
        return x + self.mlp(normed, adapters)

    @property
    def linears(self) -> list[Linear]:
        attention, mlp = self.attention, self.mlp
        return [attention.qkv_proj, attention.o_proj, mlp.gate_up, mlp.down]


class Decoder:
    """Token embeddings, layers, final norm and output head.

    `config` is transformers' of a model_type in KINDS. Tensors are taken under `text.*` and
    `lm_head.weight`, whatever the checkpoint fuses.
    """

    def __init__(
        self, config: Any, weights: Checkpoint, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.hidden_size: int = config.hidden_size
        self.vocab_size: int = config.vocab_size
        self.num_layers: int = config.num_hidden_layers
        self.num_kv_heads: int = config.num_key_value_heads
        head_dim = getattr(config, "head_dim", None)
        self.head_dim: int = head_dim or config.hidden_size // config.num_attention_heads
        self.max_positions: int = config.max_position_embeddings
        _split_fused(config, weights, self.head_dim)
        shape = (self.vocab_size, self.hidden_size)
        self.embedding = weights.take("text.embed_tokens.weight", *shape)
        self.layers = [
            DecoderLayer(
                config,
                weights,
                f"text.layers.{index}",
                head_dim=self.head_dim,
                window=window,
            )
            for index, window in enumerate(attention_windows(config))
        ]
        self.norm = RMSNorm(weights.take("text.norm.weight", self.hidden_size), config.rms_norm_eps)
        # A tied head is stored by some and left out by others.
        is_left_out = config.tie_word_embeddings and "lm_head.weight" not in weights
        self.lm_head = (
            Linear(weights.keep(self.embedding, "lm_head"))
            if is_left_out
            else weights.linear("lm_head", self.hidden_size, self.vocab_size)
        )
        frequencies, attention_factor = rope_frequencies(config, self.head_dim)
        sections = rope_sections(config, self.head_dim)
        long = long_rope(config, self.head_dim)
        # Tokens up to which a sequence has the usual frequencies; None: always.
        self.usual_context: int | None = long[1] if long else None
        # 1, or 3 where a token has a place in time, height and width.
        self.num_position_axes: int = len(sections) or 1
        self.rotary = RotaryEmbedding(
            frequencies,
            attention_factor=attention_factor,
            sections=sections,
            long_frequencies=long[0] if long else None,
            dtype=dtype,
            device=str(device),
        )

    @property
    def is_recordable(self) -> bool:
        """Whether a step of one token each may be a CUDA graph."""
        return self.usual_context is None

    @property
    def linears(self) -> list[Linear]:
        """The layers that an adapter may change."""
        return [linear for layer in self.layers for linear in layer.linears]

    def make_invariant(self) -> None:
        """From now on compute a token the same bit by bit, whatever else is in its step."""
        for linear in (*self.linears, self.lm_head):
            linear.make_invariant()

    def embed(self, token_ids: Tensor, images: Sequence[ImageRows] = ()) -> Tensor:
        """[num_tokens] -> [num_tokens, hidden_size], with images' embeddings in their places."""
        return embed(token_ids, self.embedding, images)

    def __call__(
        self,
        embeds: Tensor,
        positions: Tensor,
        rows: Tensor,
        caches: list[LayerKVCache],
        metadata: StepAttention,
        adapters: Sequence[AdapterRows] | None = None,
    ) -> Tensor:
        """Compute a step and return the last hidden states [len(rows), hidden_size], normalised.

        embeds     [num_tokens, hidden_size]
        positions  see `RotaryEmbedding.at`
        rows       [num_rows] int64, the rows that are wanted; their keys and values all are
        adapters   each with its rows of the step; None: no row has one
        """
        cos_sin = self.rotary.at(positions)
        *others, last = zip(self.layers, caches, strict=True)
        x = embeds
        for layer, cache in others:
            x = layer(x, cos_sin, cache, metadata, adapters)
        layer, cache = last
        # Adapters name rows of the whole step.
        if adapters is None and 0 < len(rows) < len(x):
            return self.norm(layer(x, cos_sin, cache, metadata, None, rows))
        return self.norm(layer(x, cos_sin, cache, metadata, adapters)[rows])

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """[rows, hidden_size], normalised -> [rows, vocab_size] in float32, written to `out`."""
        logits = self.lm_head(hidden)
        return logits.float() if out is None else out.copy_(logits)


def _split_fused(config: Any, weights: Checkpoint, head_dim: int) -> None:
    """Declare Phi-3's fused layers, wherever a checkpoint has them."""
    kv_size = config.num_key_value_heads * head_dim
    weights.split(
        r"(text\.layers\.\d+\.self_attn)\.qkv_proj",
        {
            r"\1.q_proj": config.num_attention_heads * head_dim,
            r"\1.k_proj": kv_size,
            r"\1.v_proj": kv_size,
        },
    )
    inner = config.intermediate_size
    weights.split(
        r"(text\.layers\.\d+\.mlp)\.gate_up_proj",
        {r"\1.gate_proj": inner, r"\1.up_proj": inner},
    )


def attention_windows(config: Any) -> list[int | None]:
    """How many tokens back each layer sees, itself included; None: all of them."""
    count, window = config.num_hidden_layers, getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return [None] * count
    if types is None:
        return [window] * count
    return [window if kind == "sliding_attention" else None for kind in types]
