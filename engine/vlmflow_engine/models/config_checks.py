"""Numbers of a config that a model could not be built with, told before it is."""

from collections.abc import Iterable
from typing import Any

from vlmflow_engine.errors import ModelError

_MAX_COUNT = 1 << 30
_DECODER_COUNTS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers") + (
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)


def check_counts(config: Any, names: Iterable[str], where: str) -> None:
    """Raise ModelError if a field is no whole number of at least 1. `where` names the section."""
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or not 1 <= value <= _MAX_COUNT:
            raise ModelError(
                f"{where}: {name} must be a whole number of at least 1, got {repr(value)[:80]}"
            )


def check_decoder(config: Any, where: str) -> None:
    """Raise ModelError if a decoder's sizes do not fit together."""
    check_counts(config, _DECODER_COUNTS, where)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % kv_heads:
        raise ModelError(f"{where}: {heads} heads cannot share {kv_heads} key and value heads")
    head_dim = getattr(config, "head_dim", None)
    if head_dim is None and config.hidden_size % heads:
        raise ModelError(
            f"{where}: hidden_size {config.hidden_size} is no multiple of {heads} heads"
        )
    size = head_dim or config.hidden_size // heads
    if size < 2 or size % 2:
        raise ModelError(f"{where}: a head of {size} channels cannot be rotated by halves")
