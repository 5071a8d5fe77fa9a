"""Checkpoints whose weights are quantised: told by their config or their tensors, and refused."""

from collections.abc import Mapping
from typing import Any

import torch

from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.tensor_file import StoredTensor

FORMATS = {
    "awq": "AWQ",
    "gptq": "GPTQ",
    "fp8": "FP8",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
}

# How a tensor's name ends that only a quantised checkpoint has. GPTQ's and AWQ's packed weights
# have one name; GPTQ alone orders groups by `g_idx`.
_ENDINGS = {
    ".g_idx": "gptq",
    ".qweight": "awq",
    ".qzeros": "awq",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "compressed-tensors",
    ".weight_scale_inv": "fp8",
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
}
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_MAX_SHOWN = 40  # characters of what a file calls its method


def check_config(config: Mapping[str, Any], source: str) -> None:
    """Raise ModelError if a config.json, or its part for the language model, tells of quantisation.

    source  the file, for the sentence
    """
    for part in (config, *(config.get(name) for name in ("text_config", "llm_config"))):
        if isinstance(part, Mapping):
            found = part.get("quantization_config") or part.get("compression_config")
            if found:
                raise _refusal(source, _method(found))


def check_tensors(tensors: Mapping[str, StoredTensor], source: str) -> None:
    """Raise ModelError if a file's tensors are those of a quantised checkpoint."""
    if any(stored.dtype in _FLOAT8 for stored in tensors.values()):
        raise _refusal(source, "fp8")
    for ending, method in _ENDINGS.items():
        if any(name.endswith(ending) for name in tensors):
            raise _refusal(source, method)


def _method(config: Any) -> str:
    """The method that a quantization_config names; older ones have only their own options."""
    if not isinstance(config, Mapping):
        return "unknown"
    if config.get("load_in_4bit") or config.get("load_in_8bit"):
        return "bitsandbytes"
    return str(config.get("quant_method") or "unknown")[:_MAX_SHOWN]


def _refusal(source: str, method: str) -> ModelError:
    *most, last = FORMATS.values()
    return ModelError(
        f"{source}: the weights are quantised ({FORMATS.get(method.lower(), repr(method))}), and "
        f"none of the known formats ({', '.join(most)} and {last}) can be run yet; take the "
        "checkpoint in float32, float16 or bfloat16"
    )
