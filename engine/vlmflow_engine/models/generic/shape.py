"""What kind of decoder transformers has built: found by running two tokens through it.

No list of names could say which of its decoders are made of causal attention alone. A decoder with
other layers, other masks or other inputs is refused in one sentence.
"""

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.generic.attention import STEP, LayerCall, use_paged_attention

# What a plain decoder's forward takes; of anything else it would have to be given a value.
_PLAIN = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "past_key_values",
    "inputs_embeds",
    "use_cache",
    "cache_position",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "logits_to_keep",
    "labels",
)
# Arguments of an attention function that do not change what it computes here.
_HARMLESS = (
    "dropout",
    "position_ids",
    "position_embeddings",
    "cache_position",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
)
# Rotary embeddings that look at all positions of a step: an answer would depend on the batch.
_BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """What the KV cache has to know, and how wide things are."""

    hidden_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    num_position_axes: int = 1  # 3: a token has a place in time, height and width (M-RoPE)


@dataclass(slots=True)
class _Recorder:
    """A step that looks at who attends, and attends to nothing."""

    layer_types: list[str] | None  # as the config has them
    calls: list[LayerCall] = field(default_factory=list)

    def attend(self, call: LayerCall) -> Tensor:
        """Raises ModelError. At once: what comes behind a layer may not run without weights."""
        index = len(self.calls)
        _check_call(call, index, None if self.layer_types is None else self.layer_types[index])
        self.calls.append(call)
        repeats = call.q.shape[1] // call.v.shape[1]
        return call.v.repeat_interleave(repeats, dim=1)


def check_config(config: Any) -> None:
    """Raise ModelError for what the config alone shows."""
    text = config.get_text_config(decoder=True)
    made = type(text).model_type
    if text.model_type != made:
        raise ModelError(
            f"config.json calls its language model {text.model_type!r}, and transformers makes a "
            f"{made!r} of it"
        )
    for part in (config, text):
        if getattr(part, "is_encoder_decoder", False):
            raise ModelError(
                "it has an encoder that its decoder looks at through cross-attention, and only "
                "models of a single causal decoder are run"
            )
    for kind in sorted(set(getattr(text, "layer_types", None) or ())):
        if kind not in ("full_attention", "sliding_attention"):
            raise ModelError(
                f"its decoder has layers of type {kind!r}, and the KV cache holds those of "
                "'full_attention' and 'sliding_attention' only"
            )
    for kind in _rope_types(getattr(text, "rope_parameters", None)):
        if kind in _BATCH_DEPENDENT_ROPE:
            raise ModelError(
                f"its rotary embedding is of type {kind!r}, which transformers computes from the "
                "longest sequence of a batch: answers would depend on their neighbours"
            )


@torch.inference_mode()
def measure_decoder(decoder: PreTrainedModel) -> DecoderShape:
    """Run two tokens through a decoder, on the device where its weights are.

    Raises ModelError if it is not made of causal attention over earlier tokens alone.
    """
    if not getattr(decoder, "_supports_attention_backend", False):
        raise ModelError(
            f"transformers' {type(decoder).__name__} takes no attention function from outside"
        )
    for name, parameter in inspect.signature(decoder.forward).parameters.items():
        if name not in _PLAIN and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            raise ModelError(f"its decoder takes {name!r} beside the tokens' embeddings")
    use_paged_attention(decoder)
    recorder = _Recorder(getattr(decoder.config, "layer_types", None))
    weight = decoder.get_input_embeddings().weight
    hidden_size = int(decoder.config.hidden_size)
    embeds = torch.zeros(1, 2, hidden_size, dtype=weight.dtype, device=weight.device)
    num_axes = 3 if _has_sections(getattr(decoder.config, "rope_parameters", None)) else 1
    positions = torch.arange(2, device=weight.device).expand(num_axes, 1, 2)
    output = decoder(
        inputs_embeds=embeds,
        position_ids=positions if num_axes > 1 else positions[0],
        use_cache=False,
        **{STEP: recorder},
    )
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None or hidden.shape != embeds.shape:
        raise ModelError(f"transformers' {type(decoder).__name__} returns no last hidden state")
    return _shape(recorder.calls, decoder.config, num_axes)


def _shape(calls: list[LayerCall], config: Any, num_axes: int) -> DecoderShape:
    num_layers = int(config.num_hidden_layers)
    if len(calls) != num_layers:
        raise ModelError(
            f"of its decoder's {num_layers} layers {len(calls)} call the attention function, and "
            "only a decoder with one causal attention in each layer can be paged"
        )
    shapes = sorted({(call.k.shape[1], call.k.shape[2], call.v.shape[2]) for call in calls})
    if len(shapes) > 1 or shapes[0][1] != shapes[0][2]:
        raise ModelError(
            "the KV cache has one number of heads and one head_dim for keys and values of all "
            f"layers, and this decoder has (heads, of keys, of values) {shapes}"
        )
    return DecoderShape(
        hidden_size=int(config.hidden_size),
        num_layers=num_layers,
        num_kv_heads=shapes[0][0],
        head_dim=shapes[0][1],
        num_position_axes=num_axes,
    )


def _check_call(call: LayerCall, index: int, kind: str | None) -> None:
    if call.layer_index != index:
        raise ModelError(
            f"its decoder's attention number {index} calls itself layer {call.layer_index}"
        )
    if not call.is_causal:
        raise ModelError("its decoder's tokens see later ones: its attention is not causal")
    if kind is not None and (kind == "sliding_attention") != (call.window is not None):
        raise ModelError("its decoder does not tell the attention function how far a layer sees")
    for name, value in call.others.items():
        if name not in _HARMLESS and value is not None and value is not False:
            raise ModelError(
                f"its decoder's attention asks for {name!r}, which the paged attention has not"
            )


def _has_sections(parameters: Any) -> bool:
    """Whether a rotary embedding turns some frequencies by one axis and some by another."""
    return isinstance(parameters, dict) and "mrope_section" in parameters


def _rope_types(parameters: Any) -> list[str]:
    """Of a config's rope_parameters, which some keep by type of layer."""
    if not isinstance(parameters, dict):
        return []
    nested = [kind for value in parameters.values() for kind in _rope_types(value)]
    return [*nested, str(parameters["rope_type"])] if "rope_type" in parameters else nested
