"""From a checkpoint's folder to a loaded model."""

from pathlib import Path
from typing import Any

import torch

from vlmflow_engine.errors import ModelError
from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.json_file import read_object
from vlmflow_engine.models import config_overrides, language_model, llava
from vlmflow_engine.models.language_model import LanguageModel
from vlmflow_engine.models.llava import LlavaModel
from vlmflow_engine.models.weights import Checkpoint

ARCHITECTURES = ("LlavaForConditionalGeneration", "LlamaForCausalLM")

_MAX_REASON = 300  # characters of what transformers says


def read_config(folder: Path, overrides: dict[str, Any] | None = None) -> Any:
    """Read config.json with transformers' defaults; the checkpoint's own code is never run.

    overrides  fields that are to be others, nested as config.json is

    Raises ModelError when there is none, or when its architecture is not one of ours; ConfigError
    when an override names no field.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder}: no config.json here; a model is a folder in Hugging Face form")
    raw = read_object(path)
    merged = config_overrides.merge(raw, overrides) if overrides else raw
    source = f"{path} with hf_overrides" if overrides else str(path)
    if not merged.get("architectures"):
        raise ModelError(
            f"{source} names no architectures (its model_type is {merged.get('model_type')!r}); "
            f"supported are {', '.join(ARCHITECTURES)}"
        )
    architecture = merged["architectures"][0]
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{source}: architecture {architecture!r} is not supported; "
            f"supported are {', '.join(ARCHITECTURES)}"
        )
    if merged.get("quantization_config"):
        raise ModelError(f"{source}: quantised checkpoints are not supported yet")
    config = _parse(merged, source)
    if overrides:
        config_overrides.check_names(config, overrides, raw)
    if takes_images(config):
        llava.check_kinds(config)
        # One flag, kept in two places: some checkpoints set only the outer one.
        config.text_config.tie_word_embeddings = config.tie_word_embeddings
    else:
        language_model.check_kind(config)
    return config


def takes_images(config: Any) -> bool:
    """Whether the model that a config describes has a vision tower."""
    return hasattr(config, "vision_config")


def text_config(config: Any) -> Any:
    """Return the part of a config that describes the language model."""
    for name in ("text_config", "llm_config"):
        if hasattr(config, name):
            return getattr(config, name)
    return config


def image_format(config: Any) -> ImageFormat | None:
    """Tell what an image of this model is made of; None for a model of text alone."""
    if not takes_images(config):
        return None
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    has_class_token = config.vision_feature_select_strategy == "full"
    return ImageFormat(
        token_id=config.image_token_id,
        num_rows=patches + has_class_token,
        side=vision.image_size,
    )


def eos_token_ids(folder: Path, config: Any) -> frozenset[int]:
    """The ids that end an answer: of generation_config.json, else of the text config."""
    path = folder / "generation_config.json"
    declared = read_object(path).get("eos_token_id") if path.is_file() else None
    value = text_config(config).eos_token_id if declared is None else declared
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)


def load_model(
    folder: Path,
    config: Any,
    *,
    dtype: torch.dtype,
    device: torch.device,
    language_model_only: bool = False,
) -> LlavaModel | LanguageModel:
    """Build the model and load its weights. Raises ModelError.

    language_model_only  of a model that takes images only the decoder, whose tensors alone are read
    """
    has_images = takes_images(config)
    renames = llava.RENAMES if has_images else language_model.RENAMES
    weights = Checkpoint(folder, renames, dtype=dtype, device=device)
    if has_images and not language_model_only:
        return LlavaModel(config, weights, dtype=dtype, device=device)
    unused = llava.VISION_PREFIXES if has_images else ()
    return LanguageModel(
        text_config(config), weights, dtype=dtype, device=device, unused_prefixes=unused
    )


def _parse(content: dict[str, Any], source: str) -> Any:
    from transformers import CONFIG_MAPPING

    kind = content.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ModelError(f"{source}: transformers knows no model_type {kind!r}")
    try:
        return CONFIG_MAPPING[kind].from_dict(content)
    except Exception as error:  # of many classes, and over many lines
        reason = " ".join(str(error).split())[:_MAX_REASON]
        raise ModelError(f"{source}: transformers refuses it: {reason}") from error
