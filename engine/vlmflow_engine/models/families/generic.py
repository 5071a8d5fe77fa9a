"""Any other model of transformers with a causal decoder, through transformers' own code."""

from contextlib import suppress
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from vlmflow_engine.errors import ModelError
from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.models.family import Family
from vlmflow_engine.models.generic.handover import check_handover
from vlmflow_engine.models.generic.model import GenericModel, build_on_meta, load_pretrained
from vlmflow_engine.models.generic.shape import check_config, measure_decoder
from vlmflow_engine.models.weights import Checkpoint, Renames


class GenericFamily(Family):
    name = "other models of transformers"
    form = "Hugging Face"
    architectures = ()  # whatever `knows` and no other family takes
    checkpoints = "what AutoModelForImageTextToText or AutoModelForCausalLM of transformers build"
    tested = (
        "answers, token by token, beside transformers' of LLaVA-OneVision, Idefics3, Pixtral, "
        "Mistral 3, Aya Vision and GLM-4V"
    )
    limits = (
        "slower; no LoRA adapters; refused with a sentence: encoders with cross-attention, "
        "recurrent or linear-attention layers, attention with sinks, soft caps or heads of several "
        "sizes, images whose tokens see each other, features for deeper layers, positions that are "
        "neither the tokens' numbers nor M-RoPE's, and rotary embeddings that depend on the batch"
    )

    def knows(self, architecture: str) -> bool:
        """Whether transformers has a class of that name that answers prompts."""
        return _auto_class(architecture) is not None

    def check(self, config: Any) -> None:
        """Look at the config, and at the model as transformers builds it without weights."""
        architecture = config.architectures[0]
        check_config(config)
        model = build_on_meta(_auto_class(architecture), config)
        if type(model).__name__ != architecture:
            raise ModelError(
                f"model_type {config.model_type!r} makes a {type(model).__name__} of transformers, "
                f"and no {architecture}"
            )
        # A step that depends on values does not run without: it is measured when there are some.
        with suppress(NotImplementedError, RuntimeError):
            measure_decoder(model.get_decoder())
        if _takes_images(architecture):
            _check_vision(model, config)

    def text_config(self, config: Any) -> Any:
        return config.get_text_config(decoder=True)

    def image_format(self, config: Any) -> ImageFormat | None:
        if not _takes_images(config.architectures[0]):
            return None
        return ImageFormat(
            processor="transformers",
            parameters={"placeholder_id": _placeholder_id(config)},
            in_item_order=True,
        )

    def renames(self, config: Any) -> Renames:
        return ()

    def load(
        self, config: Any, weights: Checkpoint, *, dtype: torch.dtype, device: torch.device
    ) -> GenericModel:
        architecture = config.architectures[0]
        model = load_pretrained(
            _auto_class(architecture), weights.folder, config, dtype=dtype, device=device
        )
        try:
            ours = GenericModel(model)
            if (form := self.image_format(config)) is not None:
                token_id: int = form.parameters["placeholder_id"]
                check_handover(model, ours, weights.folder, token_id)
        except ModelError as error:
            raise ModelError(
                f"{weights.folder}: {architecture} cannot run through transformers' own code: "
                f"{error}"
            ) from error
        return ours


def _check_vision(model: PreTrainedModel, config: Any) -> None:
    if not hasattr(model.base_model, "get_image_features"):
        raise ModelError(f"transformers' {type(model).__name__} has no get_image_features")
    if _makes_masks(model):
        raise ModelError(
            f"transformers' {type(model).__name__} makes attention masks of its own, so that the "
            "tokens of an image see each other, and the paged attention is causal"
        )
    if _placeholder_id(config) is None:
        raise ModelError("its config names no image_token_id for the places of an image's features")


def _makes_masks(model: PreTrainedModel) -> bool:
    name = "create_masks_for_generate"
    own, usual = getattr(type(model), name, None), getattr(GenerationMixin, name, None)
    return own is not usual


def _placeholder_id(config: Any) -> int | None:
    for name in ("image_token_id", "image_token_index"):
        if isinstance(value := getattr(config, name, None), int):
            return value
    return None


def _takes_images(architecture: str) -> bool:
    return architecture in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()


def _auto_class(architecture: str) -> Any:
    if _takes_images(architecture):
        return AutoModelForImageTextToText
    if architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return AutoModelForCausalLM
    return None
