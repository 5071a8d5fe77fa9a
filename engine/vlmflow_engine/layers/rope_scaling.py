"""Rotary frequencies as config.json asks for them: plain, or stretched to a longer context.

linear (arXiv 2306.15595) divides all frequencies by `factor`. llama3 divides the slow ones only,
with a smooth passage. yarn (arXiv 2309.00071) passes by a ramp over the dimensions, and makes
attention sharper. dynamic changes with the length of a sequence, but not before the context that
the model was made for is full. longrope (arXiv 2402.13753) has a factor for each frequency, and
another one for sequences that have outgrown that context.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vlmflow_engine.errors import ModelError

Parameters = dict[str, Any]


def rope_frequencies(text_config: Any, head_dim: int) -> tuple[Tensor, float]:
    """Read a transformers config's frequencies [head_dim / 2] and the factor of cosine and sine.

    Computed in float32 in transformers' order of operations. Raises ModelError for scalings that
    are not implemented, and for parameters that are missing or no numbers.
    """
    parameters = getattr(text_config, "rope_parameters", None) or {}
    kind = parameters.get("rope_type", "default")
    if kind not in _SCALINGS:
        raise ModelError(
            f"rope_type {kind!r} is not supported; supported are {', '.join(_SCALINGS)}"
        )
    # transformers itself heeds the share in scaled embeddings only.
    if kind != "default" and parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError("a partial_rotary_factor is not supported: all of a head is rotated")
    if kind == "longrope" and parameters.get("factor") is None:
        context = _number(parameters, "original_max_position_embeddings")
        factor = text_config.max_position_embeddings / context
        parameters = parameters | {"factor": factor}
    base = _number(parameters, "rope_theta", 10000.0, above=1.0)
    return _SCALINGS[kind](parameters, base, head_dim)


def long_rope(text_config: Any, head_dim: int) -> tuple[Tensor, int] | None:
    """Frequencies [head_dim / 2] of sequences of more than so many tokens; None without longrope.

    Raises ModelError.
    """
    parameters = getattr(text_config, "rope_parameters", None) or {}
    if parameters.get("rope_type") != "longrope":
        return None
    base = _number(parameters, "rope_theta", 10000.0, above=1.0)
    frequencies = 1.0 / (_factors(parameters, "long_factor", head_dim) * _periods(base, head_dim))
    return frequencies, int(_number(parameters, "original_max_position_embeddings"))


def rope_sections(text_config: Any, head_dim: int) -> tuple[int, ...]:
    """How many frequencies turn with time, height and width; none where a position is one number.

    Raises ModelError.
    """
    parameters = getattr(text_config, "rope_parameters", None) or {}
    sections = parameters.get("mrope_section")
    if sections is None:
        return ()
    if parameters.get("mrope_interleaved"):
        raise ModelError("rope_parameters: mrope_interleaved is not supported yet")
    if not _is_split(sections, head_dim // 2):
        raise ModelError(
            f"rope_parameters: mrope_section {sections!r} must be three numbers with a sum of "
            f"{head_dim // 2}, half of a head"
        )
    return tuple(sections)


def _is_split(sections: Any, total: int) -> bool:
    """Whether these are three whole numbers that add up to a total."""
    if not isinstance(sections, list | tuple) or len(sections) != 3:
        return False
    return all(type(size) is int and size >= 0 for size in sections) and sum(sections) == total


def _default(parameters: Parameters, base: float, dim: int) -> tuple[Tensor, float]:
    return 1.0 / _periods(base, dim), 1.0


def _linear(parameters: Parameters, base: float, dim: int) -> tuple[Tensor, float]:
    return 1.0 / _periods(base, dim) / _number(parameters, "factor"), 1.0


def _llama3(parameters: Parameters, base: float, dim: int) -> tuple[Tensor, float]:
    factor = _number(parameters, "factor")
    low, high = _number(parameters, "low_freq_factor"), _number(parameters, "high_freq_factor")
    if not low < high:
        raise ModelError(
            f"rope_parameters: low_freq_factor {low} must be below high_freq_factor {high}"
        )
    context = _number(parameters, "original_max_position_embeddings")
    frequencies = 1.0 / _periods(base, dim)
    wavelengths = 2 * math.pi / frequencies
    # 1 where at least `high` waves fit into the old context, 0 where fewer than `low` do.
    share = (context / wavelengths - low) / (high - low)
    between = (1 - share) * frequencies / factor + share * frequencies
    scaled = torch.where(wavelengths > context / low, frequencies / factor, between)
    return torch.where(wavelengths < context / high, frequencies, scaled), 1.0


def _yarn(parameters: Parameters, base: float, dim: int) -> tuple[Tensor, float]:
    factor = _number(parameters, "factor")
    context = _number(parameters, "original_max_position_embeddings")
    first, last = (
        dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))
        for turns in (_number(parameters, "beta_fast", 32), _number(parameters, "beta_slow", 1))
    )
    if parameters.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    if first == last:
        last += 0.001
    # 0 where the frequency stays, 1 where it is divided.
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - first) / (last - first)).clamp(0, 1)
    kept, periods = 1 - ramp, _periods(base, dim)
    frequencies = 1.0 / (factor * periods) * (1 - kept) + 1.0 / periods * kept
    return frequencies, _yarn_attention_factor(parameters, factor)


def _yarn_attention_factor(parameters: Parameters, factor: float) -> float:
    if parameters.get("attention_factor") is not None:
        return _number(parameters, "attention_factor")

    def sharpness(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        return sharpness(_number(parameters, "mscale")) / sharpness(
            _number(parameters, "mscale_all_dim")
        )
    return sharpness(1.0)


def _longrope(parameters: Parameters, base: float, dim: int) -> tuple[Tensor, float]:
    """Those of sequences within the original context; see `long_rope` for the others."""
    context = _number(parameters, "original_max_position_embeddings")
    frequencies = 1.0 / (_factors(parameters, "short_factor", dim) * _periods(base, dim))
    if parameters.get("attention_factor") is not None:
        return frequencies, _number(parameters, "attention_factor")
    factor = _number(parameters, "factor")
    return frequencies, max(1.0, math.sqrt(1 + math.log(factor) / math.log(context)))


_SCALINGS: dict[str, Callable[[Parameters, float, int], tuple[Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    # An engine's context ends at max_position_embeddings, and up to there nothing is stretched.
    "dynamic": _default,
    "longrope": _longrope,
}


def _factors(parameters: Parameters, name: str, dim: int) -> Tensor:
    values = parameters.get(name)
    if not isinstance(values, list | tuple) or len(values) != dim // 2:
        raise ModelError(
            f"rope_parameters: {name} must be {dim // 2} numbers, one for each pair of a head's "
            f"dimensions, got {repr(values)[:80]}"
        )
    return torch.tensor([_number({name: value}, name) for value in values], dtype=torch.float32)


def _periods(base: float, dim: int) -> Tensor:
    """Positions of one radian, [dim / 2]."""
    periods: Tensor = base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    return periods


def _number(
    parameters: Parameters, name: str, default: float | None = None, *, above: float = 0.0
) -> float:
    value = parameters.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < 1e30:
        raise ModelError(f"rope_parameters: {name} must be a number above {above:g}, got {value!r}")
    return value
