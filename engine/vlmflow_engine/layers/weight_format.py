"""Which format a model's weights are kept in, by the device and by what was asked for."""

import platform
from functools import cache
from pathlib import Path

import torch

from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import ConfigError
from vlmflow_engine.kernels.cpu.linear import linear_functions
from vlmflow_engine.kernels.dispatch import runs_triton
from vlmflow_engine.layers.int8_weight import Int8Format
from vlmflow_engine.layers.linear_weight import PlainFormat, WeightFormat
from vlmflow_engine.layers.packed_weight import PackedFormat

# Instructions that multiply bytes and add up without a loss.
_VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def choose_format(
    device: torch.device, dtype: torch.dtype, config: PytorchEngineConfig
) -> WeightFormat:
    """Return the format. Raises ConfigError where `quant` cannot be had."""
    quant = config.quant
    if quant is not None and device.type != "cpu":
        raise ConfigError(
            f"quant={quant!r} is for CPUs, and this model runs on a GPU; leave it out, or set "
            "device_type='cpu'"
        )
    # What a GPU does takes matrices as they are stored, also where it is done in the interpreter.
    is_plain = device.type != "cpu" or config.batch_invariant or runs_triton(torch.empty(0))
    packed = PlainFormat() if is_plain else _packed_format(dtype)
    if quant is None:
        return packed
    if dtype not in (torch.bfloat16, torch.float32):
        raise ConfigError(f"quant={quant!r} takes dtype 'bfloat16' or 'float32', got {dtype}")
    if not _cpu_flags() & _VNNI or not _has_onednn():
        raise ConfigError(
            f"quant={quant!r} takes a CPU that multiplies bytes (AVX512-VNNI, AVX-VNNI or AMX), "
            "and this one does not; leave it out"
        )
    return Int8Format(linear_functions(), packed)


def _packed_format(dtype: torch.dtype) -> WeightFormat:
    """Packed where oneDNN, or we, multiply in that dtype; else as stored."""
    is_known = platform.machine() in ("x86_64", "AMD64") and _has_onednn()
    is_fast = dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return PackedFormat(linear_functions()) if is_known and is_fast else PlainFormat()


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


@cache
def _cpu_flags() -> frozenset[str]:
    """What Linux calls the instruction sets of this CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
