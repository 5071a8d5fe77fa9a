"""How busy the machine is: real numbers of this one, and a GPU's by a driver that is played."""

import ctypes
import time
from pathlib import Path

import pytest

from vlmflow.tracking import system_metrics
from vlmflow.tracking.nvml import GpuSample, Nvml
from vlmflow.tracking.system_metrics import SystemSampler, gpu_metrics


class Driver:
    """NVML's functions for two GPUs, of which the second does not tell its power."""

    NAMES = (b"NVIDIA A", b"NVIDIA B")

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count) -> int:
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle) -> int:
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetName(self, handle, buffer, size) -> int:
        buffer.value = self.NAMES[handle.value - 1]
        return 0

    def nvmlSystemGetDriverVersion(self, buffer, size) -> int:
        buffer.value = b"555.42"
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle, rates) -> int:
        rates._obj.gpu = 40 + handle.value
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle, memory) -> int:
        memory._obj.total, memory._obj.used = 80 << 30, 20 << 30
        return 0

    def nvmlDeviceGetPowerUsage(self, handle, milliwatts) -> int:
        if handle.value == 2:
            return 3
        milliwatts._obj.value = 350_500
        return 0


def test_gpus_are_what_the_driver_says():
    gpus = Nvml(Driver())
    assert gpus.names() == ["NVIDIA A", "NVIDIA B"]
    assert gpus.driver_version() == "555.42"
    metrics = gpu_metrics(gpus.samples())
    assert metrics == {
        "gpu_0_utilization_percentage": 41.0,
        "gpu_0_memory_usage_megabytes": (20 << 30) / 1e6,
        "gpu_0_memory_usage_percentage": 25.0,
        "gpu_0_power_usage_watts": 350.5,
        "gpu_1_utilization_percentage": 42.0,
        "gpu_1_memory_usage_megabytes": (20 << 30) / 1e6,
        "gpu_1_memory_usage_percentage": 25.0,
    }


def test_what_a_gpu_does_not_tell_is_left_out():
    assert gpu_metrics([GpuSample(None, None, None, None)]) == {}


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="no CUDA device")
def test_this_machines_gpu_tells_of_itself():
    import torch

    gpus = Nvml()
    assert gpus.names()[0] == torch.cuda.get_device_name(0)
    [sample, *_] = gpus.samples()
    total = torch.cuda.get_device_properties(0).total_memory
    assert sample.memory_total_bytes == pytest.approx(total, rel=0.05)
    assert sample.power_watts is not None and sample.power_watts > 10


def test_samples_bear_the_shards_name_and_the_names_of_mlflows_page(monkeypatch):
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

    monkeypatch.setattr(system_metrics, "SAMPLE_SECONDS", 0.05)
    delivered: list[tuple[int, dict[str, float]]] = []
    sampler = SystemSampler(lambda step, values: delivered.append((step, values)))
    sampler.node, sampler.step = "shard-00003", 12
    sampler.start()
    deadline = time.monotonic() + 10
    while len(delivered) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    sampler.stop()
    step, values = delivered[1]
    assert step == 12
    names = {name.removeprefix("system/shard-00003/") for name in values}
    theirs = CPUMonitor()
    theirs.collect_metrics()
    assert set(theirs.metrics) <= names | {"cpu_utilization_percentage"}
    assert 0 < values["system/shard-00003/system_memory_usage_percentage"] < 100
    num_delivered = len(delivered)
    time.sleep(0.2)
    assert len(delivered) <= num_delivered + 1, "a sampler that was stopped goes on"


def test_a_machine_without_a_driver_has_no_gpu_tags(monkeypatch):
    def no_library(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    assert system_metrics.gpu_tags() == {}
