"""What NVIDIA's driver says of its GPUs, by its own library: nothing to install, no process.

Structures and names are those of NVML's C interface, nvml.h.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

_LIBRARY = "libnvidia-ml.so.1"
_TEXT_BYTES = 96


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))  # per cent


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One GPU at one moment. What the driver does not tell is None."""

    utilization_percent: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    power_watts: float | None


class Nvml:
    """The GPUs of this machine. Raises OSError where there is no driver."""

    def __init__(self, library: Any = None) -> None:
        """`library` stands for NVML in tests."""
        self._library = library if library is not None else ctypes.CDLL(_LIBRARY)
        if self._library.nvmlInit_v2() != 0:
            raise OSError("the NVIDIA driver does not answer")
        count = ctypes.c_uint()
        self._library.nvmlDeviceGetCount_v2(ctypes.byref(count))
        self._handles: list[ctypes.c_void_p] = []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            if self._library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0:
                self._handles.append(handle)

    def names(self) -> list[str]:
        """The GPUs' names."""
        name = self._library.nvmlDeviceGetName
        return [self._text(partial(name, handle)) for handle in self._handles]

    def driver_version(self) -> str:
        return self._text(self._library.nvmlSystemGetDriverVersion)

    def samples(self) -> list[GpuSample]:
        """Look at every GPU now."""
        return [self._sample(handle) for handle in self._handles]

    def _sample(self, handle: ctypes.c_void_p) -> GpuSample:
        library = self._library
        utilization, memory, milliwatts = _Utilization(), _Memory(), ctypes.c_uint()
        has_utilization = not library.nvmlDeviceGetUtilizationRates(
            handle, ctypes.byref(utilization)
        )
        has_memory = not library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
        has_power = not library.nvmlDeviceGetPowerUsage(handle, ctypes.byref(milliwatts))
        return GpuSample(
            float(utilization.gpu) if has_utilization else None,
            memory.used if has_memory else None,
            memory.total if has_memory else None,
            milliwatts.value / 1000 if has_power else None,
        )

    def _text(self, ask: Callable[..., int]) -> str:
        buffer = ctypes.create_string_buffer(_TEXT_BYTES)
        return buffer.value.decode() if ask(buffer, _TEXT_BYTES) == 0 else ""
