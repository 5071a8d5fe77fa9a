"""Device, dtype and free memory, on hosts of several kinds."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import ConfigError
from vlmflow_engine.runner import device as device_module
from vlmflow_engine.runner.device import free_memory_bytes, resolve_device, resolve_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
AVAILABLE = 1000

V2_LIMIT, V2_USAGE = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"
V2_STAT = "/sys/fs/cgroup/memory.stat"
V1_LIMIT = "/sys/fs/cgroup/memory/memory.limit_in_bytes"
V1_USAGE = "/sys/fs/cgroup/memory/memory.usage_in_bytes"


class Host:
    """A host whose system files are those of a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, name: str) -> Path:
        return self._root / name.lstrip("/")

    def write(self, name: str, content: str) -> None:
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).write_text(content)


@pytest.fixture
def host(monkeypatch, tmp_path) -> Iterator[Host]:
    """A host with 1000 bytes of memory and no system file yet."""
    result = Host(tmp_path)
    monkeypatch.setattr(device_module, "Path", result.path)
    memory = SimpleNamespace(available=AVAILABLE)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    device_module._cpu_has_bfloat16.cache_clear()
    yield result
    device_module._cpu_has_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("device_type", "has_cuda", "expected"),
    [("auto", False, CPU), ("auto", True, CUDA), ("cpu", True, CPU), ("cuda", True, CUDA)],
)
def test_auto_means_cuda_where_there_is_some(device_type, has_cuda, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert resolve_device(PytorchEngineConfig(device_type=device_type)) == expected


def test_cuda_without_a_device_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device_type='cuda', but torch sees no CUDA device"):
        resolve_device(PytorchEngineConfig(device_type="cuda"))


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_dtype_asked_for_is_taken(name, device):
    assert resolve_dtype(PytorchEngineConfig(dtype=name), device) == getattr(torch, name)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx512f avx512_bf16", torch.bfloat16),
        ("fpu amx_bf16 amx_tile", torch.bfloat16),
        ("fpu avx2 avx512f", torch.float32),
        (None, torch.float32),
    ],
    ids=str,
)
def test_auto_is_bfloat16_on_a_cpu_that_multiplies_it_in_hardware(flags, expected, host):
    if flags is not None:
        host.write("/proc/cpuinfo", f"processor\t: 0\nflags\t\t: {flags}\n")
    assert resolve_dtype(PytorchEngineConfig(), CPU) == expected


def test_auto_is_bfloat16_on_cuda(host):
    assert resolve_dtype(PytorchEngineConfig(), CUDA) == torch.bfloat16


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, AVAILABLE // 2),
        ({V2_LIMIT: "max\n", V2_USAGE: "900\n"}, AVAILABLE // 2),
        ({V2_LIMIT: "5000\n", V2_USAGE: "100\n"}, AVAILABLE // 2),
        ({V2_LIMIT: "700\n", V2_USAGE: "300\n"}, 200),
        ({V2_LIMIT: "700\n", V2_USAGE: "800\n"}, 0),
        ({V1_LIMIT: "700\n", V1_USAGE: "100\n"}, 300),
        ({V1_LIMIT: "9223372036854771712\n", V1_USAGE: "100\n"}, AVAILABLE // 2),
        ({V2_LIMIT: "700\n"}, AVAILABLE // 2),
        ({V2_LIMIT: "700\n", V2_USAGE: "300\n", V2_STAT: "anon 1\ninactive_file 90\n"}, 245),
    ],
    ids=[
        "no_container",
        "unlimited",
        "limit_above_the_host",
        "limit",
        "beyond_the_limit",
        "version_1",
        "version_1_unlimited",
        "usage_unknown",
        "file_cache",
    ],
)
def test_half_of_what_host_and_container_leave_free_may_be_shared_out(files, expected, host):
    for name, content in files.items():
        host.write(name, content)
    assert free_memory_bytes(CPU) == expected


def test_all_that_is_free_on_a_gpu_may_be_shared_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (700, 1000))
    assert free_memory_bytes(CUDA) == 700
