"""What a family of models has to say of itself: one subclass in one file of `models.families`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from vlmflow_engine.errors import ModelError
from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache
from vlmflow_engine.layers.attend import StepAttention
from vlmflow_engine.layers.embedding import ImageRows
from vlmflow_engine.layers.linear import Linear
from vlmflow_engine.layers.lora import AdapterRows
from vlmflow_engine.models import config_overrides
from vlmflow_engine.models.fused_layers import split_fused_layers
from vlmflow_engine.models.weights import Checkpoint, Renames

_MAX_REASON = 300  # characters of what transformers says


@dataclass(frozen=True, slots=True, eq=False)
class ImagePixels:
    """One image on the device, as its vision tower takes it."""

    # [tiles, 3, height, width] in the model's dtype, normalised; or as the family's processor says.
    values: Tensor
    layout: tuple[int, ...]  # of `inputs.image_processors.base.ProcessedImage`
    arrays: Mapping[str, Tensor] = field(default_factory=dict)  # the same, beside the pixels


class PagedDecoder(Protocol):
    """What runs over the paged KV cache: `models.decoder.Decoder`, or transformers' own code."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def num_position_axes(self) -> int: ...
    @property
    def usual_context(self) -> int | None: ...
    @property
    def is_recordable(self) -> bool:
        """Whether a step of one token each may be a CUDA graph, positions counted on the device."""

    @property
    def linears(self) -> Sequence[Linear]:
        """The layers that an adapter may change; none where adapters cannot be had."""

    def make_invariant(self) -> None:
        """From now on compute a token the same bit by bit, whatever else is in its step.

        Raises ConfigError where that cannot be had.
        """

    def embed(self, token_ids: Tensor, images: Sequence[ImageRows] = ()) -> Tensor: ...

    def __call__(
        self,
        embeds: Tensor,
        positions: Tensor,
        rows: Tensor,
        caches: list[LayerKVCache],
        metadata: StepAttention,
        adapters: Sequence[AdapterRows] | None = None,
    ) -> Tensor: ...

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor: ...


class TextModel(Protocol):
    """A model that runs a decoder."""

    @property
    def decoder(self) -> PagedDecoder: ...

    renames: Renames  # from tensors' stored names to the engine's, of its adapters' too


class VisionLanguageModel(TextModel, Protocol):
    """A model that looks at images too."""

    def encode_images(self, images: Sequence[ImagePixels]) -> list[Tensor]:
        """Return each image's embeddings [rows, hidden_size].

        Raises MediaError for images that the tower cannot take.
        """


class Family(ABC):
    """A kind of checkpoint: how its config is read, what an image is, how its tensors are named.

    An instance has no state. `config` is what `read_config` returned.
    """

    name: ClassVar[str]  # as documents call it
    form: ClassVar[str]  # "Hugging Face", or "original"
    architectures: ClassVar[tuple[str, ...]]  # of config.json
    # For docs/models.md: names of checkpoints on the hub, what the tests prove, what is not done.
    checkpoints: ClassVar[str]
    tested: ClassVar[str]
    limits: ClassVar[str] = ""

    def read_config(self, raw: dict[str, Any], folder: Path, source: str) -> Any:
        """Make a transformers config of a config.json's content.

        folder  of the checkpoint, for families that keep half of their config in another file
        source  the file, for messages
        Raises ModelError.
        """
        return parse_config(raw, source)

    def check_overrides(self, config: Any, overrides: dict[str, Any], raw: dict[str, Any]) -> None:
        """Raise ConfigError if an override names no field."""
        config_overrides.check_names(config, overrides, raw)

    @abstractmethod
    def check(self, config: Any) -> None:
        """Raise ModelError if a checkpoint of the family is made of parts that are not ours."""

    @abstractmethod
    def text_config(self, config: Any) -> Any:
        """The part that describes the decoder, one of `decoder.KINDS`."""

    @abstractmethod
    def image_format(self, config: Any) -> ImageFormat | None:
        """What an image of this model is made of; None for a family of text alone."""

    @abstractmethod
    def renames(self, config: Any) -> Renames:
        """From stored names of tensors to the engine's."""

    def open(
        self, folder: Path, config: Any, *, dtype: torch.dtype, device: torch.device
    ) -> Checkpoint:
        """Find a checkpoint's tensors. Raises ModelError."""
        weights = Checkpoint(folder, self.renames(config), dtype=dtype, device=device)
        split_fused_layers(weights, self.text_config(config))
        return weights

    @abstractmethod
    def load(
        self, config: Any, weights: Checkpoint, *, dtype: torch.dtype, device: torch.device
    ) -> TextModel:
        """Build the whole model. Raises ModelError."""

    # The engine's names of the tensors that the decoder does without.
    vision_prefixes: ClassVar[tuple[str, ...]] = ()


def parse_config(raw: Mapping[str, Any], source: str) -> Any:
    """Let transformers fill in its defaults; the checkpoint's own code is never run.

    Raises ModelError, naming `source`.
    """
    from transformers import CONFIG_MAPPING

    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ModelError(f"{source}: transformers knows no model_type {kind!r}")
    try:
        return CONFIG_MAPPING[kind].from_dict(dict(raw))
    except Exception as error:  # of many classes, and over many lines
        reason = " ".join(str(error).split())[:_MAX_REASON]
        raise ModelError(f"{source}: transformers refuses it: {reason}") from error
