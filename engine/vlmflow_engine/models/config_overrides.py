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
# Written as fields in config.json, though a config keeps them elsewhere or is chosen by them.
_OTHER_NAMES = ("architectures", "model_type")
_SPELLINGS = ({"image_token_id", "image_token_index"},)  # one field under two names


def merge(raw: Object, overrides: Object) -> Object:
    """Return a copy of `raw` with `overrides` laid over it, object by object."""
    merged = deepcopy(raw)
    overrides = deepcopy(overrides)
    if any(name in overrides for name in _ROPE_NAMES):
        ours, theirs = _take_rope(overrides), _take_rope(merged)
        if ours.get("rope_type", theirs.get("rope_type")) != theirs.get("rope_type"):
            # Another scaling has other parameters; only the base is common to all.
            theirs = {name: theirs[name] for name in ("rope_theta",) if name in theirs}
        merged["rope_parameters"] = theirs | ours
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
    known = _names(config) | raw.keys()
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
    theta = section.pop("rope_theta", None)
    parameters, scaling = section.pop("rope_parameters", None), section.pop("rope_scaling", None)
    chosen = scaling or parameters or {}
    if not isinstance(chosen, dict):
        raise ConfigError(f"hf_overrides: rope_scaling must be a dict or None, got {chosen!r}")
    kind = chosen.pop("type", None)
    if kind is not None:
        chosen.setdefault("rope_type", kind)
    if theta is not None:
        chosen.setdefault("rope_theta", theta)
    return chosen


def _names(config: Any) -> set[str]:
    names = {item.name for item in fields(config)} | set(config.attribute_map) | set(_OTHER_NAMES)
    return names | set(_ROPE_NAMES) if hasattr(config, "rope_parameters") else names


def _unknown(config: Any, path: str, name: str) -> str:
    parts = [item.name for item in fields(config) if _is_config(getattr(config, item.name))]
    homes = [part for part in parts if name in _names(getattr(config, part))]
    hint = f"; {homes[-1]} has one" if homes else ""
    return f"{path!r} is no field of a {type(config).__name__}{hint}"


def _is_config(value: Any) -> bool:
    return hasattr(value, "attribute_map")
