"""`hf_overrides` laid over the content of a config.json, before transformers reads it.

Rotary parameters have had three spellings (`rope_theta` beside `rope_scaling`, and `type` in it);
what is overridden in one of them must win over what a file says in another.
"""

from copy import deepcopy
from dataclasses import fields
from typing import Any

from vlmflow_engine.errors import ConfigError

Object = dict[str, Any]

_ROPE_NAMES = ("rope_theta", "rope_scaling", "rope_parameters")
_ROPE_COMMON = ("rope_theta", "mrope_section")
_ROPE_PARAMETERS = (
    ("rope_type", "rope_theta", "factor", "original_max_position_embeddings")
    + ("low_freq_factor", "high_freq_factor", "attention_factor", "beta_fast", "beta_slow")
    + ("mscale", "mscale_all_dim", "truncate", "partial_rotary_factor", "mrope_section")
)
# Written as fields in config.json, though a config keeps them elsewhere or is chosen by them.
_OTHER_NAMES = ("architectures", "model_type")
_SPELLINGS = ({"image_token_id", "image_token_index"},)  # one field under two names


def merge(raw: Object, overrides: Object) -> Object:
    """Return a copy of `raw` with `overrides` laid over it, object by object.

    Raises ConfigError for rotary parameters that nobody would read.
    """
    merged = deepcopy(raw)
    overrides = deepcopy(overrides)
    if any(name in overrides for name in _ROPE_NAMES):
        ours, theirs = _take_rope(overrides), _take_rope(merged)
        if ours.get("rope_type", theirs.get("rope_type")) != theirs.get("rope_type"):
            # Another scaling has other parameters; only these are common to all.
            theirs = {name: theirs[name] for name in _ROPE_COMMON if name in theirs}
        merged["rope_parameters"] = theirs | ours
        _check_rope(ours, merged["rope_parameters"])
    for spellings in _SPELLINGS:
        if spellings & overrides.keys():
            merged = {name: value for name, value in merged.items() if name not in spellings}
    for name, value in overrides.items():
        is_nested = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], value) if is_nested else value
    return merged


def check_names(config: Any, overrides: Object, raw: Object, path: str = "") -> None:
    """Raise ConfigError if an override names nothing that `config` or its file has.

    config  transformers' config, with the overrides in it; it takes any name without a word
    raw     the content of config.json
    """
    known = field_names(config) | raw.keys()
    for name, value in overrides.items():
        here = f"{path}{name}"
        if name not in known:
            raise ConfigError(f"hf_overrides: {_unknown(config, here, str(name))}")
        nested = getattr(config, name, None)
        if not _is_config(nested):
            continue
        if not isinstance(value, dict):
            raise ConfigError(f"hf_overrides: {here} must be a dict, got {value!r}")
        inner = raw.get(name)
        check_names(nested, value, inner if isinstance(inner, dict) else {}, f"{here}.")


def _take_rope(section: Object) -> Object:
    """Take the rotary parameters out of a section, in transformers' newest spelling."""
    is_none = section.get("rope_scaling", ...) is None
    theta = section.pop("rope_theta", None)
    parameters, scaling = section.pop("rope_parameters", None), section.pop("rope_scaling", None)
    chosen = scaling or parameters or ({"rope_type": "default"} if is_none else {})
    if not isinstance(chosen, dict):
        raise ConfigError(f"hf_overrides: rope_scaling must be a dict or None, got {chosen!r}")
    kind = chosen.pop("type", None)
    if kind is not None:
        chosen.setdefault("rope_type", kind)
    if theta is not None:
        chosen.setdefault("rope_theta", theta)
    return chosen


def _check_rope(ours: Object, together: Object) -> None:
    """What transformers passes over in silence."""
    for name in ours:
        if name not in _ROPE_PARAMETERS:
            raise ConfigError(f"hf_overrides: {name!r} is no parameter of a rotary embedding")
    unread = ours.keys() - {"rope_type", "partial_rotary_factor", *_ROPE_COMMON}
    if unread and together.get("rope_type", "default") == "default":
        raise ConfigError(
            f"hf_overrides: {min(unread)!r} has no effect on a rotary embedding that is not "
            "scaled; name a rope_type too"
        )


def field_names(config: Any) -> set[str]:
    """What the fields of a transformers config are called in a file, in any spelling."""
    names = {item.name for item in fields(config)} | set(config.attribute_map) | set(_OTHER_NAMES)
    return names | set(_ROPE_NAMES) if "rope_parameters" in names else names


def _unknown(config: Any, path: str, name: str) -> str:
    parts = [item.name for item in fields(config) if _is_config(getattr(config, item.name))]
    homes = [part for part in parts if name in field_names(getattr(config, part))]
    hint = f"; {homes[-1]} has one" if homes else ""
    return f"{path!r} is no field of a {type(config).__name__}{hint}"


def _is_config(value: Any) -> bool:
    return hasattr(value, "attribute_map")
