"""LLaVA-1.5 and 1.6 as their authors saved them (liuhaotian/llava-v1.*): one flat config.json.

The config that `read_config` returns is transformers' of a LLaVA; what that has no field for is in
its `original`, under the authors' names (github.com/haotian-liu/LLaVA).
"""

import ast
import re
from pathlib import Path
from typing import Any

import torch

from vlmflow_engine.errors import ConfigError, ModelError
from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.json_file import read_object
from vlmflow_engine.models.clip_folder import find_tower, missing_tower, tower_config
from vlmflow_engine.models.clip_projector import PREFIXES, check_vision, rows_per_tile
from vlmflow_engine.models.decoder import check_kind
from vlmflow_engine.models.families.llava import LlavaModel
from vlmflow_engine.models.families.llava_next import LlavaNextModel, check_whole_patches
from vlmflow_engine.models.family import Family, parse_config
from vlmflow_engine.models.weights import Checkpoint, Renames

_TEXT_KINDS = {"LlavaLlamaForCausalLM": "llama", "LlavaMistralForCausalLM": "mistral"}
# What a checkpoint that says nothing about it was trained with.
_DEFAULTS: dict[str, Any] = {
    "image_aspect_ratio": "square",
    "mm_patch_merge_type": "flat",
    "mm_projector_type": "linear",
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
}
_STRATEGIES = {"patch": "default", "cls_patch": "full"}
_MERGES = ("flat", "spatial", "spatial_unpad")
_ASPECTS = ("anyres", "pad", "square")
# Their names in a tower of its own.
_TOWER_RENAMES: Renames = ((r"vision_model\.", "vision."),)


class LlavaOriginalFamily(Family):
    name = "LLaVA-1.5 and 1.6"
    form = "original"
    architectures = tuple(_TEXT_KINDS)
    checkpoints = "liuhaotian/llava-v1.5-*, liuhaotian/llava-v1.6-*"
    tested = "against its Hugging Face twin bit by bit, and the authors' rules of tiles and prompts"
    limits = "the CLIP tower of a LLaVA-1.5 has to lie in the folder that mm_vision_tower names"
    vision_prefixes = (*PREFIXES, "newline")

    def read_config(self, raw: dict[str, Any], folder: Path, source: str) -> Any:
        original = {name: raw.get(name, default) for name, default in _DEFAULTS.items()}
        tower = raw.get("mm_vision_tower") or raw.get("vision_tower")
        if not isinstance(tower, str):
            raise ModelError(f"{source}: mm_vision_tower must name a CLIP tower, got {tower!r}")
        original |= {"mm_vision_tower": tower}
        _check_choices(original, raw, source)
        fields: dict[str, Any] = {
            "model_type": "llava",
            "text_config": _text_fields(raw),
            "vision_config": tower_config(folder, tower),
            "vision_feature_layer": original["mm_vision_select_layer"],
            "vision_feature_select_strategy": _STRATEGIES[original["mm_vision_select_feature"]],
            "tie_word_embeddings": raw.get("tie_word_embeddings", False),
        }
        if original["image_aspect_ratio"] == "anyres":
            fields["model_type"] = "llava_next"
            fields["image_grid_pinpoints"] = _pinpoints(raw, source)
        config = parse_config(fields, source)
        config.original = original | {"preprocessor": _preprocessor(folder, tower)}
        return config

    def check_overrides(self, config: Any, overrides: dict[str, Any], raw: dict[str, Any]) -> None:
        known = raw.keys() | _DEFAULTS.keys() | set(dir(config.text_config))
        for name in overrides:
            if name not in known:
                raise ConfigError(f"hf_overrides: {name!r} is no field of an original LLaVA")

    def check(self, config: Any) -> None:
        check_vision(config)
        check_kind(config.text_config)
        config.text_config.tie_word_embeddings = config.tie_word_embeddings
        if _is_tiled(config):
            check_whole_patches(config)

    def text_config(self, config: Any) -> Any:
        return config.text_config

    def image_format(self, config: Any) -> ImageFormat:
        side = config.vision_config.image_size
        parameters = {"side": side, "preprocessor": config.original["preprocessor"]}
        if _is_tiled(config):
            parameters |= {
                "features": side // config.vision_config.patch_size,
                "pinpoints": config.image_grid_pinpoints,
                "merge": config.original["mm_patch_merge_type"],
                "rounds": False,
            }
        else:
            parameters |= {
                "num_rows": rows_per_tile(config),
                "pads": config.original["image_aspect_ratio"] == "pad",
            }
        return ImageFormat(
            processor="anyres" if _is_tiled(config) else "llava_square",
            parameters=parameters,
            token="<image>",
            is_outside_vocabulary=True,
            fallback_template=_FALLBACKS[config.text_config.model_type],
        )

    def renames(self, config: Any) -> Renames:
        return (
            (r"model\.vision_tower\.(vision_tower\.)?(vision_model\.)?", "vision."),
            *(
                (rf"model\.mm_projector\.{2 * index}\.", f"projector.linear_{index + 1}.")
                for index in range(_num_linears(config))
            ),
            (r"model\.mm_projector\.(?=weight|bias)", "projector.linear_1."),
            (r"model\.image_newline$", "newline"),
            (r"model\.", "text."),
        )

    def open(
        self, folder: Path, config: Any, *, dtype: torch.dtype, device: torch.device
    ) -> Checkpoint:
        weights = super().open(folder, config, dtype=dtype, device=device)
        if "vision.embeddings.class_embedding" not in weights:
            name = config.original["mm_vision_tower"]
            tower = find_tower(folder, name)
            if tower is None:
                raise missing_tower(folder, name)
            weights.add(tower, _TOWER_RENAMES)
        return weights

    def load(
        self, config: Any, weights: Checkpoint, *, dtype: torch.dtype, device: torch.device
    ) -> LlavaModel:
        renames, num_linears = self.renames(config), _num_linears(config)
        if not _is_tiled(config):
            return LlavaModel(
                config,
                weights,
                renames=renames,
                dtype=dtype,
                device=device,
                num_linears=num_linears,
            )
        return LlavaNextModel(
            config,
            weights,
            renames=renames,
            dtype=dtype,
            device=device,
            num_linears=num_linears,
            merge=config.original["mm_patch_merge_type"],
        )


_FALLBACKS = {"llama": "llava-v1", "mistral": "mistral"}


def _check_choices(original: dict[str, Any], raw: dict[str, Any], source: str) -> None:
    """Raise ModelError for what a checkpoint may say and we do not know."""
    choices = {
        "image_aspect_ratio": _ASPECTS,
        "mm_patch_merge_type": _MERGES,
        "mm_vision_select_feature": tuple(_STRATEGIES),
    }
    for name, allowed in choices.items():
        if original[name] not in allowed:
            raise ModelError(
                f"{source}: {name} must be one of {', '.join(allowed)}, got {original[name]!r}"
            )
    projector = original["mm_projector_type"]
    if projector not in ("linear", "identity") and not _mlp_depth(projector):
        raise ModelError(
            f"{source}: mm_projector_type must be linear, identity or mlp<layers>x_gelu, got "
            f"{projector!r}"
        )
    for name in ("mm_use_im_start_end", "mm_use_im_patch_token"):
        if raw.get(name):
            raise ModelError(f"{source}: {name}=true is not supported: no LLaVA from 1.5 on has it")


def _text_fields(raw: dict[str, Any]) -> dict[str, Any]:
    """The decoder's fields of a flat config."""
    architecture = raw["architectures"][0]
    foreign = ("mm_", "image_", "vision_", "tune_", "unfreeze_", "freeze_", "architectures")
    fields = {name: value for name, value in raw.items() if not name.startswith(foreign)}
    return fields | {"model_type": _TEXT_KINDS[architecture]}


def _pinpoints(raw: dict[str, Any], source: str) -> Any:
    """image_grid_pinpoints, [(width, height), ...]; some checkpoints have them as a string."""
    declared = raw.get("image_grid_pinpoints")
    if isinstance(declared, str):
        try:
            declared = ast.literal_eval(declared)
        except (ValueError, SyntaxError) as error:
            raise ModelError(
                f"{source}: image_grid_pinpoints must be a list of [width, height], got "
                f"{declared[:100]!r}"
            ) from error
    if not isinstance(declared, list):
        raise ModelError(
            f"{source}: image_aspect_ratio 'anyres' needs image_grid_pinpoints, a list of [width, "
            f"height], got {repr(declared)[:100]}"
        )
    return declared


def _preprocessor(folder: Path, tower: str) -> dict[str, Any]:
    """What the tower's own folder says of its image processor; without one CLIP's defaults hold."""
    own = find_tower(folder, tower)
    if own is None or not (own / "preprocessor_config.json").is_file():
        return {}
    return read_object(own / "preprocessor_config.json")


def _is_tiled(config: Any) -> bool:
    return bool(config.original["image_aspect_ratio"] == "anyres")


def _num_linears(config: Any) -> int:
    kind = config.original["mm_projector_type"]
    return 1 if kind == "linear" else _mlp_depth(kind)


def _mlp_depth(kind: Any) -> int:
    """How many layers "mlp2x_gelu" has; 0 for what is no such name."""
    found = re.fullmatch(r"mlp([1-9]\d?)x_gelu", kind) if isinstance(kind, str) else None
    return int(found[1]) if found else 0
