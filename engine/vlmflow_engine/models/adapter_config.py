"""An adapter's adapter_config.json, PEFT's LoraConfig: which layers, which rank, which scaling."""

import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vlmflow_engine.checks import is_whole
from vlmflow_engine.errors import ModelError
from vlmflow_engine.json_file import parse_object

_log = logging.getLogger(__name__)

_Number = TypeVar("_Number", int, float)

# Fields that ask for more than plain LoRA on linear layers, unless they are empty, and why not.
_PLAIN_ONLY = "only plain LoRA is applied; merge the adapter into the model"
_NO_BIAS = "trained biases are not applied; merge the adapter into the model"
_REFUSED = {
    "alora_invocation_tokens": "an adapter is there for the whole of a request",
    "arrow_config": _PLAIN_ONLY,
    "bias": _NO_BIAS,
    "fan_in_fan_out": "the model's layers are not transposed",
    "init_lora_weights": "it changes the base model too; save the adapter as plain LoRA",
    "kasa_config": _PLAIN_ONLY,
    "layer_replication": "the model's layers are what they are",
    "lora_bias": _NO_BIAS,
    "megatron_config": "adapters of Megatron's layers are not read",
    "modules_to_save": "whole modules are not replaced; merge the adapter into the model",
    "monteclora_config": _PLAIN_ONLY,
    "target_parameters": "only linear layers take an adapter",
    "trainable_token_indices": "the embeddings take no adapter",
    "use_bdlora": _PLAIN_ONLY,
    "use_dora": _PLAIN_ONLY,
    "use_qalora": _PLAIN_ONLY,
}
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    # The other ways move a part of the base model's weights into the adapter.
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),
}
# Fields that say how it was trained, and those that are read below.
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
    "inference_mode", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
    "velora_config",
}  # fmt: skip
_READ = {
    "alpha_pattern", "exclude_modules", "layers_pattern", "layers_to_transform", "lora_alpha",
    "peft_type", "r", "rank_pattern", "target_modules", "use_rslora",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """What PEFT's LoraConfig says of the layers by name."""

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]  # regular expression of a name's end -> rank
    alpha_pattern: Mapping[str, float]
    target_modules: str | tuple[str, ...]  # a regular expression of the whole name, or names' ends
    exclude_modules: str | tuple[str, ...]
    layers: frozenset[int]  # empty: all
    layers_patterns: tuple[str, ...]  # of what stands before a layer's index; empty: anything

    def rank_of(self, module: str) -> int:
        return _look_up(self.rank_pattern, module, self.rank)

    def scaling_of(self, module: str) -> float:
        """What B A is multiplied with."""
        rank, alpha = self.rank_of(module), _look_up(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def is_target(self, module: str) -> bool:
        """Whether the adapter has weights for a layer."""
        if _is_named(self.exclude_modules, module) or not _is_named(self.target_modules, module):
            return False
        # A choice of layers counts for the ends of names only.
        is_end = isinstance(self.target_modules, tuple) and module not in self.target_modules
        if not self.layers or not is_end:
            return True
        for pattern in self.layers_patterns or (r"[^.]*",):
            match = re.match(rf"(?:.*?\.)?{pattern}\.(\d+)\.", module)
            if match:
                return int(match.group(1)) in self.layers
        return False


def parse_adapter_config(path: Path, raw: bytes) -> AdapterConfig:
    """Read the content of `path`. Raises ModelError for what is not plain LoRA."""
    fields = parse_object(raw, path)
    if fields.get("peft_type") != "LORA":
        raise ModelError(
            f"{path}: peft_type={fields.get('peft_type')!r} is not supported: only 'LORA' is"
        )
    for name, reason in _REFUSED.items():
        value = fields.get(name)
        if value and value not in _ALLOWED.get(name, ()):
            raise ModelError(f"{path}: {name}={value!r} is not supported: {reason}")
    for name, value in fields.items():
        if value and name not in _REFUSED.keys() | _WITHOUT_EFFECT | _READ:
            _log.warning("%s: %s=%r is not known and has no effect", path, name, value)
    try:
        return _parse(fields)
    except (KeyError, TypeError, ValueError, re.error) as error:
        raise ModelError(f"{path}: not a config of PEFT's LoRA: {error}") from error


def _parse(fields: dict[str, Any]) -> AdapterConfig:
    layers, patterns = fields.get("layers_to_transform"), fields.get("layers_pattern") or ()
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for pattern in patterns:
        re.compile(pattern)
    return AdapterConfig(
        rank=_rank("r", fields.get("r")),
        alpha=_number("lora_alpha", fields.get("lora_alpha")),
        use_rslora=bool(fields.get("use_rslora")),
        rank_pattern=_by_pattern("rank_pattern", fields.get("rank_pattern"), _rank),
        alpha_pattern=_by_pattern("alpha_pattern", fields.get("alpha_pattern"), _number),
        target_modules=_names("target_modules", fields.get("target_modules")),
        exclude_modules=_names("exclude_modules", fields.get("exclude_modules")),
        layers=frozenset([layers] if isinstance(layers, int) else layers or ()),
        layers_patterns=patterns,
    )


def _rank(name: str, value: Any) -> int:
    if not is_whole(value) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return value


def _by_pattern(name: str, value: Any, check: Callable[[str, Any], _Number]) -> dict[str, _Number]:
    if not isinstance(value or {}, dict):
        raise ValueError(f"{name} must be an object, got {value!r}")
    return {str(re.compile(key).pattern): check(name, item) for key, item in (value or {}).items()}


def _names(field: str, value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str):
        re.compile(value)
        return value
    if value is None:
        return ()
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise ValueError(f"{field} must be a regular expression or a list of names, got {value!r}")


def _is_named(names: str | tuple[str, ...], module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _look_up(patterns: Mapping[str, _Number], module: str, default: _Number) -> _Number:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
