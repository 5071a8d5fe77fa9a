"""A decoder without a vision tower: a text-only checkpoint, or that half of a larger one."""

from collections.abc import Sequence
from typing import Any

import torch

from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.models.decoder import Decoder, check_kind
from vlmflow_engine.models.family import Family
from vlmflow_engine.models.weights import Checkpoint, Renames


class LanguageModel:
    """Runs the decoder; takes no images."""

    def __init__(
        self,
        config: Any,
        weights: Checkpoint,
        *,
        renames: Renames,
        dtype: torch.dtype,
        device: torch.device,
        unused_prefixes: Sequence[str] = (),
    ) -> None:
        """`unused_prefixes` name the tensors of other parts, which are left unread."""
        self.renames = renames
        self.decoder = Decoder(config, weights, dtype=dtype, device=device)
        weights.check_used(*unused_prefixes)


class LanguageFamily(Family):
    name = "language models"
    form = "Hugging Face"
    architectures = (
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Phi3ForCausalLM",
    )
    checkpoints = "Llama, Vicuna, Mistral, Qwen2, Qwen2.5, Qwen3, Phi-3"
    tested = "logits of each kind beside transformers'"

    def check(self, config: Any) -> None:
        check_kind(config)

    def text_config(self, config: Any) -> Any:
        return config

    def image_format(self, config: Any) -> ImageFormat | None:
        return None

    def renames(self, config: Any) -> Renames:
        return ((r"model\.", "text."),)

    def load(
        self, config: Any, weights: Checkpoint, *, dtype: torch.dtype, device: torch.device
    ) -> LanguageModel:
        renames = self.renames(config)
        return LanguageModel(config, weights, renames=renames, dtype=dtype, device=device)
