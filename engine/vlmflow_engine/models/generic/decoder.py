"""A decoder of transformers with the face of `models.decoder.Decoder`."""

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from vlmflow_engine.errors import ConfigError, ModelError
from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache
from vlmflow_engine.layers.attend import StepAttention
from vlmflow_engine.layers.embedding import ImageRows, put_rows
from vlmflow_engine.layers.linear import Linear
from vlmflow_engine.layers.lora import AdapterRows
from vlmflow_engine.models.generic.attention import STEP, PagedStep
from vlmflow_engine.models.generic.shape import measure_decoder

_MAX_POSITIONS = 1 << 17  # of a decoder that counts as far as one likes


class GenericDecoder:
    """Embeddings, layers and head of a transformers model, over our paged KV cache."""

    linears: Sequence[Linear] = ()  # none of ours: no adapter can be put on them

    def __init__(self, model: PreTrainedModel) -> None:
        """`model` is a whole one, with a head. Raises ModelError for a decoder of another kind."""
        self._decoder = model.get_decoder()
        shape = measure_decoder(self._decoder)
        self.hidden_size = shape.hidden_size
        self.num_layers = shape.num_layers
        self.num_kv_heads = shape.num_kv_heads
        self.head_dim = shape.head_dim
        self.num_position_axes = shape.num_position_axes
        self.usual_context: int | None = None
        self.is_recordable = False  # who knows what transformers' code does on the host
        config = self._decoder.config
        self.max_positions = int(getattr(config, "max_position_embeddings", _MAX_POSITIONS))
        self._embed = model.get_input_embeddings()
        self.embedding: Tensor = self._embed.weight
        self._head = _head_of(model)
        probe = self.embedding.new_zeros(1, self.hidden_size)
        self.vocab_size: int = self.logits(probe).shape[-1]

    def make_invariant(self) -> None:
        """Raises ConfigError: its layers are transformers'."""
        raise ConfigError(
            "batch_invariant=True is for the engine's own decoders, and this model runs "
            "transformers' code; leave it out"
        )

    def embed(self, token_ids: Tensor, images: Sequence[ImageRows] = ()) -> Tensor:
        """[num_tokens] -> [num_tokens, hidden_size], with images' embeddings in their places."""
        return put_rows(self._embed(token_ids), images)

    def __call__(
        self,
        embeds: Tensor,
        positions: Tensor,
        rows: Tensor,
        caches: list[LayerKVCache],
        metadata: StepAttention,
        adapters: Sequence[AdapterRows] | None = None,
    ) -> Tensor:
        """Compute a step; arguments and result are those of `models.decoder.Decoder`."""
        output = self._decoder(
            inputs_embeds=embeds[None],
            position_ids=positions.unsqueeze(-2),  # [1, num_tokens], or [3, 1, num_tokens]
            use_cache=False,
            **{STEP: PagedStep(caches, metadata)},
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden[rows]

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """[rows, hidden_size], normalised -> [rows, vocab_size] in float32, written to `out`."""
        logits: Tensor = self._head(inputs_embeds=hidden[None], use_cache=False).logits[0]
        return logits.float() if out is None else out.copy_(logits)


class _HandOn(nn.Module):
    """In a backbone's place: the last hidden states are what it is given."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> "_HandedOn":
        return _HandedOn(last_hidden_state=inputs_embeds)


class _HandedOn(BaseModelOutputWithPast):  # type: ignore[misc]  # of no type that mypy sees
    """The outputs of any backbone: what there is none of is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


def _head_of(model: PreTrainedModel) -> Any:
    """A model's own way from hidden states to logits: its output layer, scales and caps."""
    prefix = model.base_model_prefix
    if prefix not in model._modules:
        raise ModelError(
            f"transformers' {type(model).__name__} does not keep its head apart from its decoder"
        )
    head = copy.copy(model)
    head._modules = {**model._modules, prefix: _HandOn()}
    return head
