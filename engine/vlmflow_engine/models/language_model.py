"""A decoder without a vision tower: a text-only checkpoint, or that half of a larger one."""

from collections.abc import Sequence
from typing import Any

import torch

from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.llama import LlamaDecoder
from vlmflow_engine.models.weights import Checkpoint, Renames

RENAMES: Renames = ((r"model\.", "text."),)


class LanguageModel:
    """Runs the decoder; takes no images."""

    def __init__(
        self,
        config: Any,
        weights: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device,
        unused_prefixes: Sequence[str] = (),
    ) -> None:
        """`unused_prefixes` name the tensors of other parts, which are left unread."""
        self.renames = RENAMES  # of its adapters' tensors too
        self.decoder = LlamaDecoder(config, weights, dtype=dtype, device=device)
        weights.check_used(*unused_prefixes)


def check_kind(config: Any) -> None:
    """Raise ModelError for a decoder that is not ours."""
    if config.model_type != "llama":
        raise ModelError(
            f"a language model of type {config.model_type!r} is not supported yet: only 'llama' is"
        )
