"""Which device, which dtype, how much memory."""

import platform
from functools import cache
from pathlib import Path

import psutil
import torch

from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import ConfigError


def resolve_device(config: PytorchEngineConfig) -> torch.device:
    """Turn `device_type` into a device. Raises ConfigError for cuda where there is none."""
    has_cuda = torch.cuda.is_available()
    if config.device_type == "cuda" and not has_cuda:
        raise ConfigError("device_type='cuda', but torch sees no CUDA device; use 'cpu' or 'auto'")
    return torch.device("cuda" if has_cuda and config.device_type != "cpu" else "cpu")


def device_name(device: torch.device) -> str:
    """What a person calls it: the GPU's name, or the CPU's architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.machine()


def resolve_dtype(config: PytorchEngineConfig, device: torch.device) -> torch.dtype:
    """Turn `dtype` into torch's; "auto" is bfloat16 where the device computes in it."""
    if config.dtype != "auto":
        dtype = getattr(torch, config.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype
    if device.type == "cuda" or _cpu_has_bfloat16():
        return torch.bfloat16
    return torch.float32


def free_memory_bytes(device: torch.device) -> int:
    """Memory that the engine may share out: what is free on a GPU, half of what is on a host.

    A host's memory is used by others too: the job, the images in flight, the files' cache. A
    container's limit counts where it is lower.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    available: int = psutil.virtual_memory().available
    return min(available, _container_free_bytes()) // 2


@cache
def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; emulated it is slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _inactive_file_bytes(path: Path) -> int:
    names = ("inactive_file", "total_inactive_file")  # cgroup v2, v1
    try:
        values = dict(line.split() for line in path.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return next((int(values[name]) for name in reversed(names) if name in values), 0)


def _container_free_bytes() -> int:
    for limit_path, usage_path in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            limit, usage = Path(limit_path).read_text(), Path(usage_path).read_text()
            # The files' cache is counted as used, but given back when memory is asked for.
            used = int(usage) - _inactive_file_bytes(Path(usage_path).with_name("memory.stat"))
            return max(0, int(limit) - used)
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return 1 << 62
