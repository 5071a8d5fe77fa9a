"""From a checkpoint's folder to a loaded model."""

import json
from pathlib import Path
from typing import Any

import torch

from vlmflow_engine.errors import ModelError
from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.models.llava import RENAMES, LlavaModel, check_kinds
from vlmflow_engine.models.weights import Checkpoint

ARCHITECTURES = ("LlavaForConditionalGeneration",)


def read_config(folder: Path) -> Any:
    """Read config.json with transformers' defaults; the checkpoint's own code is never run.

    Raises ModelError when there is none, or when its architecture is not one of ours.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder}: no config.json here; a model is a folder in Hugging Face form")
    raw = _read_object(path)
    architectures = raw.get("architectures") or ["none"]
    if architectures[0] not in ARCHITECTURES:
        raise ModelError(
            f"{path}: architecture {architectures[0]!r} is not supported; "
            f"supported are {', '.join(ARCHITECTURES)}"
        )
    if raw.get("quantization_config"):
        raise ModelError(f"{path}: quantised checkpoints are not supported yet")
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # of many classes, and over many lines
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{path}: transformers refuses it: {reason}") from error
    check_kinds(config)
    # One flag, kept in two places: some checkpoints set only the outer one.
    config.text_config.tie_word_embeddings = config.tie_word_embeddings
    return config


def image_format(config: Any) -> ImageFormat:
    """Tell what an image of this model is made of."""
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
    declared = _read_object(path).get("eos_token_id") if path.is_file() else None
    value = config.text_config.eos_token_id if declared is None else declared
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)


def load_model(
    folder: Path, config: Any, *, dtype: torch.dtype, device: torch.device
) -> LlavaModel:
    """Build the model and load its weights. Raises ModelError."""
    weights = Checkpoint(folder, RENAMES, dtype=dtype, device=device)
    return LlavaModel(config, weights, dtype=dtype, device=device)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: not a JSON object but a {type(content).__name__}")
    return content
