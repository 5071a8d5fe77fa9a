"""The config.json of OpenGVLab's original InternVL, read into transformers' InternVLConfig.

Defaults are those of the authors' config classes, whose code is never run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vlmflow_engine.errors import ConfigError, ModelError
from vlmflow_engine.image_format import MAX_TILES
from vlmflow_engine.models import config_overrides
from vlmflow_engine.models.family import parse_config
from vlmflow_engine.models.intern_projector import square_side

_TOP = (
    ("architectures", "llm_config", "vision_config", "downsample_ratio", "dynamic_image_size")
    + ("force_image_size", "max_dynamic_patch", "min_dynamic_patch", "pad2square", "ps_version")
    + ("select_layer", "system_message", "template", "use_thumbnail")
)
# Of vision_config: the authors' name, transformers', and the default.
_VISION = (
    ("hidden_size", "hidden_size", 3200),
    ("intermediate_size", "intermediate_size", 12800),
    ("num_hidden_layers", "num_hidden_layers", 48),
    ("num_attention_heads", "num_attention_heads", 25),
    ("num_channels", "num_channels", 3),
    ("image_size", "image_size", 224),
    ("patch_size", "patch_size", 14),
    ("hidden_act", "hidden_act", "gelu"),
    ("norm_type", "norm_type", "rms_norm"),
    ("layer_norm_eps", "layer_norm_eps", 1e-6),
    ("qkv_bias", "attention_bias", False),
    ("qk_normalization", "use_qk_norm", True),
)
# Language models by their architecture, and what transformers calls them.
_KINDS = {
    "InternLM2ForCausalLM": "llama",  # Llama under other names
    "LlamaForCausalLM": "llama",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_ARCHITECTURES = {
    "internlm2": "InternLM2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_INTERNLM2_DEFAULTS = {"vocab_size": 103168, "bias": True, "pad_token_id": 0}
_ROPE_NAMES = ("rope_theta", "rope_scaling", "rope_parameters")
# Fields of every config that say nothing of the model.
_FOREIGN = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")
_TEMPLATES = {
    "Hermes-2": "internvl2-internlm2",
    "internlm2-chat": "internvl2-internlm2",
    "phi3-chat": "internvl2-phi3",
    "internvl2_5": "internvl2_5",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """What the authors' config says of images and prompts beside the model's shape."""

    side: int  # of a tile, in pixels
    min_tiles: int
    max_tiles: int
    is_dynamic: bool  # whether an image is more than one tile
    has_thumbnail: bool
    template: str | None  # a built-in chat template; None: the tokenizer's own
    system: str | None  # its system message, if it is another


def read_internvl_chat(raw: Mapping[str, Any], source: str) -> Any:
    """Return an InternVLConfig with `image_settings` and `ps_version` beside transformers' fields.

    Raises ModelError, naming `source`.
    """
    reader = _Reader(raw, source)
    vision, text = reader.section("vision_config", {}), reader.section("llm_config")
    for name in ("use_backbone_lora", "use_llm_lora", "pad2square"):
        if raw.get(name):
            raise ModelError(f"{source}: {name}={raw[name]!r} is not supported")
    config = parse_config(
        {
            "model_type": "internvl",
            "vision_config": _vision(vision),
            "text_config": _text(text, source),
            "downsample_ratio": raw.get("downsample_ratio", 0.5),
            "vision_feature_layer": raw.get("select_layer", -1),
            "projector_hidden_act": "gelu",
        },
        source,
    )
    config.tie_word_embeddings = config.text_config.tie_word_embeddings
    config.vision_config.qk_norm_eps = config.vision_config.layer_norm_eps
    config.ps_version = reader.choice("ps_version", "v1", ("v1", "v2"))
    config.image_settings = _image_settings(reader, config)
    return config


def check_overrides(config: Any, overrides: dict[str, Any], raw: Mapping[str, Any]) -> None:
    """Raise ConfigError if an override of the authors' config.json names no field of theirs.

    config  what `read_internvl_chat` returned; raw  the file's content
    """
    known = {
        "": {*_TOP, *raw},
        "vision_config.": {name for name, _, _ in _VISION} | {*(raw.get("vision_config") or {})},
    }
    for path, names in known.items():
        for name in (overrides.get(path[:-1]) or {}) if path else overrides:
            if name not in names:
                raise ConfigError(f"hf_overrides: {path + name!r} is no field of an InternVL's")
    language, known_there = overrides.get("llm_config") or {}, raw.get("llm_config") or {}
    config_overrides.check_names(config.text_config, language, known_there, "llm_config.")


def _vision(raw: Mapping[str, Any]) -> dict[str, Any]:
    vision = {ours: raw.get(theirs, default) for theirs, ours, default in _VISION}
    return {"model_type": "internvl_vision"} | vision


def _text(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    from transformers import CONFIG_MAPPING

    architecture = _architecture(raw)
    if architecture not in _KINDS:
        raise ModelError(
            f"{source}: a language model {architecture!r} is not supported; supported are "
            f"{', '.join(_KINDS)}"
        )
    kind, content = _KINDS[architecture], dict(raw)
    if architecture == "InternLM2ForCausalLM":
        content = _INTERNLM2_DEFAULTS | content
        content["attention_bias"], content["mlp_bias"] = content["bias"], False
        if content.get("rope_pos_id_version", "default") != "default":
            raise ModelError(
                f"{source}: rope_pos_id_version {content['rope_pos_id_version']!r} is not supported"
            )
    scaling = content.get("rope_scaling")
    if kind == "phi3" and isinstance(scaling, dict) and scaling.get("type") == "su":
        content["rope_scaling"] = scaling | {"type": "longrope"}  # its older name
    # The authors save every field that any model could have, also those of generation.
    known = {item.name for item in fields(CONFIG_MAPPING[kind])} | set(_ROPE_NAMES)
    kept = {name: content[name] for name in content if name in known and name not in _FOREIGN}
    return kept | {"model_type": kind}


def _architecture(raw: Mapping[str, Any]) -> str:
    """Of a language model's config, which may name its model_type alone."""
    declared = raw.get("architectures")
    if isinstance(declared, list) and declared:
        return str(declared[0])[:80]
    kind = str(raw.get("model_type"))[:80]
    return _ARCHITECTURES.get(kind, kind)


def _image_settings(reader: "_Reader", config: Any) -> ImageSettings:
    low = reader.count("min_dynamic_patch", 1, MAX_TILES)
    high = reader.count("max_dynamic_patch", 6, MAX_TILES)
    if low > high:
        raise ModelError(
            f"{reader.source}: min_dynamic_patch {low} is above max_dynamic_patch {high}"
        )
    template = reader.text("template")
    if template is not None and template not in _TEMPLATES:
        raise ModelError(
            f"{reader.source}: template {template!r} is not supported; supported are "
            f"{', '.join(_TEMPLATES)}"
        )
    trained = square_side(config.vision_config, "image_size")
    return ImageSettings(
        side=reader.count("force_image_size", trained, 1 << 14),
        min_tiles=low,
        max_tiles=high,
        is_dynamic=reader.flag("dynamic_image_size"),
        has_thumbnail=reader.flag("use_thumbnail"),
        template=None if template is None else _TEMPLATES[template],
        system=reader.text("system_message"),
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Takes fields of one kind out of a config.json; absent and null are the default."""

    raw: Mapping[str, Any]
    source: str

    def section(self, name: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
        value = self._value(name, default)
        if not isinstance(value, dict):
            raise self._wrong(name, "an object", value)
        return value

    def count(self, name: str, default: int, most: int) -> int:
        value = self._value(name, default)
        if type(value) is not int or not 1 <= value <= most:
            raise self._wrong(name, f"a whole number from 1 to {most}", value)
        return value

    def flag(self, name: str) -> bool:
        value = self._value(name, False)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def text(self, name: str) -> str | None:
        value = self._value(name, None)
        if not isinstance(value, str | None):
            raise self._wrong(name, "a text", value)
        return value

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        value = self._value(name, default)
        if value not in allowed:
            raise self._wrong(name, " or ".join(map(repr, allowed)), value)
        return str(value)

    def _value(self, name: str, default: Any) -> Any:
        value = self.raw.get(name)
        return default if value is None else value

    def _wrong(self, name: str, allowed: str, value: Any) -> ModelError:
        return ModelError(f"{self.source}: {name} must be {allowed}, got {repr(value)[:80]}")
