"""Loading the library: where it is found, what the log says, and whose OpenMP it uses."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlmflow_engine.kernels.cpu import library as module
from vlmflow_engine.kernels.cpu.build import Sources
from vlmflow_engine.kernels.cpu.library import LEVELS, CpuLibrary, cpu_library


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """As in a process that has asked for nothing yet, with an empty cache and no compiler."""
    for name in ("VLMFLOW_CPU_KERNELS", "VLMFLOW_CPU_KERNELS_DIR", "VLMFLOW_CPU_KERNELS_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    caplog.set_level(logging.INFO)
    module._load.cache_clear()
    yield
    module._load.cache_clear()


@pytest.fixture
def prebuilt(library: CpuLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The name of a library that was built elsewhere; the level is what it was afterwards."""
    place = tmp_path / Sources().library_name()
    place.symlink_to(library.path)
    monkeypatch.setenv("VLMFLOW_CPU_KERNELS_DIR", str(tmp_path))
    level = library.level
    yield place
    library.use_level(level)


def test_without_a_compiler_the_log_says_once_what_to_do(caplog):
    assert cpu_library() is None
    assert cpu_library() is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    message = record.getMessage()
    assert message.startswith("without C++ kernels the CPU computes in plain torch")
    assert "there is no g++ on the PATH; install g++, or set VLMFLOW_CPU_KERNELS_DIR" in message


def test_they_can_be_turned_off(monkeypatch, caplog, prebuilt):
    monkeypatch.setenv("VLMFLOW_CPU_KERNELS", "0")
    assert cpu_library() is None
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "VLMFLOW_CPU_KERNELS=0" in caplog.text


def test_a_library_built_elsewhere_needs_no_compiler(library, prebuilt, caplog):
    loaded = cpu_library()
    assert cpu_library() is loaded
    assert [record.getMessage() for record in caplog.records] == [
        f"C++ kernels: {library.best_level}, {prebuilt}"
    ]


def test_a_folder_without_the_right_library_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("VLMFLOW_CPU_KERNELS_DIR", str(tmp_path))
    assert cpu_library() is None
    first, second = (record.getMessage() for record in caplog.records)
    assert "has no libvlmflow_cpu-" in first
    assert second.startswith("without C++ kernels")


def test_a_file_that_is_no_library_is_no_exception(tmp_path, monkeypatch, caplog):
    (tmp_path / Sources().library_name()).write_bytes(b"nonsense")
    monkeypatch.setenv("VLMFLOW_CPU_KERNELS_DIR", str(tmp_path))
    assert cpu_library() is None
    assert "file too short" in caplog.text


def test_a_level_can_be_asked_for(library, prebuilt, monkeypatch):
    for level in library.levels:
        module._load.cache_clear()
        monkeypatch.setenv("VLMFLOW_CPU_KERNELS_LEVEL", level)
        assert cpu_library().level == level


def test_a_level_that_nobody_knows_is_said_and_ignored(library, prebuilt, monkeypatch, caplog):
    monkeypatch.setenv("VLMFLOW_CPU_KERNELS_LEVEL", "sse9")
    assert cpu_library().level == library.best_level
    assert "VLMFLOW_CPU_KERNELS_LEVEL='sse9' is not known" in caplog.text


def test_a_level_that_the_cpu_lacks_is_not_used(library, prebuilt):
    other = CpuLibrary(prebuilt)
    other.best_level = LEVELS[0]
    other.use_level(LEVELS[-1])
    assert other.level == LEVELS[0]


def test_it_computes_with_the_openmp_of_torch_and_no_other(library, monkeypatch):
    monkeypatch.undo()
    code = (
        "from vlmflow_engine.kernels.cpu.library import cpu_library; cpu_library(); "
        "print({line.split()[-1] for line in open('/proc/self/maps') if 'gomp' in line})"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    (runtime,) = eval(done.stdout)
    assert "torch" in runtime
    needed = subprocess.run(["ldd", str(library.path)], capture_output=True, text=True).stdout
    assert needed and "gomp" not in needed


def test_a_function_of_another_version_is_an_attribute_error(library):
    with pytest.raises(AttributeError):
        library.function("vlmflow_of_another_version")
