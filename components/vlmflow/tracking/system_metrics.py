"""How busy the machine is, under the names by which MLflow's page of system metrics knows it.

MLflow has a sampler of its own. It speaks to the server from another thread, and ends at the first
call that fails; here the values go the way of all other metrics, spool included.
"""

import threading
from collections.abc import Callable
from contextlib import suppress

import psutil

from vlmflow.tracking.nvml import GpuSample, Nvml

SAMPLE_SECONDS = 10.0
_MEGABYTE = 1e6  # as MLflow counts them


class SystemSampler:
    """Samples on a thread of its own, between `start` and `stop`; both may be called again."""

    def __init__(self, deliver: Callable[[int, dict[str, float]], None]) -> None:
        self._deliver = deliver
        self.node = ""  # whose machine it is, in the names
        self.step = 0  # of the values
        self._stop: threading.Event | None = None

    def start(self) -> None:
        if self._stop is None:
            stop = self._stop = threading.Event()
            threading.Thread(
                target=self._run, args=(stop,), daemon=True, name="system-metrics"
            ).start()

    def stop(self) -> None:
        """Begin no more samples; wait for none."""
        if self._stop is not None:
            self._stop.set()
            self._stop = None

    def _run(self, stop: threading.Event) -> None:
        gpus = _find_gpus()
        network = psutil.net_io_counters()
        psutil.cpu_percent()  # the next call says how busy it was since this one
        while not stop.wait(SAMPLE_SECONDS):
            values = machine_metrics()
            now = psutil.net_io_counters()
            if now is not None and network is not None:
                received, sent = (
                    now.bytes_recv - network.bytes_recv,
                    now.bytes_sent - network.bytes_sent,
                )
                values["network_receive_megabytes"] = received / _MEGABYTE
                values["network_transmit_megabytes"] = sent / _MEGABYTE
            if gpus is not None:
                values |= gpu_metrics(gpus.samples())
            prefix = f"system/{self.node}/" if self.node else "system/"
            self._deliver(self.step, {f"{prefix}{name}": v for name, v in values.items()})


def machine_metrics() -> dict[str, float]:
    """Processors and memory; the processors since the last call."""
    memory = psutil.virtual_memory()
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / _MEGABYTE,
        "system_memory_usage_percentage": memory.used / memory.total * 100,
    }


def gpu_metrics(samples: list[GpuSample]) -> dict[str, float]:
    """Each GPU's, with its number; what is not known is left out."""
    values: dict[str, float | None] = {}
    for number, sample in enumerate(samples):
        used, total = sample.memory_used_bytes, sample.memory_total_bytes
        values |= {
            f"gpu_{number}_utilization_percentage": sample.utilization_percent,
            f"gpu_{number}_memory_usage_megabytes": used / _MEGABYTE if used is not None else None,
            f"gpu_{number}_memory_usage_percentage": 100 * used / total if used and total else None,
            f"gpu_{number}_power_usage_watts": sample.power_watts,
        }
    return {name: float(value) for name, value in values.items() if value is not None}


def gpu_tags() -> dict[str, str]:
    """The GPUs' names and the driver's version; nothing where there is none."""
    gpus = _find_gpus()
    if gpus is None or not gpus.names():
        return {}
    names = gpus.names()
    return {
        "gpu.name": ", ".join(dict.fromkeys(names)),
        "gpu.count": str(len(names)),
        "gpu.driver": gpus.driver_version(),
    }


def _find_gpus() -> Nvml | None:
    with suppress(OSError, AttributeError):  # no driver, or one without these functions
        return Nvml()
    return None
