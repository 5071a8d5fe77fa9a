"""Our paged attention among transformers' attention functions.

A decoder whose config names it calls `_attend` in every layer, and makes no mask: transformers
knows no mask of that name. What a layer attends to comes with the call, as an argument of the
decoder's forward that its layers hand down.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache
from vlmflow_engine.layers.attend import StepAttention, attend

_NAME = "vlmflow_paged"
STEP = "vlmflow_step"  # the argument


@dataclass(frozen=True, slots=True)
class LayerCall:
    """What one attention layer asks for; queries, keys and values of all tokens of a step."""

    layer_index: int | None  # None: the layer has no number
    q: Tensor  # [num_tokens, num_heads, head_dim]
    k: Tensor  # [num_tokens, num_kv_heads, head_dim]
    v: Tensor  # the same, of any head_dim
    scale: float
    window: int | None  # tokens that it sees, itself included; None: all before it
    is_causal: bool
    others: dict[str, Any]  # further arguments


class Step(Protocol):
    """What the layers of one forward pass attend to."""

    def attend(self, call: LayerCall) -> Tensor:
        """Return [num_tokens, num_heads, head_dim of v]."""


@dataclass(frozen=True, slots=True)
class PagedStep:
    """A step over the paged KV cache."""

    caches: list[LayerKVCache]
    metadata: StepAttention

    def attend(self, call: LayerCall) -> Tensor:
        assert call.layer_index is not None  # as `models.generic.shape` has seen
        return attend(
            call.q,
            call.k,
            call.v,
            None,
            self.caches[call.layer_index],
            self.metadata,
            scale=call.scale,
            window=call.window,
        )


def use_paged_attention(decoder: PreTrainedModel) -> None:
    """Let a decoder's layers attend by the STEP that its forward is called with."""
    decoder.config._attn_implementation = _NAME


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' signature. query, key, value: [1, heads, num_tokens, head_dim]."""
    step: Step = others.pop(STEP)
    if attention_mask is not None:
        others["attention_mask"] = attention_mask
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    call = LayerCall(
        layer_index=getattr(module, "layer_idx", None),
        q=q,
        k=k,
        v=v,
        scale=q.shape[-1] ** -0.5 if scaling is None else float(scaling),
        window=sliding_window,
        is_causal=getattr(module, "is_causal", True) and is_causal is not False,
        others=others,
    )
    return step.attend(call)[None], None


AttentionInterface.register(_NAME, _attend)
