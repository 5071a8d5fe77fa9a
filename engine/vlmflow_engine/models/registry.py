"""From a checkpoint's folder to a loaded model."""

import logging
from pathlib import Path
from typing import Any

import torch

from vlmflow_engine.errors import ConfigError, ForeignPartError, ModelError
from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.json_file import read_object
from vlmflow_engine.layers.linear_weight import WeightFormat
from vlmflow_engine.models import config_overrides
from vlmflow_engine.models.families.generic import GenericFamily
from vlmflow_engine.models.families.internvl import InternVLFamily
from vlmflow_engine.models.families.internvl_chat import InternVLChatFamily
from vlmflow_engine.models.families.language import LanguageFamily, LanguageModel
from vlmflow_engine.models.families.llava import LlavaFamily
from vlmflow_engine.models.families.llava_next import LlavaNextFamily
from vlmflow_engine.models.families.llava_original import LlavaOriginalFamily
from vlmflow_engine.models.families.qwen2_5_vl import Qwen25VLFamily
from vlmflow_engine.models.families.qwen2_vl import Qwen2VLFamily
from vlmflow_engine.models.family import Family, TextModel
from vlmflow_engine.models.quantisation import check_config

_log = logging.getLogger(__name__)

FAMILIES: tuple[Family, ...] = (
    LlavaFamily(),
    LlavaNextFamily(),
    LlavaOriginalFamily(),
    InternVLFamily(),
    InternVLChatFamily(),
    Qwen2VLFamily(),
    Qwen25VLFamily(),
    LanguageFamily(),
)
GENERIC = GenericFamily()  # for what is none of them


def read_config(folder: Path, overrides: dict[str, Any] | None = None) -> Any:
    """Read config.json with transformers' defaults; the checkpoint's own code is never run.

    overrides  fields that are to be others, nested as config.json is

    Raises ModelError when there is none, or when its architecture is not one of ours; ConfigError
    when an override names no field.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder}: no config.json here; a model is a folder with one")
    raw = read_object(path)
    merged = config_overrides.merge(raw, overrides) if overrides else raw
    source = f"{path} with hf_overrides" if overrides else str(path)
    architecture = _architecture(merged, source)
    family = _family(architecture, source)
    check_config(merged, source)
    config = family.read_config(merged, folder, source)
    config.architectures = [architecture]
    if overrides:
        family.check_overrides(config, overrides, raw)
    config.vlmflow_family = _checked(family, config, source).name  # what `family_of` goes by
    return config


def family_of(config: Any) -> Family:
    """The family of a config that `read_config` returned."""
    families = {family.name: family for family in (*FAMILIES, GENERIC)}
    return families[config.vlmflow_family]


def text_config(config: Any) -> Any:
    """Return the part of a config that describes the language model."""
    return family_of(config).text_config(config)


def image_format(config: Any) -> ImageFormat | None:
    """Tell what an image of this model is made of; None for a model of text alone."""
    return family_of(config).image_format(config)


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
    weight_format: WeightFormat | None = None,
) -> TextModel:
    """Build the model and load its weights.

    Raises ModelError; ConfigError if the model's weights cannot be kept in that format.

    language_model_only  of a model that takes images only the decoder, whose tensors alone are read
    weight_format        of its linear layers; None: as they are stored
    """
    family = family_of(config)
    if family is GENERIC and weight_format is not None and weight_format.is_quantised:
        raise ConfigError(
            f"{folder}: quant cannot be had for a model that runs through transformers' own code, "
            "which keeps weights as they are stored; leave it out"
        )
    weights = family.open(folder, config, dtype=dtype, device=device)
    if weight_format is not None:
        weights.set_format(weight_format)
    if not language_model_only or family is GENERIC:
        return family.load(config, weights, dtype=dtype, device=device)
    return LanguageModel(
        family.text_config(config),
        weights,
        renames=family.renames(config),
        dtype=dtype,
        device=device,
        unused_prefixes=family.vision_prefixes,
    )


def _architecture(raw: dict[str, Any], source: str) -> str:
    declared = raw.get("architectures")
    if not declared:
        raise ModelError(
            f"{source} names no architectures (its model_type is {raw.get('model_type')!r}); "
            f"supported are {_supported()}"
        )
    return str(declared[0] if isinstance(declared, list) else declared)


def _family(architecture: str, source: str) -> Family:
    for family in FAMILIES:
        if architecture in family.architectures:
            return family
    if GENERIC.knows(architecture):
        return GENERIC
    raise ModelError(
        f"{source}: architecture {architecture!r} is not supported; supported are {_supported()}"
    )


def _supported() -> str:
    ours = ", ".join(name for family in FAMILIES for name in family.architectures)
    return f"{ours}, and what transformers itself can load as AutoModelForImageTextToText"


def _checked(family: Family, config: Any, source: str) -> Family:
    """The family that runs a config: its own, or the generic one if a part of it is not ours."""
    architecture = config.architectures[0]
    foreign = ""
    if family is not GENERIC:
        try:
            family.check(config)
            return family
        except ForeignPartError as error:
            if not GENERIC.knows(architecture):
                raise
            foreign = f"{error}; "
    try:
        GENERIC.check(config)
    except ModelError as error:
        raise ModelError(
            f"{source}: {foreign}{architecture} cannot run through transformers' own code: {error}"
        ) from error
    _log.warning(
        "%s runs through transformers' own code, with our paged attention: right, but slower than "
        "a family of our own (docs/models.md)",
        architecture,
    )
    return GENERIC
