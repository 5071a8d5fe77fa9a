"""The library of C++ kernels, where there is one."""

import pytest

from vlmflow_engine.kernels.cpu.build import BuildError, find_compiler
from vlmflow_engine.kernels.cpu.library import CpuLibrary, cpu_library


@pytest.fixture(scope="session")
def library() -> CpuLibrary:
    """At the CPU's best level."""
    found = cpu_library()
    if found is None:
        pytest.skip("there are no C++ kernels here: no g++, or VLMFLOW_CPU_KERNELS=0")
    return found


@pytest.fixture(params=["plain", "avx2", "avx512", "avx512_bf16"])
def level(request: pytest.FixtureRequest, library: CpuLibrary):
    """Each instruction set that this CPU has, used as long as the test runs."""
    if request.param not in library.levels:
        pytest.skip(f"this CPU has no {request.param}")
    before = library.level
    library.use_level(request.param)
    yield request.param
    library.use_level(before)


@pytest.fixture(scope="session")
def compiler() -> str:
    try:
        return find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
